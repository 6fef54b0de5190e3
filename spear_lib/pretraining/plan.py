"""What a pre-training run will take, before it is started: parameters, memory, steps, hours (ours)."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from spear_lib.data.batch import Batch
from spear_lib.encoders.kinds import EncoderConfig, build_encoder
from spear_lib.features.fbank import SAMPLE_RATE, fbank_length
from spear_lib.features.masking import MaskingConfig, channel_mask, time_mask
from spear_lib.kernels.choice import running
from spear_lib.optim import ScaledAdam, parameter_groups
from spear_lib.pretraining import ObjectiveConfig, PretrainingModel, PretrainingTask, TokenField
from spear_lib.pretraining.heads import HEADS
from spear_lib.pretraining.plan_data import GPUS, Gpu
from spear_lib.pretraining.plan_memory import Pretence, StepMemory, count_step
from spear_lib.training.kernels import fused_kernels
from spear_lib.training.options import TrainingConfig
from spear_lib.training.task import StepClock

LATE_BATCH_COUNT = 20000.0
"""Where the schedules of a Zipformer have come to their ends (all but two skip rates, below 0.01)."""
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class PlanConfig:
    """The machines that a dry run plans for."""

    gpus: int = 16
    """Processes, one per GPU (reference: 16)."""
    gpu: str = "h100"
    """h100 | h200 | a800 (the paper's): gives the three numbers below from its data sheet."""
    gpu_memory_gb: float = 0.0
    """Memory of one GPU in GB of 10^9 bytes (0: that of ``gpu``)."""
    gpu_tflops: float = 0.0
    """Dense bf16 matrix products of one GPU in 10^12 operations per second (0: that of ``gpu``)."""
    gpu_terabytes_per_second: float = 0.0
    """Bandwidth of its memory in 10^12 bytes per second (0: that of ``gpu``)."""
    kernel_microseconds: float = 5.0
    """The least that a kernel costs: its start (an assumption, ours)."""
    efficiency: float = 0.7
    """Share of both of the data sheet's speeds that a kernel reaches (an assumption, ours)."""
    hours: float = 0.0
    """Hours of the training data, where no cuts are given to say it (0: not known)."""
    audio_seconds_per_second: float = 0.0
    """Measured throughput of one GPU (the log of a run prints that of all together); replaces the estimate
    (0: not measured)."""
    codebooks: list[int] = field(default_factory=list)
    """Codebooks of each teacher's tokens, where no training cuts say it; default: 16 (speech teacher), then 8
    (audio teacher) (paper §4)."""
    token_rates: list[float] = field(default_factory=list)
    """Frame rates of these tokens in Hz; default: 50, then 25."""
    precision: str = "bf16"
    """bf16 | fp16 | fp32: what training.precision becomes on those GPUs, where it is auto."""
    device: str = "gpu"
    """gpu | cpu: whose code is counted (they keep different things for the backward pass)."""

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"plan.gpus is {self.gpus}; a run has at least 1 process")
        if self.gpu not in GPUS:
            raise ValueError(
                f"plan.gpu is {self.gpu!r}; use {', '.join(GPUS)}, or give plan.gpu_tflops, "
                "plan.gpu_terabytes_per_second and plan.gpu_memory_gb of yours"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"plan.precision is {self.precision!r}; use {', '.join(PRECISIONS)}")
        if self.device not in ("gpu", "cpu"):
            raise ValueError(f"plan.device is {self.device!r}; use gpu or cpu")
        if not 0.0 < self.efficiency <= 1.0:
            raise ValueError(f"plan.efficiency is {self.efficiency}; use a share in (0, 1]")
        if len(self.codebooks) != len(self.token_rates):
            raise ValueError(
                f"plan.codebooks has {len(self.codebooks)} values and plan.token_rates "
                f"{len(self.token_rates)}: give one of each for every teacher, or neither"
            )

    @property
    def machine(self) -> Gpu:
        """The GPU that is planned for: that of ``gpu``, with what is given otherwise."""
        named = GPUS[self.gpu]
        return Gpu(
            named.name,
            self.gpu_tflops or named.tflops,
            self.gpu_terabytes_per_second or named.terabytes_per_second,
            self.gpu_memory_gb or named.memory_gb,
        )


def step_seconds(memory: StepMemory, plan: PlanConfig, gpu: Gpu | None = None) -> float:
    """Seconds of a step on one GPU: every operator takes the longest of its arithmetic, its memory traffic
    and the start of its kernels, one after the other (roofline).

    Args:
      memory: whose ``work`` is summed up.
      plan: the assumptions.
      gpu: another than that of ``plan``.
    """
    gpu = gpu or plan.machine
    flops = gpu.tflops * 1e12 * plan.efficiency
    bandwidth = gpu.terabytes_per_second * 1e12 * plan.efficiency
    start = plan.kernel_microseconds * 1e-6
    return sum(max(each.flops / flops, each.bytes / bandwidth, start * each.kernels) for each in memory.work)


