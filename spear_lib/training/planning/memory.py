"""Memory of a training step, counted without having it: the real code runs on tensors without data (ours).

torch's fake tensors have shapes, number formats and storages, and every operation on them is the real one
less its arithmetic. So the step that is counted is the step that will run: activations, what autograd keeps
of them, temporaries, the loss heads' chunks, gradients and the optimiser's working copies all come from the
modules themselves. Not seen: scratch memory inside a kernel, the allocator's rounding, CUDA's own context.

Whole tensors of host numbers (lengths, keys, tokens) stay real: code may look at them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from spear_lib.kernels import fused
from spear_lib.kernels.weights import NAME as WEIGHTS
from spear_lib.kernels.weights import zero_gradients
from spear_lib.runtime.devices import plan_for_accelerator
from spear_lib.training.planning.kernels import Work, kernel_work, tensors
from spear_lib.training.task import StepClock, Task

_UNKNOWN = 1.0e30
"""What a number read from a tensor without data is: above every limit of whitening, which then keeps what it
may have to keep."""


_INDEXING = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}


def _positions(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Real masks as the positions of their True values: how many there are decides the size of the result."""
    positions: list[Tensor | None] = []
    for index in indices:
        mask = index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        positions += index.nonzero(as_tuple=True) if mask else [index]
    return positions


_CTC = {torch.ops.aten._ctc_loss.default, torch.ops.aten._ctc_loss.Tensor}


def _ctc(log_probs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (B,) and log alpha (B, T, 2 S + 1) of (T, B, V) and (B, S): torch has no shapes for it."""
    frames, batch, _ = log_probs.shape
    return log_probs.new_empty(batch), log_probs.new_empty(batch, frames, 2 * targets.shape[1] + 1)


class MemoryCounter(TorchDispatchMode):
    """Counts the bytes of the storages that live while it is active, and the arithmetic.

    Attributes:
      live: bytes now.
      peak: most bytes since the start or the last ``restart``.
      work: what every operator that starts a kernel so far computes and moves. (torch's FlopCounterMode holds
        on to what activation checkpointing computes again, and so spoils the count of bytes.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.work: list[Work] = []
        self._storages: dict[int, Any] = {}

    def restart(self) -> None:
        """Forget the peak."""
        self.peak = self.live

    def add(self, tensor: Tensor) -> None:
        """Count the storage of ``tensor``, once, until nothing refers to it any more."""
        storage = tensor.untyped_storage()
        number = storage._cdata
        if number in self._storages:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            self.live -= size
            self._storages.pop(number, None)

        self._storages[number] = ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return _UNKNOWN if args[0].is_floating_point() else 1
        if function in _INDEXING:
            args = (args[0], _positions(args[1]), *args[2:])
        kwargs = kwargs or {}
        pretended = function in _CTC and isinstance(args[0], FakeTensor)
        result = _ctc(*args[:2]) if pretended else function(*args, **kwargs)
        work = kernel_work(function, args, kwargs, result)
        if work is not None:
            self.work.append(work)
        for leaf in tensors(result):
            self.add(leaf)
        return result


class Pretence:
    """Makes tensors and modules without memory, of one family: they may meet each other and real tensors."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor without data."""
        with self.mode:
            return torch.empty(*shape, dtype=dtype)

    def module(self, build: Callable[[], nn.Module]) -> nn.Module:
        """``build()`` on the meta device; its parameters and buffers then are tensors without data."""
        with torch.device("meta"):
            module = build()
        with self.mode:
            return module.to_empty(device="cpu")

    def task(self, build: Callable[[], Task]) -> Task:
        """``build()`` on the meta device, its model as by ``module``."""
        with torch.device("meta"):
            task = build()
        self.module(lambda: task.model)
        return task


@dataclass(frozen=True)
class StepMemory:
    """What one process needs for a training step, in bytes, and the step's arithmetic."""

    weights: int
    optimizer: int
    """State of ScaledAdam, and the working copies that it keeps (on a CPU it keeps them between steps)."""
    gradients: int
    """As many as there are when the optimiser starts."""
    kept: int
    """What the forward pass leaves for the backward pass."""
    forward: int
    """Highest point of everything together during the forward pass, and so on."""
    backward: int
    update: int
    work: list[Work]
    """Every operator of the step that starts a kernel: forward, backward and update."""

    @property
    def kernels(self) -> int:
        """Kernels of the step."""
        return sum(each.kernels for each in self.work)

    @property
    def flops(self) -> float:
        """Floating-point operations of matrix products and convolutions."""
        return sum(each.flops for each in self.work)

    @property
    def peak(self) -> int:
        """The highest point of the step."""
        return max(self.forward, self.backward, self.update)


def count_step(
    task: Task,
    batch: Any,
    clock: StepClock,
    optimizer: torch.optim.Optimizer,
    autocast_dtype: torch.dtype | None = None,
    gradients_stay: bool = False,
    for_accelerator: bool = True,
) -> StepMemory:
    """Runs one step of ``Trainer`` without data.

    Args:
      task: its model was made by ``Pretence.module``.
      batch: waveforms by ``Pretence.empty``; lengths, tokens and masks are real tensors.
      optimizer: of the model's parameters.
      autocast_dtype: number format of the matrix products; None for float32.
      gradients_stay: they exist during the forward pass too: DDP holds them in its buckets, and accumulated
        batches wait for the last one.
      for_accelerator: the code that runs on a GPU; False for that of a CPU.
    """
    parameters = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    with plan_for_accelerator(for_accelerator), MemoryCounter() as counter:
        for tensor in (*task.model.parameters(), *task.model.buffers()):
            counter.add(tensor)
        weights = counter.live
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes its state
        if not gradients_stay:
            optimizer.zero_grad(set_to_none=True)
        optimizer_bytes = counter.live - weights - _gradient_bytes(parameters)
        before, peaks = counter.live, []
        task.begin_step(batch, clock)  # on the host
        counter.work = []
        if gradients_stay and fused(WEIGHTS, parameters[0]):
            zero_gradients(parameters)
        counter.restart()
        with torch.autocast("cpu", dtype=autocast_dtype, enabled=autocast_dtype is not None):
            loss = task.compute(batch).loss_sum
        kept = counter.live - before
        peaks.append(counter.peak)
        counter.restart()
        loss.backward()
        del loss
        peaks.append(counter.peak)
        task.after_backward()
        counter.restart()
        optimizer.step()
        task.after_step(clock.step, lambda each: each)
        peaks.append(counter.peak)
        gradients = _gradient_bytes(parameters)
    return StepMemory(weights, optimizer_bytes, gradients, kept, *peaks, counter.work)


def _gradient_bytes(parameters: list[nn.Parameter]) -> int:
    return sum(p.grad.numel() * p.grad.element_size() for p in parameters if p.grad is not None)
