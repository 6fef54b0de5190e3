"""What every backend of the losses refuses, in one place and with the same words.

Values are looked at on the CPU only: on a device that would make the host wait, and there ``AsrModel`` has
checked labels and lengths before they were sent. Legend as in ``losses``.
"""

import torch
from torch import Tensor

RNNT_TYPES = ("regular", "modified", "constrained")
REDUCTIONS = ("none", "mean", "sum")


def check_additive(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.0,
    am_only_scale: float = 0.0,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
) -> None:
    """Arguments of ``rnnt_loss_simple`` and ``rnnt_loss_smoothed``; ValueError for what they cannot take."""
    _check_options(rnnt_type, reduction, delay_penalty)
    if lm_only_scale < 0 or am_only_scale < 0 or lm_only_scale + am_only_scale >= 1:
        raise ValueError(
            f"lm_only_scale {lm_only_scale} and am_only_scale {am_only_scale} must not be negative and must "
            "sum to less than 1 (at 1 nothing of the joint model is left)."
        )
    _check_dimensions("lm", lm, "(B, S+1, C)")
    _check_dimensions("am", am, "(B, T, C)")
    if lm.shape[0] != am.shape[0] or lm.shape[2] != am.shape[2]:
        raise ValueError(f"lm {tuple(lm.shape)} and am {tuple(am.shape)} differ in batch size or classes.")
    batch, states, classes = lm.shape
    _check_symbols(symbols, batch, states - 1, termination_symbol, classes)
    _check_boundary(boundary, batch, states - 1, am.shape[1])


def check_joint(
    logits: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    ranges: Tensor | None = None,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
) -> None:
    """Arguments of ``rnnt_loss`` (without ``ranges``) and of ``rnnt_loss_pruned``; ValueError likewise."""
    _check_options(rnnt_type, reduction, delay_penalty)
    _check_dimensions("logits", logits, "(B, T, S+1, C)" if ranges is None else "(B, T, R, C)")
    batch, frames, states, classes = logits.shape
    if ranges is None:
        labels = states - 1
    else:
        if tuple(ranges.shape) != (batch, frames, states):
            raise ValueError(f"ranges is {tuple(ranges.shape)}; logits ask for {(batch, frames, states)}.")
        _check_dimensions("symbols", symbols, "(B, S)")
        labels = symbols.shape[1]
        if _on_cpu(ranges) and (int(ranges.min()) < 0 or int(ranges.max()) > labels):
            raise ValueError(
                f"ranges holds states {int(ranges.min())}..{int(ranges.max())}, but symbols "
                f"{tuple(symbols.shape)} have the states 0..{labels}: make the ranges from this batch."
            )
    _check_symbols(symbols, batch, labels, termination_symbol, classes)
    _check_boundary(boundary, batch, labels, frames)


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.numel() > 0


def _check_options(rnnt_type: str, reduction: str, delay_penalty: float) -> None:
    if rnnt_type not in RNNT_TYPES:
        raise ValueError(f"rnnt_type is {rnnt_type!r}; choose one of {', '.join(RNNT_TYPES)}.")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; choose one of {', '.join(REDUCTIONS)}.")
    if delay_penalty < 0:
        raise ValueError(f"delay_penalty is {delay_penalty}; it must be 0 (off) or positive.")


def _check_dimensions(name: str, x: Tensor, expected: str) -> None:
    if x.dim() != expected.count(",") + 1:
        raise ValueError(f"{name} is {tuple(x.shape)}; expected {expected}.")


def _check_symbols(symbols: Tensor, batch: int, labels: int, blank: int, classes: int) -> None:
    if tuple(symbols.shape) != (batch, labels):
        raise ValueError(
            f"symbols is {tuple(symbols.shape)}; the other arrays ask for ({batch}, {labels}): "
            "one state more than labels (S+1)."
        )
    if not 0 <= blank < classes:
        raise ValueError(f"termination_symbol is {blank}; it must lie in 0..{classes - 1}.")
    if _on_cpu(symbols) and (int(symbols.min()) < 0 or int(symbols.max()) >= classes):
        raise ValueError(
            f"symbols holds ids {int(symbols.min())}..{int(symbols.max())}, but the logits have {classes} "
            f"classes (ids 0..{classes - 1}, padding included): were the transcripts encoded with the units "
            "of this model?"
        )


def _check_boundary(boundary: Tensor | None, batch: int, labels: int, frames: int) -> None:
    if boundary is None:
        return
    if tuple(boundary.shape) != (batch, 4) or boundary.dtype != torch.int64:
        raise ValueError(
            f"boundary is {tuple(boundary.shape)} {boundary.dtype}; expected ({batch}, 4) torch.int64 with "
            "rows [0, 0, number of labels, number of frames]."
        )
    if _on_cpu(boundary):
        if bool((boundary[:, :2] != 0).any()):
            raise ValueError("boundary: the first two columns (begin symbol, begin frame) must be 0.")
        most_labels, most_frames = (int(v) for v in boundary[:, 2:].amax(0))
        if most_labels > labels or most_frames > frames or bool((boundary < 0).any()):
            raise ValueError(
                f"boundary asks for up to {most_labels} labels and {most_frames} frames, but the arrays hold "
                f"{labels} labels and {frames} frames (and nothing may be negative)."
            )
