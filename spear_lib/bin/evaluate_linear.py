"""Frozen features read out linearly: labels of clips (with 10 nearest neighbours) or of frames.

    python -m spear_lib.bin.evaluate_linear --encoders '[exp/pretrain/encoder]' --task esc10 \\
        --clips '[esc10/clips.tsv]' --split fold --output_dir exp/linear
    python -m spear_lib.bin.evaluate_linear --encoders '[exp/pretrain/encoder]' --task phones \\
        --frames '[phones.tsv]' --output_dir exp/linear

Several tasks go to one output_dir, one command each. Run the same command again to go on after a crash.
"""

from dataclasses import dataclass, field

from spear_lib.bin.common import command_line, run
from spear_lib.config import parse
from spear_lib.evaluation.clip_sets import read_clips
from spear_lib.evaluation.measured import MeasureOptions, Results, encoder_facts, fingerprint, log_table
from spear_lib.evaluation.read_out import measure_clips, measure_frames, read_segments
from spear_lib.runtime.log import first_screen


@dataclass(frozen=True, kw_only=True)
class LinearOptions(MeasureOptions):
    """Encoders and one task; the seed is that of the random weights."""

    task: str
    """Its name in the table."""
    clips: list[str] = field(default_factory=list)
    """Tables (.tsv, .csv with a column path) or manifests of clips with one label each,"""
    frames: list[str] = field(default_factory=list)
    """or tables of segments: path, start, end (seconds), label; every frame has the label at its centre."""
    label: str = "label"
    """Of clips, the column of the label; of cuts: speaker, events, or a custom field."""
    split: str = "part"
    """Column or custom field of the part: train, valid, test; or of clips a fold."""
    positive: str = ""
    """Measure the average precision of this label, not the accuracy of all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.clips) == bool(self.frames):
            raise ValueError("give either clips or frames")


def main(argv: list[str] | None = None) -> None:
    options = parse(LinearOptions, argv, prog="python -m spear_lib.bin.evaluate_linear", description=__doc__)
    if options.clips:
        data = read_clips(options.clips, options.label, options.split)
        known = [[clip.name, list(clip.labels), clip.part] for clip in data]
    else:
        data = read_segments(options.frames, options.split)
        known = [[str(one.path), one.segments, one.part] for one in data]
    results = Results(options.output_dir, "linear", command_line("spear_lib.bin.evaluate_linear", argv))
    first_screen(
        "linear read-out of frozen encoders",
        {
            "encoders": ", ".join(options.named()),
            "task": f"{options.task}: {len(data)} {'clips' if options.clips else 'recordings'}",
            "result": results.path,
        },
    )
    measure = measure_clips if options.clips else measure_frames
    protocol = {"data": fingerprint(known), "positive": options.positive, "protocol": 1}
    table = {}
    for name, encoder in options.load("all"):
        result = results.measure(
            name,
            options.task,
            encoder_facts(encoder) | protocol,
            lambda name=name, encoder=encoder: measure(
                encoder, data, f"{options.task}, {name}", options.positive
            ),
        )
        table[name] = {options.task: f"{result['mean']:.1f}"}
        if "knn" in result:
            table[name][f"{options.task}, 10-NN"] = f"{result['knn']:.1f}"
    log_table(table)


if __name__ == "__main__":
    run(main)
