"""Which states of the lattice to keep: prune ranges from the occupation of a cheap loss (spec rnnt §3)."""

import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def _suffix_minimum(x: Tensor) -> Tensor:
    """min over u >= t along the last dimension."""
    return torch.cummin(x.flip(-1), dim=-1).values.flip(-1)


def get_rnnt_prune_ranges(px_grad: Tensor, py_grad: Tensor, boundary: Tensor | None, s_range: int) -> Tensor:
    """Choose ``s_range`` successive states per frame that hold most of the occupation (k2's rules).

    Args:
      px_grad: (B, S, T+1) for the regular lattice, (B, S, T) for modified and constrained: occupation of the
        label arcs, as ``rnnt_loss_simple/smoothed(..., return_grad=True)`` return it.
      py_grad: (B, S+1, T) occupation of the blank arcs.
      boundary: (B, 4) int64, rows [0, 0, S_b, T_b]; None means full length.
      s_range: states per frame R. Raised (and logged) where the regular lattice could not reach its last
        label otherwise; lowered to S + 1 where there are fewer states.

    Returns:
      (B, T, R) int64; row t is s_t, s_t + 1, ..., s_t + R - 1, with s_0 = 0, s_t not decreasing and all
      values within 0..S.

    Raises:
      ValueError: s_range too small (2 for regular, 1 otherwise).
    """
    batch, states, frames = py_grad.shape
    labels = states - 1
    regular = px_grad.shape[2] == frames + 1
    device = py_grad.device
    if boundary is None:
        num_labels = torch.full((batch,), labels, device=device)
        num_frames = torch.full((batch,), frames, device=device)
    else:
        num_labels, num_frames = boundary[:, 2], boundary[:, 3]
    minimum = 2 if regular else 1
    if s_range < minimum:
        raise ValueError(
            f"s_range is {s_range}, but the {'regular' if regular else 'modified/constrained'} transducer "
            f"needs at least {minimum} states per frame: raise the prune range."
        )
    if regular and batch:
        needed = int((torch.div(num_labels - 1, num_frames.clamp(min=1), rounding_mode="trunc") + 2).max())
        if needed > s_range:
            logger.warning(
                "prune range raised from %d to %d: an utterance has that many labels per frame",
                s_range,
                needed,
            )
            s_range = needed
    s_range = labels + 1 if s_range > labels else s_range

    # Window score for every first state i: blanks inside the window minus the label arc that enters it late.
    zeros = py_grad.new_zeros((batch, 1, frames), dtype=torch.float64)
    cumulative = torch.cat([zeros, torch.cumsum(py_grad.double(), dim=1)], dim=1)
    inside = cumulative[:, s_range:] - cumulative[:, : states + 1 - s_range]
    entering = torch.cat([zeros, px_grad[:, :, :frames].double()], dim=1)[:, : states + 1 - s_range]
    start = torch.argmax(inside - entering, dim=1)  # (B, T), the first of equals

    time = torch.arange(frames, device=device)
    last_start = (num_labels - s_range + 1).clamp(min=0)
    start = torch.where(time < num_frames[:, None] - 1, start, last_start[:, None])
    start = _suffix_minimum(start)
    # At most max_step states further per frame, and the first window starts at state 0.
    max_step = (s_range if regular else 2) - 1
    slack = _suffix_minimum(max_step * time - start).clamp(min=0)
    start = max_step * time - slack
    return start[..., None] + torch.arange(s_range, device=device)


def do_rnnt_pruning(am: Tensor, lm: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Encoder and decoder projections at the kept states.

    Args:
      am: (B, T, C) projected encoder output.
      lm: (B, S+1, C) projected decoder output.
      ranges: (B, T, R) from ``get_rnnt_prune_ranges``.

    Returns:
      (am_pruned, lm_pruned), both (B, T, R, C); am_pruned is an expanded view (do not write to it).
    """
    batch, frames, size = ranges.shape
    am_pruned = am.unsqueeze(2).expand(batch, frames, size, am.shape[-1])
    index = ranges.reshape(batch, frames * size, 1).expand(-1, -1, lm.shape[-1])
    lm_pruned = torch.gather(lm, 1, index).reshape(batch, frames, size, lm.shape[-1])
    return am_pruned, lm_pruned
