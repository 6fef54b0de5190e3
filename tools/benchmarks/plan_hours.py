"""GPU-hours of the paper's pre-training runs (Table 9) beside what a dry run estimates for them.

    PYTHONPATH=. python tools/benchmarks/plan_hours.py        # all seven; about a minute

Every run is planned as the paper made it: its batch, steps and GPUs, bf16, without activation checkpointing,
batches of its longest cuts (speech 30 s, AudioSet 10 s), tokens of 16 codebooks at 50 Hz (speech) and 8 at
25 Hz (audio). No GPU is needed, and nothing is trained.

--record NAME leaves what is printed in docs/results for RESULTS.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from recording import recorded

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.encoders.zipformer import ZipformerConfig
from spear_lib.features.masking import MaskingConfig
from spear_lib.pretraining import ObjectiveConfig
from spear_lib.pretraining.paper_runs import PAPER_RUNS, PaperRun
from spear_lib.pretraining.plan import PretrainingPlanConfig, assumed_fields, count_pretraining_step
from spear_lib.runtime.log import first_screen
from spear_lib.training.options import TrainingConfig
from spear_lib.training.planning.machines import GPUS
from spear_lib.training.planning.step import LATE_BATCH_COUNT, step_seconds, worst_shape

_NAMES = {"base": "Base", "large": "Large", "xlarge": "XLarge"}
_TOKENS = {"codebooks": [16, 8], "token_rates": [50.0, 25.0]}


@dataclass(frozen=True)
class Options:
    """What is planned."""

    sizes: tuple[str, ...] = ("base", "large", "xlarge")
    """Sizes of the runs."""


def plan_of(run: PaperRun) -> PretrainingPlanConfig:
    """The teachers' tokens of one run."""
    chosen = {"speech": slice(0, 1), "audio": slice(1, 2), "speech and audio": slice(0, 2)}[run.domain]
    return PretrainingPlanConfig(gpus=run.gpus, **{name: values[chosen] for name, values in _TOKENS.items()})


def table(runs: Iterable[PaperRun]) -> Iterable[str]:
    """Lines of markdown, each as soon as it is there."""
    yield "| run | GPUs | paper, GPU-hours, A800 | estimate, A800 | H100 | kernels | MB per audio s |"
    yield "|---|---|---|---|---|---|---|"
    for each in runs:
        plan = plan_of(each)
        objective = ObjectiveConfig(strategy="asymmetrical" if len(plan.codebooks) == 2 else "single")
        shape = worst_shape(each.batch_seconds, 10.0 if each.domain == "audio" else 30.0, each.gpus)
        memory, *_ = count_pretraining_step(
            getattr(ZipformerConfig, each.size)(),
            assumed_fields(objective, plan),
            objective,
            MaskingConfig(),
            TrainingConfig(),
            shape,
            plan.precision,
            each.gpus,
            batch_count=LATE_BATCH_COUNT,
        )
        audio = shape.utterances * shape.seconds
        hours = {
            name: each.audio_hours / (audio / step_seconds(memory, plan, gpu)) for name, gpu in GPUS.items()
        }
        moved = sum(work.bytes for work in memory.work) / audio / 1e6
        yield (
            f"| {_NAMES[each.size]}, {each.domain} | {each.gpus} | {each.gpu_hours:,} "
            f"| {hours['a800']:,.0f} ({hours['a800'] / each.gpu_hours:.2f}) | {hours['h100']:,.0f} "
            f"| {memory.kernels:,} | {moved:.0f} |"
        )


@recorded("no audio")
def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, prog="python tools/benchmarks/plan_hours.py", description=__doc__)
    first_screen("GPU-hours of the paper's runs", {"sizes": ", ".join(options.sizes)})
    for line in table(each for each in PAPER_RUNS if each.size in options.sizes):
        print(line, flush=True)


if __name__ == "__main__":
    run(main)
