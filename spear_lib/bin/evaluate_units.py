"""How well discrete units stand for phones: purity, PNMI, perplexity, bit rate (spec evaluation §5.2).

    python -m spear_lib.bin.evaluate_units --stores '[data/tokens/dev]' --encoders '[exp/pretrain/encoder]' \\
        --layers all --audio '[data/manifests/dev.jsonl.gz]' --alignments '[data/alignments]' \\
        --output_dir exp/units

Units are the tokens of a store, each codebook by itself, or k-means clusters of an encoder's frames.
Run the same command again to go on after a crash.
"""

import logging
from dataclasses import dataclass
from typing import Any

from spear_lib.bin.common import command_line, run
from spear_lib.config import parse
from spear_lib.evaluation.audio_by_name import NamedAudio
from spear_lib.evaluation.measured import Results, encoder_facts, log_table
from spear_lib.evaluation.phone_options import PhoneOptions, phones_fingerprint
from spear_lib.evaluation.units_measured import Clustering, encoder_units, store_units
from spear_lib.runtime.log import first_screen
from spear_lib.tokens.store import TokenStoreReader

logger = logging.getLogger(__name__)

TASK = "unit quality"


@dataclass(frozen=True, kw_only=True)
class UnitOptions(PhoneOptions):
    """Encoders, token stores and phones."""

    layers: str = "output"
    """Of encoders: output, numbers of layers (3 or 3,6,9), or all: the best one is named."""
    num_clusters: int = 256
    """Clusters of an encoder's frames."""
    train_audio: list[str] | None = None
    """What the clusters are trained on (folders, files, manifests); by default the measured files."""
    max_train_frames: int = 200_000
    """Most frames of it, drawn at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_clusters < 2 or self.max_train_frames < self.num_clusters:
            raise ValueError(
                f"num_clusters is {self.num_clusters} with max_train_frames {self.max_train_frames}: use 2 "
                "or more clusters, and at least as many frames"
            )
        if self.layers in ("concat", "weighted"):
            raise ValueError(f"layers is {self.layers!r}: use output, all or numbers of layers (3 or 3,6,9)")


def main(argv: list[str] | None = None) -> None:
    options = parse(UnitOptions, argv, prog="python -m spear_lib.bin.evaluate_units", description=__doc__)
    phones, audio, names = options.read()
    seconds = sum(audio[name].duration for name in names)
    results = Results(options.output_dir, "units", command_line("spear_lib.bin.evaluate_units", argv))
    first_screen(
        "Quality of discrete units",
        {
            "encoders": ", ".join([*options.named(), *options.named_stores()]),
            "phones": f"{len(phones)} with silences, in {len(names)} files, {seconds / 60:.1f} min",
            "clusters": options.num_clusters,
            "seeds": options.seeds,
            "result": results.path,
        },
    )
    data = {"data": phones_fingerprint(phones), "files": len(names), "seconds": round(seconds, 3)}
    protocol = {
        "num_clusters": options.num_clusters,
        "train_audio": options.train_audio,
        "max_train_frames": options.max_train_frames,
        "seeds": options.seeds,
    }
    clustering = Clustering(
        options.num_clusters,
        options.max_train_frames,
        options.seeds,
        NamedAudio(options.train_audio) if options.train_audio else None,
    )
    table = {}
    for name, path in options.named_stores().items():
        store = TokenStoreReader(path)
        facts = {"store": store.facts.quantizer_id, "teacher": store.facts.teacher_id}
        result = results.measure(
            name,
            TASK,
            facts | data,
            lambda store=store: store_units(store, phones, audio, names, seconds),
        )
        table[name] = _row(result)
    for name, encoder in options.load(options.layers):
        result = results.measure(
            name,
            TASK,
            encoder_facts(encoder) | data | protocol,
            lambda name=name, encoder=encoder: encoder_units(
                encoder, clustering, phones, audio, names, seconds, name
            ),
        )
        table[name] = _row(result, encoder.state_label(result["best_state"]))
    log_table(table)


def _row(result: dict[str, Any], state: str = "") -> dict[str, str]:
    """What the table shows: PNMI, and the rest of the first codebook or seed of the best state."""
    first = result["quality"][0]
    return {
        "PNMI": f"{result['mean']:.3f} ± {result['std']:.3f}{state}",
        "phone purity": f"{first['phone_purity']:.3f}",
        "cluster purity": f"{first['cluster_purity']:.3f}",
        "perplexity": f"{first['codebook_perplexity']:.1f}",
        "bit/s": f"{first['bitrate_deduplicated']:.0f}",
    }


if __name__ == "__main__":
    run(main)
