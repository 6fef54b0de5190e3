"""X-ARES's linear and nearest-neighbour protocols on labelled clips, for frozen encoders.

    python -m spear_lib.bin.evaluate_xares --encoders '[exp/pretrain/encoder]' --task esc10 \\
        --clips '[esc10/clips.tsv]' --output_dir exp/xares
    python -m spear_lib.bin.evaluate_xares --encoders '[exp/pretrain/encoder]' --task who --label speaker \\
        --train '[train_cuts.jsonl.gz]' --test '[test_cuts.jsonl.gz]' --output_dir exp/xares

Several tasks go to one output_dir, one command each. Run the same command again to go on after a crash.
"""

import logging
from dataclasses import asdict, dataclass, field

from spear_lib.bin.common import command_line, run
from spear_lib.config import parse
from spear_lib.evaluation.clip_sets import TEST, TRAIN, VALID, Clip, read_clips, rounds
from spear_lib.evaluation.measured import (
    MeasureOptions,
    Results,
    encoder_facts,
    fingerprint,
    log_table,
)
from spear_lib.evaluation.xares import LinearConfig
from spear_lib.evaluation.xares_measured import clip_scores, embed
from spear_lib.runtime.log import first_screen

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class XaresOptions(MeasureOptions):
    """Encoders and one task."""

    task: str
    """Its name in the table."""
    clips: list[str] = field(default_factory=list)
    """Tables (.tsv, .csv with a column path) or manifests whose clips say their own part, see split."""
    train: list[str] = field(default_factory=list)
    """Or tables or manifests of training clips,"""
    valid: list[str] = field(default_factory=list)
    """of validation clips (by default a tenth of the training clips),"""
    test: list[str] = field(default_factory=list)
    """and of test clips."""
    label: str = "label"
    """Column of the label, several separated by ";"; of cuts: speaker, events, or a custom field."""
    split: str = "fold"
    """Column or custom field of the part: a fold, or train, valid, test."""
    layers: str = "output"
    """output, concat (all layers side by side) or the number of a layer."""
    linear: LinearConfig = field(default_factory=LinearConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.clips) == bool(self.train and self.test):
            raise ValueError("give either clips, or train and test (and valid)")
        if self.layers in ("all", "weighted") or "," in self.layers:
            raise ValueError(f"layers is {self.layers!r}: use output, concat or the number of a layer")

    def read(self) -> list[Clip]:
        """All clips."""
        if self.clips:
            return read_clips(self.clips, self.label, self.split)
        parts = {TRAIN: self.train, VALID: self.valid, TEST: self.test}
        return [
            clip
            for part, paths in parts.items()
            if paths
            for clip in read_clips(paths, self.label, self.split, part)
        ]


def main(argv: list[str] | None = None) -> None:
    options = parse(XaresOptions, argv, prog="python -m spear_lib.bin.evaluate_xares", description=__doc__)
    clips = options.read()
    plan = rounds(clips, options.seed)
    results = Results(options.output_dir, "xares", command_line("spear_lib.bin.evaluate_xares", argv))
    first_screen(
        "X-ARES protocols on frozen encoders",
        {
            "encoders": ", ".join(options.named()),
            "task": f"{options.task}: {len(clips)} clips, "
            f"{len({label for clip in clips for label in clip.labels})} classes",
            "rounds": "; ".join(f"{name} {len(a)}/{len(b)}/{len(c)}" for name, a, b, c in plan),
            "seeds": options.seeds,
            "result": results.path,
        },
    )
    data = fingerprint([[clip.name, list(clip.labels), clip.part] for clip in clips])
    table = {}
    for name, encoder in options.load(options.layers):
        facts = encoder_facts(encoder) | {
            "data": data,
            "linear": asdict(options.linear),
            "seeds": options.seeds,
        }
        result = results.measure(
            name,
            options.task,
            facts,
            lambda name=name, encoder=encoder: clip_scores(
                clips,
                embed(encoder, clips, f"{options.task}, {name}"),
                options.linear,
                options.seed,
                options.seeds,
            ),
        )
        knn = result.get("knn")
        table[name] = {
            f"{options.task}, linear": f"{result['mean']:.1f} ± {result['std']:.1f}",
            f"{options.task}, 10-NN": "–" if knn is None else f"{knn:.1f}",
        }
    log_table(table)


if __name__ == "__main__":
    run(main)
