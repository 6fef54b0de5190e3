"""How time and memory grow: of a step with length and batch, of stage 5 and the sampler with the cuts.

    PYTHONPATH=. python tools/benchmarks/growth.py                       # mini, some minutes
    PYTHONPATH=. python tools/benchmarks/growth.py --parts '[step]' --size base --measure false

Each row is a quantity over growing sizes, with the exponent p of the line that fits best (quantity ~ size^p,
least squares of the logarithms); ``last`` is the exponent between the last two sizes alone, which tells where
a quantity is going: what is constant hides in the small sizes.

step: kernels, arithmetic, traffic and peak memory are counted for a GPU; seconds
are processor time of real steps on the CPU. cuts: processor time of stage 5 with a teacher that computes
nothing, and of a sampler: its making, its first batch, a hundred batches; memory is what the process has more
afterwards.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import step as training_step
import tokens
from recording import Record, quiet

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.data import decoding
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.problems import Problems
from spear_lib.data.sampling import BatchSampler
from spear_lib.features.masking import MaskingConfig
from spear_lib.pretraining import ObjectiveConfig
from spear_lib.pretraining.plan import assumed_fields, count_pretraining_step
from spear_lib.quantization import Quantizer
from spear_lib.runtime.log import first_screen
from spear_lib.tokens.making import FieldInMaking, make_shard
from spear_lib.tokens.plan import ShardPlan
from spear_lib.tokens.store import TokenStoreWriter
from spear_lib.training.options import TrainingConfig
from spear_lib.training.planning.step import LATE_BATCH_COUNT, Shape

PARTS = ("step", "stage_5", "sampler")


@dataclass(frozen=True)
class Options:
    """What grows."""

    parts: tuple[str, ...] = PARTS
    """step, stage_5, sampler."""
    size: str = "mini"
    """Encoder of the step: tiny, mini, base, large or xlarge."""
    lengths: tuple[float, ...] = (5.0, 10.0, 20.0, 30.0, 60.0)
    """Seconds of the utterances of a step."""
    utterances: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Batches of a step, of utterances of 10 s."""
    cuts: tuple[int, ...] = (1000, 10_000, 100_000, 1_000_000)
    """Cuts of the sampler."""
    stage_5_cuts: tuple[int, ...] = (1000, 10_000, 100_000)
    """Cuts of stage 5."""
    measure: bool = True
    """Run real steps as well."""
    record: str = ""
    """Name of a record for RESULTS.md (docs/results/<name>.json)."""

    def __post_init__(self) -> None:
        for name in self.parts:
            if name not in PARTS:
                raise ValueError(f"parts has {name!r}; use {', '.join(PARTS)}")
        for name in ("lengths", "utterances", "cuts", "stage_5_cuts"):
            values = getattr(self, name)
            if len(values) < 2 or sorted(set(values)) != list(values) or values[0] <= 0:
                raise ValueError(f"{name} is {list(values)}; give two or more growing positive sizes")


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """p of values ~ sizes^p; NaN where a value is not positive."""
    if min(values) <= 0:
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


class Growth:
    """One quantity over sizes."""

    def __init__(self, what: str, quantity: str, sizes: Sequence[float], values: Sequence[float]) -> None:
        self.what, self.quantity, self.sizes, self.values = what, quantity, list(sizes), list(values)

    def row(self) -> list[str]:
        """Cells: what, quantity, values, exponent, exponent of the last two."""
        fits = [exponent(self.sizes, self.values), exponent(self.sizes[-2:], self.values[-2:])]
        sizes = ", ".join(f"{size:,g}" for size in self.sizes)
        values = ", ".join(f"{value:.3g}" for value in self.values)
        return [self.what, self.quantity, sizes, values, *(f"{fit:.2f}" for fit in fits)]


COLUMNS = ["what grows", "quantity", "sizes", "values", "exponent", "last"]


def of_steps(options: Options) -> Iterator[Growth]:
    """A training step over lengths and over batches."""
    by_length = [Shape(14, seconds) for seconds in options.lengths]
    by_batch = [Shape(count, 10.0) for count in options.utterances]
    for what, sizes, shapes in (
        ("length of 14 utterances, s", options.lengths, by_length),
        ("utterances of 10 s", options.utterances, by_batch),
    ):
        counts = [_count(options.size, shape) for shape in shapes]
        yield Growth(what, "kernels", sizes, [each[0] for each in counts])
        yield Growth(what, "GFLOP", sizes, [each[1] / 1e9 for each in counts])
        yield Growth(what, "traffic, GB", sizes, [each[2] / 1e9 for each in counts])
        yield Growth(what, "peak memory, GB", sizes, [each[3] / 1e9 for each in counts])
        if options.measure:
            # Of long utterances one, which a CPU can do.
            real = shapes if shapes is by_batch else [shape._replace(utterances=1) for shape in shapes]
            name = what if shapes is by_batch else "length of one utterance, s"
            yield Growth(name, "CPU seconds", sizes, [_seconds(options.size, shape) for shape in real])


