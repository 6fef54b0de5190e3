"""What ScaledAdam writes into the log: skipped steps, clipping statistics, gradients that explode."""

import logging
import math
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def _names(group: dict[str, Any]) -> list[str]:
    return group.get("names") or [f"tensor {index}" for index in range(len(group["params"]))]


def report_skip(groups: list[dict[str, Any]], num_skipped: int) -> None:
    """A step that was skipped, with the tensors of ``groups`` whose gradients are not finite."""
    culprits = [
        name
        for group in groups
        for name, parameter in zip(_names(group), group["params"])
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
    ]
    logger.warning(
        "step skipped (%d so far): gradient norm is not finite; not finite in %d tensors, first: %s",
        num_skipped,
        len(culprits),
        ", ".join(culprits[:3]) or "none (the sum of squares overflows)",
    )


def report_explosion(group: dict[str, Any], squares: list[tuple[Any, Tensor]], threshold: float) -> None:
    """Which tensor has the largest part in a gradient norm that is far above the clipping threshold.

    squares: of every stack, itself and the squared norms of its tensors (n,).
    """
    total = sum(float(values.sum()) for _, values in squares)
    stack, values = max(squares, key=lambda pair: float(pair[1].max()))
    position = int(values.argmax())
    names = dict(zip(map(id, group["params"]), _names(group)))
    logger.warning(
        "gradient norm %.3g is clipped to %.3g; %.0f%% of its square is that of %s",
        math.sqrt(total),
        threshold,
        100.0 * float(values[position]) / total,
        names[id(stack.tensors[position])],
    )


def report_clipping(group: dict[str, Any], state: dict[str, Any], ordered: Tensor) -> None:
    """Quartiles of the last gradient norms, the new threshold and how often the group was clipped."""
    if not logger.isEnabledFor(logging.DEBUG):
        return
    count = ordered.numel()
    quartiles = [float(ordered[min(count - 1, count // 4 * n)]) for n in range(5)]
    logger.debug(
        "gradient norm quartiles %s, threshold %.3e, clipped %.1f%% (group of %d tensors, lr %.3e)",
        " ".join(f"{q:.3e}" for q in quartiles),
        float(state["model_norm_threshold"]),
        100.0 * int(state["num_clipped"]) / count,
        len(group["params"]),
        group["lr"],
    )
