"""Kernels and memory traffic of a pre-training step, counted without a GPU: eager, fused, the reference's.

    PYTHONPATH=. python tools/benchmarks/traffic.py                    # Base, Large, XLarge; some minutes
    PYTHONPATH=. python tools/benchmarks/traffic.py --sizes '[base]' --largest 15

Every path runs once on tensors without data (spear_lib.training.planning.memory): forward, backward, update.
``eager`` is what this repository runs on a GPU without fused kernels, ``fused`` with all that it has,
``reference`` the reference's sequence of operations as the specification tells it (reference_encoder.py;
features are computed by its loader, Swoosh is k2's). The rate is a roofline: an operator takes the longest
of its arithmetic, its traffic and the start of its kernels; ``--efficiency 1 --kernel_microseconds 0`` is
what no GPU exceeds. Beside it stands what the paper's runs reached (Table 9).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from recording import Record
from reference_encoder import ReferenceEncoder, ReferenceScaledAdam, reference_loss

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.features.fbank import fbank_length
from spear_lib.features.masking import MaskingConfig
from spear_lib.optim import parameter_groups
from spear_lib.pretraining import ObjectiveConfig, PretrainingModel, TokenField
from spear_lib.pretraining.paper_runs import PAPER_GPU, PaperRun, paper_runs
from spear_lib.pretraining.plan import assumed_fields, count_pretraining_step, pretend_batch
from spear_lib.runtime.log import first_screen
from spear_lib.training.options import TrainingConfig
from spear_lib.training.planning.machines import GPUS, PRECISIONS, PlanConfig
from spear_lib.training.planning.memory import Pretence, StepMemory, count_step
from spear_lib.training.planning.step import LATE_BATCH_COUNT, Shape, step_seconds
from spear_lib.training.task import StepClock, StepResult, Task

NAMES = {"mini": "mini", "base": "Base", "large": "Large", "xlarge": "XLarge"}


@dataclass(frozen=True)
class Options:
    """What is counted."""

    sizes: tuple[str, ...] = ("base", "large", "xlarge")
    """Encoders: mini, base, large, xlarge."""
    paths: tuple[str, ...] = ("eager", "fused", "reference")
    """Which code."""
    utterances: int = 14
    """Utterances of one process."""
    seconds: float = 30.0
    """Length of each, s."""
    batch_count: float = LATE_BATCH_COUNT
    """Clock of the schedules."""
    precision: str = "bf16"
    """Number format of the matrix products: fp32, bf16 or fp16."""
    processes: int = 8
    """With several, gradients stay in DDP's buckets."""
    efficiency: float = PlanConfig.efficiency
    """Share of the data sheets' speeds that a kernel reaches (an assumption)."""
    kernel_microseconds: float = PlanConfig.kernel_microseconds
    """The least that a kernel costs (an assumption)."""
    largest: int = 0
    """Print so many operators, those that move most."""
    record: str = ""
    """Name of a record for RESULTS.md (docs/results/<name>.json)."""

    def __post_init__(self) -> None:
        for name in self.sizes:
            if name not in NAMES:
                raise ValueError(f"sizes has {name!r}; use {', '.join(NAMES)}")
        for name in self.paths:
            if name not in ("eager", "fused", "reference"):
                raise ValueError(f"paths has {name!r}; use eager, fused, reference")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; use {', '.join(PRECISIONS)}")

    def encoder(self, size: str) -> ZipformerConfig:
        """One size, keeping all activations, as the paper's runs."""
        return getattr(ZipformerConfig, size)(checkpoint_activations=(False,))


def objective_of(size: str) -> ObjectiveConfig:
    """XLarge was trained on both teachers only (Table 9)."""
    return ObjectiveConfig(strategy="asymmetrical" if size == "xlarge" else "single")


def count_ours(options: Options, size: str, kernels: str) -> StepMemory:
    """The step of this repository, with kernels ``eager`` or ``fused``: a fused one is an operator of
    ``torch.library``, which the count takes as one kernel with its arguments and results."""
    objective = objective_of(size)
    memory, *_ = count_pretraining_step(
        options.encoder(size),
        assumed_fields(objective),
        objective,
        MaskingConfig(),
        TrainingConfig(kernels=kernels),
        Shape(options.utterances, options.seconds),
        options.precision,
        options.processes,
        batch_count=options.batch_count,
    )
    return memory