def _count(size: str, shape: Shape) -> tuple[int, float, int, int]:
    """Kernels, operations, bytes moved, bytes at the peak."""
    memory, *_ = count_pretraining_step(
        training_step.Options(size=size).encoder,
        assumed_fields(ObjectiveConfig()),
        ObjectiveConfig(),
        MaskingConfig(),
        TrainingConfig(),
        shape,
        "bf16",
        processes=1,
        batch_count=LATE_BATCH_COUNT,
    )
    return memory.kernels, memory.flops, sum(work.bytes for work in memory.work), memory.peak


def _seconds(size: str, shape: Shape) -> float:
    """Processor time of a step on a CPU: the best of two, after one that warms up."""
    step = training_step.Step(
        training_step.Options(
            size=size,
            utterances=shape.utterances,
            seconds=shape.seconds,
            precision="fp32",
            device="cpu",
        )
    )
    return min([_time(step) for _ in range(3)][1:])


def _time(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def of_stage_5(options: Options) -> Iterator[Growth]:
    """Stage 5 without a teacher's arithmetic."""
    seconds, memory = [], []
    samples = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    for count in options.stage_5_cuts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save_cuts(
                tokens.silent_cuts(count, lambda number: 0.5 + (number % 50) / 50), folder / "cuts.jsonl.gz"
            )
            manifest = Manifest(folder / "cuts.jsonl.gz")
            before = tokens.memory_mb()

            def make(folder: Path = folder, manifest: Manifest = manifest) -> None:
                plan = ShardPlan.over(manifest.durations, 3600.0)
                writer = TokenStoreWriter(folder / "store", tokens.facts_of(manifest, 50.0, 2), plan)
                fields = [FieldInMaking(tokens.InstantTeacher(), Quantizer(4, 2, 16).eval(), writer)]
                for shard in range(len(plan)):
                    make_shard(fields, shard, manifest, Problems(0.0), 600.0, 2, "stage 5")

            # The recordings exist on paper only.
            read = lambda cut, *_: samples[: round(cut.duration * 16000)]  # noqa: E731
            with mock.patch.object(decoding, "load_audio", read), _no_check():
                seconds.append(_time(make))
            memory.append(max(tokens.memory_mb() - before, 0.1))
    yield Growth("cuts of stage 5", "CPU seconds", options.stage_5_cuts, seconds)
    yield Growth("cuts of stage 5", "more memory, MB", options.stage_5_cuts, memory)


def _no_check() -> mock._patch:
    return mock.patch.object(decoding, "check_whole", lambda cut: None)


def of_sampler(options: Options) -> Iterator[Growth]:
    """A sampler from its making to its hundredth batch."""
    made, first, hundred, memory = [], [], [], []
    for count in options.cuts:
        durations = np.random.default_rng(0).uniform(1.0, 30.0, count)
        before, samplers = tokens.memory_mb(), []
        made.append(_time(lambda d=durations, s=samplers: s.append(BatchSampler(d, 600.0))))
        (sampler,) = samplers
        first.append(_time(lambda s=sampler: s.global_batch(1, 0)))
        total = sampler.num_batches(1)
        hundred.append(_time(lambda s=sampler, n=total: [s.global_batch(1, i % n) for i in range(100)]))
        memory.append(max(tokens.memory_mb() - before, 0.1))
    sizes = options.cuts
    yield Growth("cuts of the sampler", "making it, CPU seconds", sizes, made)
    yield Growth("cuts of the sampler", "first batch of an epoch, CPU seconds", sizes, first)
    yield Growth("cuts of the sampler", "a hundred more, CPU seconds", sizes, hundred)
    yield Growth("cuts of the sampler", "more memory, MB", sizes, memory)


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, prog="python tools/benchmarks/growth.py", description=__doc__)
    first_screen("Growth", {"parts": ", ".join(options.parts), "encoder": options.size})
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    parts = {"step": of_steps, "stage_5": of_stage_5, "sampler": of_sampler}
    rows = []
    with quiet():
        for name in options.parts:
            for growth in parts[name](options):
                rows.append(growth.row())
                print("| " + " | ".join(rows[-1]) + " |", flush=True)
    if options.record:
        Record(options.record, COLUMNS, rows, f"made-up cuts; encoder {options.size}").save()


if __name__ == "__main__":
    run(main)
