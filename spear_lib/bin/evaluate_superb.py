"""SUPERB tasks on frozen encoders, trained and scored by s3prl (pip install 'spear_lib[superb]').

    python -m spear_lib.bin.evaluate_superb --encoders '[exp/pretrain/encoder]' --task sid --label speaker \\
        --train '[train.jsonl.gz]' --valid '[dev.jsonl.gz]' --test '[test.jsonl.gz]' \\
        --learning_rates '[1e-4, 1e-3]' --output_dir exp/superb

Tasks: sid, ks, er, ic, pr, asr. Several go to one output_dir, one command each. Of several learning rates the
best on validation is tested; all are recorded. Run the same command again to go on after a crash.
"""

import logging
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from spear_lib.bin.common import command_line, run
from spear_lib.config import parse
from spear_lib.evaluation.clip_sets import TEST, TRAIN, VALID, Clip, read_clips, rounds
from spear_lib.evaluation.measured import MeasureOptions, Results, encoder_facts, fingerprint, log_table
from spear_lib.evaluation.superb import PROBLEMS, Problem, SuperbConfig, run_problem, write_tables
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.world import choose_device

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SuperbOptions(MeasureOptions):
    """Encoders and one task."""

    task: str
    """sid, ks, er, ic, pr or asr."""
    train: list[str]
    """Training data: manifests of cuts, or tables (.tsv, .csv) with a column path."""
    valid: list[str] = field(default_factory=list)
    """Validation data; by default a tenth of the training clips."""
    test: list[str]
    """Test data."""
    label: str = "label"
    """Column of the label; of cuts speaker, events, text, or a custom field."""
    learning_rates: list[float] = field(default_factory=lambda: [0.0])
    """Of the head; of several the best on validation is tested (0: s3prl's)."""
    superb: SuperbConfig = field(default_factory=SuperbConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in PROBLEMS:
            raise ValueError(f"task is {self.task!r}: use {', '.join(PROBLEMS)}")
        if not self.learning_rates:
            raise ValueError("learning_rates is empty: give one or more, 0 is s3prl's own")

    def read(self) -> list[Clip]:
        """All clips with their parts."""
        parts = {TRAIN: self.train, VALID: self.valid, TEST: self.test}
        return [
            clip for part, paths in parts.items() if paths for clip in read_clips(paths, self.label, "", part)
        ]


def sweep(
    problem: Problem, options: SuperbOptions, parts: tuple[list[Clip], ...], name: str, path: str
) -> dict[str, Any]:
    """Every learning rate, and the best of them."""
    folder = (
        Path(options.output_dir) / "s3prl" / options.task / "".join(c if c.isalnum() else "_" for c in name)
    )
    device = str(choose_device(options.device))
    runs = []
    for rate in options.learning_rates:
        of_rate = folder / f"lr_{rate:g}"
        shutil.rmtree(of_rate, ignore_errors=True)  # of another encoder, or killed half way
        write_tables(problem, parts, of_rate, Path(options.output_dir) / "s3prl" / "audio" / options.task)
        found = run_problem(problem, of_rate, path, rate, options.superb, device)
        runs.append({"learning_rate": rate, **found})
        logger.info("%s, learning rate %g: valid %s, test %s", name, rate, found["valid"], found["test"])
    sign = 1 if problem.better == "higher" else -1
    best = max(runs, key=lambda one: sign * one["valid"][problem.metric])
    return {
        "metric": f"{problem.metric} (%)",
        "better": problem.better,
        "mean": 100.0 * best["test"][problem.metric],
        "learning_rate": best["learning_rate"],
        "runs": runs,
        "counts": {part: len(clips) for part, clips in zip((TRAIN, VALID, TEST), parts)},
    }


def main(argv: list[str] | None = None) -> None:
    options = parse(SuperbOptions, argv, prog="python -m spear_lib.bin.evaluate_superb", description=__doc__)
    problem, clips = PROBLEMS[options.task], options.read()
    ((_, *parts),) = rounds(clips, options.seed)
    results = Results(options.output_dir, "superb", command_line("spear_lib.bin.evaluate_superb", argv))
    first_screen(
        "SUPERB through s3prl",
        {
            "encoders": ", ".join(options.named()),
            "task": f"{options.task} ({problem.name}): {'/'.join(str(len(part)) for part in parts)} clips",
            "learning rates": ", ".join(
                f"{rate:g}" if rate else "s3prl's" for rate in options.learning_rates
            ),
            "result": results.path,
        },
    )
    data = fingerprint([[clip.name, list(clip.labels), clip.part] for clip in clips])
    table = {}
    paths = options.named()
    # s3prl loads the encoder itself, and random weights with the first seed.
    for name, encoder in replace(options, seed=0).load("all"):
        facts = encoder_facts(encoder) | {
            "data": data,
            "superb": asdict(options.superb),
            "learning_rates": options.learning_rates,
        }
        result = results.measure(
            name,
            options.task,
            facts,
            lambda name=name: sweep(problem, options, tuple(parts), name, paths[name]),
        )
        table[name] = {f"{options.task}, {result['metric']}": f"{result['mean']:.2f}"}
    log_table(table)


if __name__ == "__main__":
    run(main)