class ReferenceTask(Task[Any]):
    """Masked prediction with the reference's sequence of operations, on features made elsewhere."""

    def __init__(self, encoder: SpearEncoder, fields: list[TokenField], fbank: torch.Tensor) -> None:
        self.model = PretrainingModel(encoder, fields)
        self.sequence = ReferenceEncoder(encoder)
        self.fields, self.fbank = fields, fbank

    def begin_step(self, batch: Any, clock: StepClock) -> None:
        self.sequence.batch_count = clock.batch_count

    def after_backward(self) -> None:
        """Nothing: parameters are limited in the backward pass."""

    def compute(self, batch: Any) -> StepResult:
        encoder = self.model.encoder
        fbank = torch.where(batch.time_mask.unsqueeze(2), encoder.mask_emb, self.fbank)
        fbank = fbank.masked_fill(batch.channel_mask.unsqueeze(1), 0.0)
        out = self.sequence(fbank, fbank_length(batch.num_samples)).float()
        total = out.new_zeros(())
        for field in self.fields:
            head, group = self.model.heads[field.name], round(encoder.frame_rate / field.frame_rate) or 1
            # At half the rate every other frame predicts.
            total = total + reference_loss(
                out[:, ::group],
                head.weight,
                head.bias,
                batch.tokens[field.name][:, : -(-out.shape[1] // group)],
            )
        return StepResult(total, batch.num_samples.sum(), {})


def count_reference(options: Options, size: str) -> StepMemory:
    """The step of the reference."""
    pretence, objective = Pretence(), objective_of(size)
    fields = assumed_fields(objective)
    shape = Shape(options.utterances, options.seconds)
    batch = pretend_batch(pretence, shape, fields, MaskingConfig(), objective.strategy)
    fbank = pretence.empty(*batch.time_mask.shape, 128)
    model = pretence.module(lambda: PretrainingModel(SpearEncoder(options.encoder(size)), fields))
    model.train()
    task = ReferenceTask(model.encoder, fields, fbank)
    task.model = model
    task.sequence.train()
    rate = TrainingConfig().learning_rate
    return count_step(
        task,
        batch,
        StepClock(1, options.batch_count, 0.0, 1),
        ReferenceScaledAdam(parameter_groups(model, rate), lr=rate),
        PRECISIONS[options.precision],
        gradients_stay=options.processes > 1,
    )


def counted(options: Options, size: str) -> Iterator[tuple[str, StepMemory]]:
    """Path and count, each as soon as it is there."""
    for path in options.paths:
        if path == "reference":
            yield path, count_reference(options, size)
        else:
            yield path, count_ours(options, size, path)


def published(size: str, encoder: ZipformerConfig) -> PaperRun | None:
    """The run of Table 9 that the count stands beside: on speech, of XLarge on speech and audio."""
    plain = replace(encoder, checkpoint_activations=(False,))
    runs = paper_runs(plain, len(assumed_fields(objective_of(size))))
    return runs[0] if runs else None


def row(options: Options, size: str, path: str, memory: StepMemory) -> list[str]:
    """Cells of the table."""
    audio = options.utterances * options.seconds
    plan = PlanConfig(efficiency=options.efficiency, kernel_microseconds=options.kernel_microseconds)
    rates = [audio / step_seconds(memory, plan, gpu) for gpu in GPUS.values()]
    paper = published(size, options.encoder(size))
    moved = sum(work.bytes for work in memory.work) / audio / 1e6
    return [
        NAMES[size],
        path,
        f"{memory.kernels:,}",
        f"{moved:.0f}",
        f"{memory.flops / audio / 1e9:.1f}",
        *(f"{rate:,.0f}" for rate in rates),
        f"{paper.audio_rate:,.0f}" if paper else "",
        f"{rates[0] / paper.audio_rate:.2f}" if paper else "",
    ]


COLUMNS = [
    *("encoder", "path", "kernels", "MB per s of audio", "GFLOP per s of audio"),
    *(f"{gpu.name}, audio s/s" for gpu in GPUS.values()),
    f"paper, {PAPER_GPU.name}",
    "roofline / paper",
]


def largest(memory: StepMemory, number: int, audio: float) -> Iterator[str]:
    """The operators that move most: name, kernels, MB per second of audio."""
    kernels: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for work in memory.work:
        kernels[work.name] += work.kernels
        moved[work.name] += work.bytes
    for name, size in moved.most_common(number):
        yield f"    {name:40s} {kernels[name]:6,} kernels {size / audio / 1e6:8.2f} MB"


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, prog="python tools/benchmarks/traffic.py", description=__doc__)
    facts = {
        "batch": f"{options.utterances} utterances of {options.seconds:g} s, {options.precision}, after "
        f"{options.batch_count:g} batches",
        "assumed": f"{options.efficiency:.0%} of the data sheets' speeds, {options.kernel_microseconds:g} us "
        "to start a kernel",
    }
    first_screen("Traffic of a step, counted", facts)
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    rows = []
    for size in options.sizes:
        for path, memory in counted(options, size):
            rows.append(row(options, size, path, memory))
            print("| " + " | ".join(rows[-1]) + " |", flush=True)
            for line in largest(memory, options.largest, options.utterances * options.seconds):
                print(line, flush=True)
    if options.record:
        Record(options.record, COLUMNS, rows, f"no audio: {facts['batch']}; {facts['assumed']}").save()


if __name__ == "__main__":
    run(main)
