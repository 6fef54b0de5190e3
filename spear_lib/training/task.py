"""What a training run is about, seen from the one loop (DESIGN §4 "Task"; ours).

A task owns the model and says what is summed up over a batch. It never calls ``backward``, never looks at
ranks and never draws a random number that is not keyed; that is what makes one loop enough for pre-training,
fine-tuning and probes.

    class MyTask(Task[MyBatch]):
        description = TaskDescription(kind="my_task", ...)  # becomes task.json, which the report reads

        def __init__(self, model):
            self.model = model  # the nn.Module that is trained and saved

        def begin_step(self, batch, clock):  # before every training forward
            self.model.encoder.begin_step(
                clock.batch_count, clock.step_key, batch.keys, clock.gradient_scale
            )

        def after_backward(self):  # once per step, with the gradients of the global batch
            self.model.encoder.limit_gradients()

        def after_step(self, step, total):  # once per step, when the weights have moved
            ...

        def compute(self, batch):  # training and validation: look at self.model.training
            ...
            return StepResult(loss_sum, num_frames, {"loss": (loss_sum.detach(), num_frames)})
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from spear_lib.kernels import Kernel
from spear_lib.runtime.task_file import TaskDescription
from spear_lib.training.interfaces import TrainingBatch

Batch = TypeVar("Batch", bound=TrainingBatch)

Stats = dict[str, tuple[Tensor | float, Tensor | float]]
"""Name -> (sum, count). The loop adds both up over batches and ranks and reports sum / count."""


@dataclass(frozen=True)
class StepClock:
    """Where training is when a batch is computed; the same on every rank."""

    step: int
    """Optimiser step, 1 for the first."""
    batch_count: float
    """Clock of the schedules of the model in batches of the reference duration (spec zipformer §12.1)."""
    hours: float
    """Nominal hours of audio seen before this step, over all ranks."""
    step_key: int
    """Key of the draws that belong to the step and not to an utterance; differs between the batches of a step
    (``training.accumulate_batches``), not between the shares of a batch."""
    micro_batch: int = 0
    """Which of the forward passes of this step on this rank."""
    gradient_scale: float = 1.0
    """What the loop multiplies the loss by before backward: the number of ranks, as their gradients are
    averaged. Gradients that do not come from the loss must be multiplied by it too."""


@dataclass
class StepResult:
    """What one batch of one rank adds to the step."""

    loss_sum: Tensor
    """Scalar, differentiable: the SUM over frames and utterances of this rank's share. The gradient of a step
    is that of the sum over the global batch, as in the reference."""
    num_frames: Tensor | float
    """Frames (or tokens) that the sum is over; what makes the reported loss comparable, and what AdamW takes
    the mean over."""
    stats: Stats = field(default_factory=dict)
    """Everything to report, including ``"loss"``. Detached; tensors may have any shape if ``summarise`` knows
    them."""


class Task(ABC, Generic[Batch]):
    """A model with its objective, on batches of one kind."""

    model: nn.Module
    """What is trained and saved."""
    description: TaskDescription
    """What the report must know; its ``kind`` is written into checkpoints, and only a run of the same kind
    goes on from them."""

    kernels: tuple[Kernel, ...] = ()
    """Fused kernels that it could use beside those of its encoder."""

    own_state: tuple[str, ...] = ()
    """Module paths of ``model`` that only the task itself moves (a teacher that follows, codebooks). They are
    in checkpoints, but neither averaged nor sent between ranks, on which they are equal anyway."""

    @property
    def kind(self) -> str:
        return self.description.kind

    def begin_step(self, batch: Batch, clock: StepClock) -> None:
        """Called before every training forward (never in validation): set schedules and keyed randomness."""

    def after_backward(self) -> None:
        """Called once per step when the gradients are those of the global batch, before they are used."""

    def after_step(self, step: int, total: Callable[[Tensor], Tensor]) -> None:
        """Called once per step when the optimiser has moved the weights, and not where it skipped the step.

        Args:
          step: as in ``StepClock``.
          total: a tensor on the device -> its sum over ranks; every rank calls it alike.
        """

    @abstractmethod
    def compute(self, batch: Batch) -> StepResult:
        """Forward and loss of one batch that is already on the device. Runs under autocast in training."""

    def summarise(self, totals: Stats) -> dict[str, float]:
        """Numbers to report from the totals over batches and ranks; plain sum / count by default."""
        return {name: float(total) / float(count) for name, (total, count) in totals.items() if count > 0}

    def describe(self, values: dict[str, float]) -> str:
        """The part of a log line that is about this task, from the values of ``summarise``."""
        return ", ".join(f"{name} {value:.4g}" for name, value in values.items())

    def facts(self) -> dict[str, object]:
        """Lines for the first screen of the log: what a reader must know about this run."""
        return {}

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must record beside weights, and what must be equal to resume from it: plain
        values, for example ``{"encoder_config": {...}, "quantizer_ids": {...}}``."""
        return {}
