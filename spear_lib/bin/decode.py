"""Recognise sets of cuts with a fine-tuned model and score them (stage 13)."""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spear_lib.asr.decoding import build_model, load_weights, model_units, recognise, write_recognised
from spear_lib.asr.searcher import SearchConfig, Searcher
from spear_lib.asr.tuning import TuneConfig, choose_search
from spear_lib.asr.units import units_of, unwritable_references
from spear_lib.asr.wer import score, write_errors
from spear_lib.bin.common import command_line, run
from spear_lib.config import parse, to_dict
from spear_lib.data.manifests import Manifest, named_sets
from spear_lib.data.references import references
from spear_lib.runtime.files import write_json
from spear_lib.runtime.log import commit, first_screen
from spear_lib.runtime.world import choose_device

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodeOptions:
    """Which model, which sets, which search."""

    experiment_dir: str
    """Folder of finetune_asr."""
    cuts: list[str]
    """Sets to recognise: manifests, or name=manifest. The name is part of the result files' names;
    left out, it is what follows "_cuts_" in the name of the manifest."""
    units: str = ""
    """The text units that it was trained with: bpe.model or its folder; empty: those that its folder holds (a
    model of characters needs none)."""
    output_dir: str = ""
    """Receives recogs-<set>.jsonl, wer-<set>.json and errs-<set>.txt; empty: decode in experiment_dir."""
    average: int = 1
    """Average the model over the last so many save intervals; 0: the last weights as they are."""
    batch_seconds: float = 120.0
    """Padded audio per batch, s; changes speed and memory, not results."""
    device: str = "auto"
    """cpu, cuda or auto."""
    num_best: int = 0
    """Hypotheses with scores in recogs-<set>.jsonl beside the best one."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Search; choose its values on dev, not on the test sets."""
    tune: TuneConfig = field(default_factory=TuneConfig)
    """Choosing weights of the search on one of the sets (never a test set) before the others."""


def main(argv: list[str] | None = None) -> None:
    options = parse(
        DecodeOptions,
        argv,
        prog="python -m spear_lib.bin.decode",
        description="Recognise sets of cuts with a fine-tuned model and compute word error rates.",
    )
    sets = {name: Manifest(path) for name, path in named_sets(options.cuts).items()}
    # Before anything is computed: a set without transcripts cannot be scored.
    texts = {name: references(manifest) for name, manifest in sets.items()}
    weights = load_weights(options.experiment_dir, options.average)
    if options.units:
        units = model_units(weights, options.units)
    else:
        units = units_of(options.experiment_dir, "")
    device = choose_device(options.device)
    model = build_model(weights, units).to(device)
    dev = options.tune.dev_set
    if dev and dev not in sets:
        raise ValueError(f"tune.dev_set is {dev!r}, which is none of the sets {', '.join(sets)}")
    unwritable = {name: unwritable_references(units, found.values()) for name, found in texts.items()}
    for name, (count, reason) in unwritable.items():
        if count:
            logger.warning(
                "%s: %d of %d references hold what the units cannot write, which counts as errors of the "
                "model: %s",
                name,
                count,
                len(texts[name]),
                reason,
            )
    searcher = Searcher(model, units, options.search)
    output_dir = Path(options.output_dir or Path(options.experiment_dir) / "decode")
    output_dir.mkdir(parents=True, exist_ok=True)
    first_screen(
        "Recognising",
        {
            "model": options.experiment_dir,
            "weights": f"{weights.provenance['weights']} (hash {weights.provenance['weights_hash']})",
            "search": f"{options.search} ({searcher.head})",
            "sets": ", ".join(f"{name} ({len(manifest)} cuts)" for name, manifest in sets.items()),
            "results": output_dir,
        },
    )
    if dev:
        chosen, tried = choose_search(searcher, options.tune, sets[dev], texts[dev], options.batch_seconds)
        write_json(output_dir / "tuning.json", {"dev_set": dev, "search": to_dict(chosen), "tried": tried})
        searcher = Searcher(model, units, chosen, searcher.scorer.model if searcher.scorer else None)
    for name, manifest in sets.items():
        started, (count, _) = time.monotonic(), unwritable[name]
        results = recognise(searcher, manifest, options.batch_seconds, options.num_best, name)
        seconds = time.monotonic() - started
        errors = score(texts[name], {id: result["text"] for id, result in results.items()}, name)
        audio_seconds = float(np.sum(manifest.durations))
        write_recognised(output_dir / f"recogs-{name}.jsonl", results, texts[name])
        write_errors(
            errors, output_dir / f"errs-{name}.txt", f"{name}, {options.experiment_dir}, {searcher.config}"
        )
        write_json(
            output_dir / f"wer-{name}.json",
            {
                "set": name,
                "method": str(searcher.config),
                "head": searcher.head,
                "search": to_dict(searcher.config),
                **errors.summary(),
                "unwritable_references": count,
                "audio_seconds": round(audio_seconds, 1),
                "seconds": round(seconds, 1),
                **weights.provenance,
                "units_id": units.id,
                "options": to_dict(options),
                "command": command_line("spear_lib.bin.decode", argv),
                "code": commit(),
            },
        )
        low, high = errors.interval()
        logger.info(
            "%s: WER %.2f %% (%.2f to %.2f; %d sub, %d del, %d ins in %d words), CER %.2f %%, "
            "%.0f x real time%s",
            name,
            errors.wer,
            low,
            high,
            errors.substitutions,
            errors.deletions,
            errors.insertions,
            errors.num_words,
            errors.cer,
            audio_seconds / max(seconds, 1e-9),
            f"; {count} references cannot be written, see above" if count else "",
        )


if __name__ == "__main__":
    run(main)