class Shape(NamedTuple):
    """A batch of one process: so many utterances, all of this length."""

    utterances: int
    seconds: float


def worst_shape(batch_seconds: float, longest: float, processes: int) -> Shape:
    """The largest share that one process gets of a global batch whose cuts are all as long as the longest.

    Attention grows with the square of the length, so no batch of shorter cuts needs more.

    Args:
      batch_seconds: padded audio of a global batch.
      longest: seconds of the longest cut.
      processes: a global batch has at least one cut for each.
    """
    cuts = max(int(batch_seconds / longest + 1e-9), processes)
    return Shape(math.ceil(cuts / processes), longest)


def assumed_fields(objective: ObjectiveConfig, plan: PlanConfig) -> list[TokenField]:
    """The token fields of ``plan`` where no corpus describes them, as many as the strategy needs."""
    count = 1 if objective.strategy == "single" else 2
    codebooks = plan.codebooks or [16, 8][:count]
    rates = plan.token_rates or [50.0, 25.0][:count]
    if len(codebooks) != count:
        raise ValueError(
            f"objective.strategy {objective.strategy} has {count} token fields and plan.codebooks describes "
            f"{len(codebooks)}: give one number for each"
        )
    names = ["speech_tokens", "audio_tokens"]
    return [
        TokenField(name, number, 256, float(rate), 500.0 / rate, "assumed", "assumed")
        for name, number, rate in zip(names, codebooks, rates)
    ]


def pretend_batch(
    pretence: Pretence, shape: Shape, fields: Sequence[TokenField], masking: MaskingConfig, strategy: str
) -> Batch:
    """A batch of ``shape`` whose waveforms have no memory; every frame has a target."""
    number, samples = shape.utterances, round(shape.seconds * SAMPLE_RATE)
    lengths, keys = torch.full((number,), samples), torch.arange(number)
    tokens: dict[str, Tensor] = {}
    for each in fields:
        frames = math.ceil(shape.seconds * each.frame_rate)
        tokens[each.name] = torch.zeros(number, frames, each.num_codebooks, dtype=torch.int64)
    batch = Batch(
        ids=[str(index) for index in range(number)],
        keys=keys,
        waveforms=pretence.empty(number, samples),
        num_samples=lengths,
        tokens=tokens,
        # Where both teachers score audio cuts, these are the costliest.
        audio=torch.full((number,), strategy in ("joint", "asymmetrical")),
    )
    if masking.enabled:
        batch.time_mask = time_mask(
            fbank_length(lengths), keys, masking.time_probability, masking.time_span, masking.time_min_spans
        )
        batch.channel_mask = channel_mask(keys, masking.channel_probability, masking.channel_span)
    return batch


def count_pretraining_step(
    encoder: EncoderConfig,
    fields: Sequence[TokenField],
    objective: ObjectiveConfig,
    masking: MaskingConfig,
    training: TrainingConfig,
    shape: Shape,
    precision: str,
    processes: int,
    for_accelerator: bool = True,
    batch_count: float = 0.0,
) -> tuple[StepMemory, int, int]:
    """The cost of a pre-training step, and the parameters of the encoder and of the heads.

    Args:
      encoder: real sizes; the model has no memory.
      precision: fp32, bf16 or fp16.
      processes: with several, DDP keeps the gradients in buckets.
      batch_count: clock of the encoder's schedules. The first step (0) needs the most memory, as all that
        keeps the training stable is at work; a later one (``LATE_BATCH_COUNT``) tells the time of a run.
    """
    pretence, fields = Pretence(), list(fields)
    model = pretence.module(lambda: PretrainingModel(build_encoder(encoder), fields))
    model.train()
    optimizer = ScaledAdam(
        parameter_groups(model, training.learning_rate),
        lr=training.learning_rate,
        variant=training.optimizer_variant,
        clipping_scale=training.clipping_scale or None,
    )
    # That they agree and compile is found out where they run.
    batch = pretend_batch(pretence, shape, fields, masking, objective.strategy)
    batch.keys = pretence.empty(len(batch.keys), dtype=torch.int64)  # from here on only the device has them
    kernels = fused_kernels(training, model.encoder, [HEADS]) if training.kernels != "eager" else []
    with running(kernel.name for kernel in kernels if for_accelerator):
        memory = count_step(
            PretrainingTask(model, fields, objective),
            batch,
            StepClock(step=1, batch_count=batch_count, hours=0.0, step_key=1),
            optimizer,
            PRECISIONS[precision],
            gradients_stay=processes > 1 or training.accumulate_batches > 1,
            for_accelerator=for_accelerator,
        )
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.heads)]
    return memory, *sizes


def with_checkpoints(encoder: EncoderConfig, wanted: bool) -> EncoderConfig | None:
    """The same encoder with or without activation checkpointing; None where it has none."""
    if not hasattr(encoder, "checkpoint_activations"):
        return None
    return dataclasses.replace(encoder, checkpoint_activations=(wanted,))
