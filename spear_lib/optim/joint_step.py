"""ScaledAdam's step of all tensors of a group at once, by kernels that take lists of tensors (ours).

Nothing is stacked: parameters and gradients stay where they are. What the optimiser knows of each tensor (its
RMS, the gradient of its scale) lies side by side for all of them, and the state of a stack is a part of that,
so checkpoints are those of the eager path.
"""

import math
from typing import Any

import torch
from torch import Tensor

_VECTORS = ("param_rms", "scale_exp_avg_sq", "scale_grads")
"""State with a number for every tensor, or one for each of the last steps."""


class JointStacks:
    """Stacks of tensors with more than one element, worked on together.

    Args:
      stacks: of ``ScaledAdam``.
      states: theirs; the vectors become parts of common ones.

    Attributes:
      state: the vectors of all tensors, (n,) or (steps, n).
      params: the tensors.
      totals: (3, n), sums of params^2, params x grads and grads^2 in this step; from ``measure``.
    """

    def __init__(self, stacks: list[Any], states: list[dict[str, Any]]) -> None:
        self.stacks = stacks
        self.params = [each for stack in stacks for each in stack.tensors]
        self.sizes = [each.numel() for each in self.params]
        self.deltas, self.squares = (
            [each for state in states for each in state[name].unbind(0)] for name in ("delta", "exp_avg_sq")
        )
        numbers = [len(stack.tensors) for stack in stacks]
        self.state: dict[str, Tensor] = {}
        for name in _VECTORS:
            kept = [state[name] for state in states]
            axis = int(name == "scale_grads")
            rows = [each.flatten(axis) for each in kept]
            self.state[name] = torch.cat(rows, dim=axis)
            for state, part in zip(states, self.state[name].split(numbers, dim=axis)):
                state[name] = part.view(state[name].shape)
        self.numbers = numbers
        self.roots = torch.tensor([math.sqrt(size) for size in self.sizes], device=self.params[0].device)
        self.grads: list[Tensor] = []
        self.totals = torch.empty(0)

    def measure(self) -> None:
        """Takes the gradients of this step, and the sums over parameters and gradients."""
        self.grads = [
            torch.zeros_like(each) if each.grad is None else each.grad.contiguous() for each in self.params
        ]
        sums = torch.ops.spear.scaled_adam_sums(self.params, self.grads)
        self.totals = torch.ops.spear.scaled_adam_totals(sums, self.sizes)

    def weighted_squares(self) -> list[tuple[Any, Tensor]]:
        """(n,) of every stack: squared norms of the gradients, each weighted by its tensor's RMS."""
        squares = self.totals[2] * self.state["param_rms"].square()
        return list(zip(self.stacks, squares.split(self.numbers)))

    def rms(self) -> Tensor:
        """(n,) root of the mean square of every tensor, before this step."""
        return self.totals[0].sqrt() / self.roots

    def update(self, factor: Tensor, size_step: Tensor | None, numbers: list[float]) -> None:
        """Moves the parameters; arguments as those of the kernel (kernels.operations)."""
        moments = self.deltas, self.squares
        torch.ops.spear.scaled_adam_update_(
            self.params, *moments, self.grads, factor, self.state["param_rms"], size_step, numbers
        )
        self.grads = []
