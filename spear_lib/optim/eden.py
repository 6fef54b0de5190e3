"""Eden: the learning rate as a closed formula of steps and of hours (or epochs) seen (spec optim §2)."""

from typing import Any

import torch


def eden_factor(
    batch: float,
    epoch: float,
    lr_batches: float,
    lr_epochs: float,
    warmup_batches: float = 500.0,
    warmup_start: float = 0.5,
) -> float:
    """What multiplies the base learning rate.

    Args:
      batch: steps done.
      epoch: hours of audio seen (pre-training) or epochs.
      lr_batches: steps after which the rate starts to fall as steps^(-1/2) (reference: 7500).
      lr_epochs: the same in the unit of ``epoch`` (reference: 25,000 to 75,000 hours).
      warmup_batches, warmup_start: the rate rises linearly from ``warmup_start`` to 1 over this many steps.
    """
    fall = (1 + (batch / lr_batches) ** 2) ** -0.25 * (1 + (epoch / lr_epochs) ** 2) ** -0.25
    if batch >= warmup_batches:
        return fall
    return fall * (warmup_start + (1 - warmup_start) * batch / warmup_batches)


class Eden:
    """Sets ``lr`` of every group to its base rate times ``eden_factor``.

    The base rates are those of the groups at construction (kept in the groups as ``base_lr``); resuming
    restores the saved ones, so that a run continues on its own curve.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        lr_batches: float,
        lr_epochs: float,
        warmup_batches: float = 500.0,
        warmup_start: float = 0.5,
    ):
        if lr_batches <= 0 or lr_epochs <= 0:
            raise ValueError(f"lr_batches {lr_batches} and lr_epochs {lr_epochs} must be positive.")
        if warmup_batches < 0 or not 0 <= warmup_start <= 1:
            raise ValueError(
                f"warmup_batches {warmup_batches} must not be negative and warmup_start {warmup_start} "
                "must lie in 0..1."
            )
        self.optimizer = optimizer
        self.lr_batches = lr_batches
        self.lr_epochs = lr_epochs
        self.warmup_batches = warmup_batches
        self.warmup_start = warmup_start
        self.base_lrs = [group.setdefault("base_lr", group["lr"]) for group in optimizer.param_groups]
        self.batch = 0
        self.epoch: float = 0
        self._apply()

    def step_batch(self, batch: int) -> None:
        """Tell the number of steps; the first update uses 1."""
        self.batch = batch
        self._apply()

    def step_epoch(self, epoch: float) -> None:
        """Tell the hours of audio (or the epochs) seen."""
        self.epoch = epoch
        self._apply()

    def get_last_lr(self) -> list[float]:
        """Current learning rate of every group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def _apply(self) -> None:
        factor = eden_factor(
            self.batch, self.epoch, self.lr_batches, self.lr_epochs, self.warmup_batches, self.warmup_start
        )
        for group, base in zip(self.optimizer.param_groups, self.base_lrs):
            group["lr"] = base * factor

    def state_dict(self) -> dict[str, Any]:
        return {"base_lrs": list(self.base_lrs), "epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        base_lrs = list(state.get("base_lrs", self.base_lrs))
        if len(base_lrs) != len(self.optimizer.param_groups):
            raise ValueError(
                f"the saved schedule has {len(base_lrs)} learning rates, the optimiser "
                f"{len(self.optimizer.param_groups)} groups: were lr_scales or frozen modules changed?"
            )
        self.base_lrs = base_lrs
        for group, base in zip(self.optimizer.param_groups, base_lrs):
            group["base_lr"] = base
        self.batch, self.epoch = state["batch"], state["epoch"]
        self._apply()
