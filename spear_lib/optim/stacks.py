"""Tensors of equal shape, which ScaledAdam works on as one (spec optim §1)."""

import math

import torch
from torch import Tensor

from spear_lib.kernels import fused
from spear_lib.runtime.devices import on_host


class Stack:
    """The tensors of one group that share dtype and shape.

    ``params`` and ``grads`` are (n, ...) during a step: views of a lone tensor, copies of several. On the CPU
    the copies keep their memory between steps: fresh pages cost more than the arithmetic.
    """

    def __init__(self, tensors: list[Tensor]):
        self.tensors = tensors
        self.first = tensors[0]
        self.scalar = self.first.numel() == 1
        self.dims = tuple(range(1, self.first.dim() + 1))
        self.params = self.grads = torch.empty(0)
        self.scratch: dict[str, Tensor] = {}

    def gather(self) -> None:
        gradients = [t.grad if t.grad is not None else torch.zeros_like(t) for t in self.tensors]
        if any(g.is_sparse for g in gradients):
            raise RuntimeError("ScaledAdam cannot use sparse gradients: set sparse=False in the embedding.")
        if len(self.tensors) == 1:
            self.params, self.grads = self.first.detach().unsqueeze(0), gradients[0].unsqueeze(0)
        else:
            self.params, self.grads = self._stacked("params", self.tensors), self._stacked("grads", gradients)

    def _stacked(self, name: str, tensors: list[Tensor]) -> Tensor:
        if not on_host(self.first):
            return torch.stack(tensors)
        if name not in self.scratch:
            self.scratch[name] = self.first.new_empty((len(tensors), *self.first.shape))
        return torch.stack(tensors, out=self.scratch[name])

    def scaled_grads(self, factor: Tensor | float) -> Tensor:
        """The gradients times a factor; not in place: a lone gradient is the caller's own .grad."""
        return self.grads if is_one(factor) else self.grads * factor

    def joins(self) -> bool:
        """Whether the fused kernels work on it, with others: float32, each tensor in one block of memory."""
        suits = self.first.dtype == torch.float32 and all(t.is_contiguous() for t in self.tensors)
        return not self.scalar and suits and fused("scaled_adam", self.first)

    def scatter(self) -> None:
        if len(self.tensors) > 1:
            torch._foreach_copy_(self.tensors, self.params.unbind(0))
        self.release()

    def release(self) -> None:
        self.params = self.grads = torch.empty(0)

    def norm(self, values: Tensor) -> Tensor:
        """(n, 1, ...) Euclidean norm per tensor, in one pass without an intermediate."""
        return torch.linalg.vector_norm(values, dim=self.dims, keepdim=True)

    def rms(self) -> Tensor:
        """(n, 1, ...) root of the mean square of every tensor."""
        return self.norm(self.params) / math.sqrt(self.first.numel())


def is_one(factor: Tensor | float) -> bool:
    """Whether a factor is known to be 1 without waiting for a device."""
    return float(factor) == 1.0 if not isinstance(factor, Tensor) or on_host(factor) else False
