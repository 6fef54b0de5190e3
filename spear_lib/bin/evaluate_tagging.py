"""Tag sets of clips with a fine-tuned model and score them (stage 13 of recipes of sounds)."""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from spear_lib.bin.common import command_line, run
from spear_lib.config import parse, to_dict
from spear_lib.data.manifests import Manifest, named_sets
from spear_lib.data.problems import Problems
from spear_lib.runtime.log import commit, first_screen
from spear_lib.runtime.world import choose_device
from spear_lib.tagging.class_labels import LabelTable
from spear_lib.tagging.evaluation import tag_set, write_classes, write_events, write_predictions, write_score
from spear_lib.tagging.events import EventConfig
from spear_lib.tagging.inference import load_tagger
from spear_lib.tagging.metrics import score

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateTaggingOptions:
    """Which model, which sets."""

    experiment_dir: str
    """Folder of finetune_tagging."""
    cuts: list[str]
    """Sets to tag: manifests, or name=manifest. The name is part of the result files' names; left out, it is
    what follows "_cuts_" in the name of the manifest."""
    output_dir: str = ""
    """Receives tagging-<set>.json, classes-<set>.csv, events-<set>.tsv and predictions-<set>.npz; empty:
    evaluation in experiment_dir."""
    average: int = 1
    """Average the model over the last so many save intervals; 0: the last weights as they are."""
    batch_seconds: float = 200.0
    """Padded audio per batch, s; changes speed and memory, not results."""
    max_bad_fraction: float = 0.01
    """Share of a set's clips that may be unreadable; they are counted and left out (ours)."""
    device: str = "auto"
    """cpu, cuda or auto."""
    events: EventConfig = field(default_factory=EventConfig)
    """How frames become events."""


def main(argv: list[str] | None = None) -> None:
    options = parse(
        EvaluateTaggingOptions,
        argv,
        prog="python -m spear_lib.bin.evaluate_tagging",
        description="Tag sets of clips with a fine-tuned model and compute mean average precisions.",
    )
    sets = {name: Manifest(path) for name, path in named_sets(options.cuts).items()}
    tagger = load_tagger(options.experiment_dir, options.average, choose_device(options.device))
    # Before anything is computed: a set without labels cannot be scored.
    labels = {name: LabelTable(cuts, tagger.classes) for name, cuts in sets.items()}
    output_dir = Path(options.output_dir or Path(options.experiment_dir) / "evaluation")
    output_dir.mkdir(parents=True, exist_ok=True)
    first_screen(
        "Tagging",
        {
            "model": options.experiment_dir,
            "weights": f"{tagger.provenance['weights']} (hash {tagger.provenance['weights_hash']})",
            "pooling": tagger.model.config.pooling,
            "sets": ", ".join(f"{name} ({len(manifest)} clips)" for name, manifest in sets.items()),
            "results": output_dir,
        },
    )
    for name, manifest in sets.items():
        started = time.monotonic()
        problems = Problems(options.max_bad_fraction, f"clips of {name}", len(manifest))
        tagged = tag_set(
            tagger, manifest, labels[name], problems, options.events, options.batch_seconds, name
        )
        problems.log()
        seconds = time.monotonic() - started
        result = score(tagged.targets, tagged.probabilities, tagger.classes)
        write_predictions(output_dir / f"predictions-{name}.npz", tagged, tagger.classes)
        write_classes(output_dir / f"classes-{name}.csv", result)
        write_events(output_dir / f"events-{name}.tsv", tagged, tagger.classes)
        write_score(
            output_dir / f"tagging-{name}.json",
            result,
            {
                "set": name,
                "pooling": tagger.model.config.pooling,
                "problems": problems.to_dict(),
                "audio_seconds": round(tagged.seconds, 1),
                "seconds": round(seconds, 1),
                **tagger.provenance,
                "options": to_dict(options),
                "command": command_line("spear_lib.bin.evaluate_tagging", argv),
                "code": commit(),
            },
        )
        logger.info(
            "%s: mAP %.2f %% of %d classes with positives in %d clips (chance %.2f %%), mAUC %.4f, d' %.2f, "
            "%.0f x real time",
            name,
            result.mean_average_precision,
            len(result.classes),
            result.num_clips,
            result.chance,
            result.mean_roc_area,
            result.d_prime,
            tagged.seconds / max(seconds, 1e-9),
        )


if __name__ == "__main__":
    run(main)
