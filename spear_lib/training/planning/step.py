"""The cost of one step of any task, and the seconds that it takes on a GPU (ours)."""

import dataclasses
import math
from typing import Any, NamedTuple

from spear_lib.data.batch import Batch
from spear_lib.encoders.kinds import EncoderConfig
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.kernels.choice import running
from spear_lib.training.kernels import fused_kernels
from spear_lib.training.optimisers import new_optimizer
from spear_lib.training.options import TrainingConfig
from spear_lib.training.planning.machines import PRECISIONS, Gpu, PlanConfig
from spear_lib.training.planning.memory import StepMemory, count_step
from spear_lib.training.task import StepClock, Task

LATE_BATCH_COUNT = 20000.0
"""Where the schedules of a Zipformer have come to their ends (all but two skip rates, below 0.01)."""
_STEP = 2
"""A step like all others: the first one may put codes onto its data."""


def count_task(
    task: Task,
    batch: Any,
    training: TrainingConfig,
    precision: str,
    processes: int,
    for_accelerator: bool = True,
    batch_count: float = 0.0,
) -> StepMemory:
    """What one process needs for a training step of ``task`` on ``batch``.

    Args:
      task: its model has an ``encoder`` and was made by ``Pretence.module``.
      batch: as for ``count_step``.
      precision: fp32, bf16 or fp16.
      processes: with several, DDP keeps the gradients in buckets.
      for_accelerator: the code that runs on a GPU; False for that of a CPU.
      batch_count: clock of the encoder's schedules. The first step (0) needs the most memory, as all that
        keeps the training stable is at work; a later one (``LATE_BATCH_COUNT``) tells the time of a run.
    """
    task.model.train()
    # That they agree and compile is found out where they run.
    eager = training.kernels == "eager"
    kernels = [] if eager else fused_kernels(training, task.model.encoder.config, task.kernels)
    with running(kernel.name for kernel in kernels if for_accelerator):
        return count_step(
            task,
            batch,
            StepClock(step=_STEP, batch_count=batch_count, hours=0.0, step_key=1),
            new_optimizer(task.model, training),
            PRECISIONS[precision],
            gradients_stay=processes > 1 or training.accumulate_batches > 1,
            for_accelerator=for_accelerator,
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

    @property
    def audio(self) -> float:
        """Padded audio of the batch, s."""
        return self.utterances * self.seconds

    @classmethod
    def of(cls, batch: Batch) -> "Shape":
        """That of a batch."""
        return cls(len(batch), batch.waveforms.shape[1] / SAMPLE_RATE)


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


def with_checkpoints(encoder: EncoderConfig, wanted: bool) -> EncoderConfig | None:
    """The same encoder with or without activation checkpointing; None where it has none."""
    if not hasattr(encoder, "checkpoint_activations"):
        return None
    return dataclasses.replace(encoder, checkpoint_activations=(wanted,))
