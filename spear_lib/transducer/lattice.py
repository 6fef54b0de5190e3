"""Total log-probability of the full RNN-T lattice and the occupation of its arcs, in plain torch.

Legend: B utterances, T frames, S labels (maximum of the batch), s = labels emitted, t = frames consumed.
The recursion runs along the columns (modified, constrained) or along the anti-diagonals d = s + t (regular).
After the arrays are sheared so that one diagonal is one row, both are the same recursion, whose every step
works on all utterances and all s at once. It runs in float64: the steps are bound by launches, not by
arithmetic, and sums of 1e3..1e4 nats keep their last digits.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def _shear(x: Tensor, width: int, fill: float) -> Tensor:
    """(B, S, T) -> (B, S, width) with row s moved right by s; needs width >= T + S - 1."""
    batch, rows, columns = x.shape
    padded = F.pad(x, (0, width + 1 - columns), value=fill)
    return padded.reshape(batch, rows * (width + 1))[:, : rows * width].reshape(batch, rows, width)


def _unshear(x: Tensor, columns: int) -> Tensor:
    """Inverse of ``_shear``: (B, S, width) -> (B, S, columns)."""
    batch, rows, width = x.shape
    padded = F.pad(x.reshape(batch, rows * width), (0, rows))
    return padded.reshape(batch, rows, width + 1)[:, :, :columns]


def _forward_scores(px: Tensor, py: Tensor) -> Tensor:
    """alpha (D+1, B, S+2) of alpha[d+1, s] = logadd(alpha[d, s-1] + px[d, s-1], alpha[d, s] + py[d, s]).

    ``px`` (D, B, S+1) is stored under its *target* s (column 0 is -inf), ``py`` is (D, B, S+1). Column 0 of
    the result is a sentinel -inf, so state s is column s + 1.
    """
    steps, batch, states = py.shape
    alpha = py.new_full((steps + 1, batch, states + 1), -torch.inf)
    alpha[0, :, 1] = 0.0
    by_label = torch.empty_like(py[0]) if steps else py
    by_blank = torch.empty_like(by_label)
    rows = alpha.unbind(0)
    for d, (label, blank) in enumerate(zip(px.unbind(0), py.unbind(0))):
        torch.add(rows[d][:, :-1], label, out=by_label)
        torch.add(rows[d][:, 1:], blank, out=by_blank)
        torch.logaddexp(by_label, by_blank, out=rows[d + 1][:, 1:])
    return alpha


def _occupation(px: Tensor, py: Tensor, alpha: Tensor, occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Arc occupations in the probability domain (values in [0, 1], no cancellation).

    ``occupied`` (D+1, B, S+1) holds 1 at each utterance's final state and is filled in place with the
    probability that a path visits the state. Returns (gx, gy), both (D, B, S+1), gx under its target s.
    """
    # nan_to_num: -inf - -inf at states that no path reaches.
    target = alpha[1:, :, 1:]
    by_label = torch.nan_to_num_(torch.exp(alpha[:-1, :, :-1] + px - target), nan=0.0)
    by_blank = torch.nan_to_num_(torch.exp(alpha[:-1, :, 1:] + py - target), nan=0.0)
    rows = occupied.unbind(0)
    label_rows, blank_rows = by_label.unbind(0), by_blank.unbind(0)
    for d in range(len(label_rows) - 1, -1, -1):
        rows[d].addcmul_(rows[d + 1], blank_rows[d])
        rows[d][:, :-1].addcmul_(rows[d + 1][:, 1:], label_rows[d][:, 1:])
    return by_label.mul_(occupied[1:]), by_blank.mul_(occupied[1:])


Solver = Callable[..., tuple[Tensor, Tensor | None, Tensor | None]]
"""What walks through the lattice: ``solve_lattice`` below, or a kernel with the same arguments."""


def solve_lattice(
    px: Tensor, py: Tensor, num_labels: Tensor, num_frames: Tensor, regular: bool, occupation: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Scores (B,) and, if wanted, the occupations (gx, gy) shaped and typed as ``px`` and ``py``."""
    batch, states, frames = py.shape
    labels = states - 1
    # px[:, :, T] of the regular lattice is -inf by definition: not stored while solving.
    px64, py64 = px[:, :, :frames].double(), py.double()
    steps = frames + labels if regular else frames
    if regular:
        px64, py64 = _shear(px64, steps, -torch.inf), _shear(py64, steps, -torch.inf)
    px64 = F.pad(px64.permute(2, 0, 1), (1, 0), value=-torch.inf)
    py64 = py64.permute(2, 0, 1).contiguous()
    alpha = _forward_scores(px64, py64)
    final_step = num_frames + num_labels if regular else num_frames
    utterance = torch.arange(batch, device=py.device)
    scores = alpha[final_step, utterance, num_labels + 1]
    if not occupation:
        return scores, None, None
    occupied = torch.zeros_like(alpha[:, :, 1:])
    occupied[final_step, utterance, num_labels] = torch.isfinite(scores).to(occupied.dtype)
    gx, gy = _occupation(px64, py64, alpha, occupied)
    gx, gy = gx[:, :, 1:].permute(1, 2, 0), gy.permute(1, 2, 0)
    if regular:
        gx, gy = _unshear(gx, frames), _unshear(gy, frames)
        gx = F.pad(gx, (0, px.shape[2] - frames))
    return scores, gx.to(px.dtype).contiguous(), gy.to(py.dtype).contiguous()


class _LatticeScore(torch.autograd.Function):
    """Occupations are computed once in forward; backward only multiplies them (nothing differentiates
    through logadd, whose gradient at (-inf, -inf) is NaN)."""

    @staticmethod
    def forward(ctx, px, py, num_labels, num_frames, regular, occupation, solve):
        needed = occupation or px.requires_grad or py.requires_grad
        scores, gx, gy = solve(px, py, num_labels, num_frames, regular, needed)
        if not needed:
            gx, gy = px.new_zeros(0), py.new_zeros(0)
        ctx.save_for_backward(gx, gy)
        ctx.mark_non_differentiable(gx, gy)
        return scores.to(py.dtype), gx, gy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_scores, _gx, _gy):
        gx, gy = ctx.saved_tensors
        weight = grad_scores[:, None, None]
        return weight * gx, weight * gy, None, None, None, None, None


def lattice_score(
    px: Tensor,
    py: Tensor,
    num_labels: Tensor,
    num_frames: Tensor,
    regular: bool,
    occupation: bool = False,
    solve: Solver = solve_lattice,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of all paths (spec rnnt §1.1) with its exact gradient (§1.2).

    Args:
      px: (B, S, T+1) if ``regular``, else (B, S, T): log-probability of label s in state (s, t). -inf where
        no label may be emitted (the caller masks t >= T_b of the regular lattice).
      py: (B, S+1, T) log-probability of blank.
      num_labels, num_frames: (B,) int64, S_b and T_b.
      regular: a label stays on its frame (True) or consumes it (False: modified, constrained).
      occupation: also return the arc occupations when no gradient is asked for.
      solve: what walks through the lattice.

    Returns:
      (scores (B,), gx, gy): gx and gy shaped as px and py, the probability that the arc is used, 0 outside
      the utterance; empty if neither they nor a gradient were needed. An utterance without any path has the
      score -inf and no occupation.
    """
    return _LatticeScore.apply(px, py, num_labels, num_frames, regular, occupation, solve)
