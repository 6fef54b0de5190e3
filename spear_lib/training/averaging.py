"""Running mean of the model over training and exact means over any range of it (spec optim §3).

Every A steps the mean takes in one snapshot: mean_n = mean_{n-A} * (1 - A/n) + model_n * (A/n), so mean_n is
the plain mean of the snapshots at A, 2A, ..., n. Two such means give the mean over the steps between them,
so that the length of the average can be chosen after training. Kept in float64 on the CPU, because the
range is a difference of two long sums.
"""

from typing import Any

import torch
from torch import Tensor, nn


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, if it is wrapped for distributed training."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _averaged_copy(tensor: Tensor) -> Tensor:
    dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True)


class ModelAverage:
    """Mean of all snapshots of ``model`` since step 0; only one process of a run needs it.

    Tensors that share memory are averaged once; integer tensors keep their first value.

    Args:
      model: parameters and buffers (its ``state_dict``) are averaged; the wrapped model of DDP is used.
      period: steps between snapshots (reference: 200).
      leave_out: module paths that are not averaged.
    """

    def __init__(self, model: nn.Module, period: int = 200, leave_out: tuple[str, ...] = ()):
        if period < 1:
            raise ValueError(f"period is {period}; it must be at least 1 step between snapshots.")
        self.period = period
        self.leave_out = tuple(f"{path}." for path in leave_out)
        self.step = 0
        self.average: dict[str, Tensor] = {}
        shared: dict[tuple, Tensor] = {}
        for name, tensor in self._state(model).items():
            place = _storage(tensor)
            if place not in shared:
                shared[place] = _averaged_copy(tensor)
            self.average[name] = shared[place]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take the model in if ``step`` (counted from 1, after the optimiser's step) is a multiple of the
        period; to be called after every step.

        Raises:
          ValueError: a snapshot was left out, or the model has other tensors than at construction.
        """
        if step % self.period:
            return
        if step != self.step + self.period:
            raise ValueError(
                f"the model average stands at step {self.step} and was asked to take in step {step}; "
                f"the next snapshot is step {self.step + self.period}. Restored from another checkpoint?"
            )
        state = self._state(model)
        _check_same_names(self.average, state, "the running average", "the model")
        weight = self.period / step
        done: set[int] = set()
        for name, tensor in state.items():
            average = self.average[name]
            if average.is_floating_point() and id(average) not in done:
                done.add(id(average))
                average.mul_(1.0 - weight).add_(tensor.detach().to("cpu", torch.float64), alpha=weight)
        self.step = step

    def _state(self, model: nn.Module) -> dict[str, Tensor]:
        state = _unwrapped(model).state_dict()
        return {name: tensor for name, tensor in state.items() if not name.startswith(self.leave_out)}

    def state_dict(self) -> dict[str, Any]:
        """{"state": name -> float64 tensor, "step": step of the last snapshot, "period": steps}."""
        return {"state": dict(self.average), "step": self.step, "period": self.period}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict()``; another period is an error, the mean would be weighted wrongly."""
        period = state.get("period", self.period)
        if period != self.period:
            raise ValueError(
                f"the saved model average has a snapshot every {period} steps, this run every {self.period}: "
                f"set the average period to {period} to continue the run."
            )
        _check_same_names(self.average, state["state"], "the model", "the saved average")
        for name, tensor in state["state"].items():
            self.average[name].copy_(tensor)
        self.step = int(state["step"])


def _storage(tensor: Tensor) -> tuple:
    return (
        tensor.device,
        tensor.data_ptr(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.numel() or id(tensor),
    )


def _check_same_names(first: dict[str, Tensor], second: dict[str, Tensor], what: str, other: str) -> None:
    for missing, where in ((first.keys() - second.keys(), other), (second.keys() - first.keys(), what)):
        if missing:
            raise ValueError(f"{where} lacks {len(missing)} tensors, e.g. {min(missing)}: another model?")
    for name, tensor in first.items():
        if tensor.shape != second[name].shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in {what} but {tuple(second[name].shape)} in {other}."
            )


def average_between(
    start_average: dict[str, Tensor] | None,
    start_step: int,
    end_average: dict[str, Tensor],
    end_step: int,
) -> dict[str, Tensor]:
    """Mean of the snapshots n with start_step < n <= end_step, from the running means at the two steps.

    Args:
      start_average: ``state_dict()["state"]`` at ``start_step``; None (with step 0): from the beginning.
      start_step, end_step: ``state_dict()["step"]``, the steps of the last snapshots taken in.
      end_average: ``state_dict()["state"]`` at ``end_step``.

    Returns:
      name -> tensor, floating point as float32; integer tensors are those of ``end_average``.
    """
    if not 0 <= start_step < end_step:
        raise ValueError(
            f"cannot average from step {start_step} to step {end_step}: the start must be 0 or later and "
            "before the end."
        )
    if start_step == 0:
        start_average = None
    elif start_average is None:
        raise ValueError(
            f"the running average at step {start_step} is needed to leave out what came before it."
        )
    else:
        _check_same_names(end_average, start_average, "the later average", "the earlier average")
    end_weight = end_step / (end_step - start_step)
    start_weight = 1.0 - end_weight
    result = {}
    for name, end in end_average.items():
        if not end.is_floating_point():
            result[name] = end.clone()
            continue
        mean = end.double()
        if start_average is not None:
            # In this order no intermediate is much larger than the tensors themselves.
            mean = (mean + start_average[name].double() * (start_weight / end_weight)) * end_weight
        result[name] = mean.float()
    return result
