"""AdamW with clipping of the whole gradient, and the schedule that rises, holds and falls (spec spidr §7)."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from spear_lib.optim.reports import report_skip


class ClippedAdamW(torch.optim.AdamW):
    """AdamW (decoupled decay of every parameter that has a gradient) behind a limit of the gradient's norm.

    Parameters without a gradient stand still, decay included. A norm that is not finite skips the step.

    Args:
      params: parameters or groups, as ``parameter_groups`` makes them.
      lr: learning rate.
      max_norm: limit of the norm over all groups together; the factor is min(1, max_norm / (norm + 1e-6)).
        0: none.
      betas, eps, weight_decay: as in torch.optim.AdamW.

    Attributes:
      num_skipped: steps skipped because the norm was not finite (saved with the state).
      last_norm: norm of the last gradient, before it was limited.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        max_norm: float = 10.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ):
        super().__init__(params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)
        self.max_norm = max_norm
        self.num_skipped = 0
        self.last_norm = 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update from the gradients, which are limited in place; returns the closure's loss, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return loss
        self.last_norm = float(torch.nn.utils.get_total_norm(gradients))  # the one host read of the step
        if not math.isfinite(self.last_norm):
            self.num_skipped += 1
            report_skip(self.param_groups, self.num_skipped)
            return loss
        if self.max_norm > 0.0 and self.last_norm + 1e-6 > self.max_norm:
            torch._foreach_mul_(gradients, self.max_norm / (self.last_norm + 1e-6))
        super().step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The usual optimiser state and ``num_skipped``."""
        return {**super().state_dict(), "num_skipped": self.num_skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({k: v for k, v in state_dict.items() if k in ("state", "param_groups")})
        self.num_skipped = int(state_dict.get("num_skipped", 0))


def tri_stage_factor(
    step: int,
    warmup_steps: int,
    hold_steps: int,
    decay_steps: int,
    start_factor: float = 0.01,
    final_factor: float = 0.01,
) -> float:
    """What multiplies the learning rate in step ``step``, 0 for the first: a linear rise from
    ``start_factor``, 1, an exponential fall to ``final_factor``, which then stays."""
    if step < warmup_steps:
        return start_factor + (1.0 - start_factor) * step / warmup_steps
    fallen = step - warmup_steps - hold_steps
    if fallen < 0:
        return 1.0
    return final_factor ** min(1.0, fallen / decay_steps) if decay_steps else final_factor


class TriStage:
    """Sets ``lr`` of every group to its base rate times ``tri_stage_factor``; used like ``Eden``, from which
    it differs in knowing no hours."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_steps: int,
        hold_steps: int,
        decay_steps: int,
        start_factor: float = 0.01,
        final_factor: float = 0.01,
    ):
        self.optimizer = optimizer
        self.shape = (warmup_steps, hold_steps, decay_steps, start_factor, final_factor)
        self.base_lrs = [group.setdefault("base_lr", group["lr"]) for group in optimizer.param_groups]
        self.batch = 0
        self._apply()

    def step_batch(self, batch: int) -> None:
        """Tell the number of steps; the first update uses 1."""
        self.batch = batch
        self._apply()

    def step_epoch(self, epoch: float) -> None:
        """Hours of audio change nothing."""

    def get_last_lr(self) -> list[float]:
        """Current learning rate of every group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def _apply(self) -> None:
        factor = tri_stage_factor(max(0, self.batch - 1), *self.shape)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs):
            group["lr"] = base * factor

    def state_dict(self) -> dict[str, Any]:
        return {"base_lrs": list(self.base_lrs), "batch": self.batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["base_lrs"]) != len(self.optimizer.param_groups):
            raise ValueError(
                f"the saved schedule has {len(state['base_lrs'])} learning rates, the optimiser "
                f"{len(self.optimizer.param_groups)} groups: were lr_scales or frozen modules changed?"
            )
        self.base_lrs = list(state["base_lrs"])
        for group, base in zip(self.optimizer.param_groups, self.base_lrs):
            group["base_lr"] = base
        self.batch = state["batch"]
        self._apply()
