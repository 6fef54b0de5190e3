"""Total log-probability of a pruned RNN-T lattice: R states per frame, never expanded to (B, S, T).

Legend: B utterances, T frames, R states kept per frame (band), r = 0..R-1, s = start[t] + r labels emitted.
One step per frame multiplies by an (R, R) matrix in the log semiring: blanks move to the next frame (and to
its window), then, in the regular lattice, any number of labels is emitted inside the frame.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spear_lib.transducer.lattice import Solver


def _label_chains(px: Tensor) -> Tensor:
    """(B, T, R) -> (B, T, R, R): [i, j] = log-probability of emitting labels i..j-1 (0 on the diagonal)."""
    size = px.shape[-1]
    chains = px.new_full((*px.shape, size), -torch.inf)
    torch.diagonal(chains, dim1=-2, dim2=-1).zero_()
    for j in range(1, size):
        chains[..., :j, j] = chains[..., :j, j - 1] + px[..., j - 1, None]
    return chains


def _moved(x: Tensor, index: Tensor, fill: float) -> Tensor:
    """x (..., R) at positions ``index`` (..., R); ``fill`` where the index lies outside 0..R-1."""
    inside = (index >= 0) & (index < x.shape[-1])
    return torch.where(inside, torch.gather(x, -1, index.clamp(0, x.shape[-1] - 1)), fill)


def _transitions(px: Tensor, py: Tensor, shift: Tensor, regular: bool) -> Tensor:
    """(B, T, R_from, R_to): log-weight from state (t, r_from) to state (t+1, r_to), t = 0..T-1.

    px: (B, T+1, R) if regular else (B, T, R); py: (B, T, R); shift: (B, T), start[t+1] - start[t].
    """
    batch, frames, size = py.shape
    state = torch.arange(size, device=py.device)
    if regular:
        chains = _label_chains(px[:, 1:])
        landing = state - shift[..., None]  # (B, T, R_from): where a blank lands in the next window
        inside = (landing >= 0) & (landing < size)
        rows = landing.clamp(0, size - 1)[..., None].expand(-1, -1, -1, size)
        chained = torch.gather(chains, 2, rows)
        return torch.where(inside[..., None], py[..., None] + chained, -torch.inf)
    arrive = state + shift[..., None, None]  # (B, T, 1, R_to): the r_from that a blank comes from
    source = state[:, None]
    weights = torch.where(source == arrive, py[..., None], -torch.inf)
    return torch.where(source == arrive - 1, px[..., None], weights)


def solve_band(
    px: Tensor,
    py: Tensor,
    start: Tensor,
    num_labels: Tensor,
    num_frames: Tensor,
    regular: bool,
    occupation: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Scores (B,) and, if wanted, the occupations (gx, gy) shaped and typed as ``px`` and ``py``."""
    batch, frames, size = py.shape
    utterance = torch.arange(batch, device=py.device)
    # The virtual frame T_b shares the window of the last frame; later frames are never read.
    last = (num_frames - 1).clamp(min=0)
    frame = torch.minimum(torch.arange(frames + 1, device=py.device), last[:, None])
    start = torch.gather(start, 1, frame)
    shift = start[:, 1:] - start[:, :-1]
    px64, py64 = px.double(), py.double()
    if regular:
        px64 = F.pad(px64, (0, 0, 0, 1), value=-torch.inf)
    weights = _transitions(px64, py64, shift, regular)

    state = torch.arange(size, device=py.device)
    first = torch.where(start[:, 0, None] + state == 0, 0.0, -torch.inf).to(py64.dtype)
    if regular:
        first = torch.logsumexp(first[:, :, None] + _label_chains(px64[:, 0]), dim=1)
    rows = [first]
    for step in weights.unbind(1):
        rows.append(torch.logsumexp(rows[-1][:, :, None] + step, dim=1))
    alpha = torch.stack(rows, dim=1)  # (B, T+1, R)

    final = num_labels - start[utterance, num_frames]
    reachable = (final >= 0) & (final < size)
    final = final.clamp(0, size - 1)
    scores = torch.where(reachable, alpha[utterance, num_frames, final], -torch.inf)
    if not occupation:
        return scores, None, None

    # leaving[t, r] = P(the path leaves frame t from state r): one state per frame, so a Markov chain
    # backwards in time whose transition probabilities are known once alpha is.
    back = torch.nan_to_num_(
        torch.exp(alpha[:, :-1, :, None] + weights - alpha[:, 1:, None, :]), nan=0.0, posinf=0.0
    )
    leaving = torch.zeros_like(alpha)
    leaving[utterance, num_frames, final] = torch.isfinite(scores).to(alpha.dtype)
    leaving_rows, back_rows = leaving.unsqueeze(-1).unbind(1), back.unbind(1)
    for t in range(frames - 1, -1, -1):
        leaving_rows[t].baddbmm_(back_rows[t], leaving_rows[t + 1])
    if regular:
        leaving[utterance, num_frames, final] = 0.0  # the marker of the end is no blank of frame T_b
        gy = leaving[:, :-1]
        gx = torch.zeros_like(gy)
        by_label = torch.nan_to_num_(
            torch.exp(alpha[:, :-1, :-1] + px64[:, :-1, :-1] - alpha[:, :-1, 1:]), nan=0.0
        )
        for r in range(size - 1, 0, -1):
            gx[..., r - 1] = (gy[..., r] + gx[..., r]) * by_label[..., r - 1]
    else:
        flow = back * leaving[:, 1:, None, :]
        target = state - shift[..., None]  # (B, T, R): where a blank from r lands
        gy = _moved_column(flow, target)
        gx = _moved_column(flow, target + 1)
    return scores, gx.to(px.dtype), gy.to(py.dtype)


def _moved_column(flow: Tensor, target: Tensor) -> Tensor:
    """flow (B, T, R_from, R_to) at column ``target`` (B, T, R_from); 0 outside the window."""
    size = flow.shape[-1]
    inside = (target >= 0) & (target < size)
    picked = torch.gather(flow, -1, target.clamp(0, size - 1)[..., None]).squeeze(-1)
    return torch.where(inside, picked, 0.0)


class _BandScore(torch.autograd.Function):
    @staticmethod
    def forward(ctx, px, py, start, num_labels, num_frames, regular, solve):
        needed = px.requires_grad or py.requires_grad
        scores, gx, gy = solve(px, py, start, num_labels, num_frames, regular, needed)
        if needed:
            ctx.save_for_backward(gx, gy)
        return scores.to(py.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_scores):
        gx, gy = ctx.saved_tensors
        weight = grad_scores[:, None, None]
        return weight * gx, weight * gy, None, None, None, None, None


def band_score(
    px: Tensor,
    py: Tensor,
    start: Tensor,
    num_labels: Tensor,
    num_frames: Tensor,
    regular: bool,
    solve: Solver = solve_band,
) -> Tensor:
    """Log-probability of all paths inside the band (spec rnnt §4), with its exact gradient.

    Args:
      px, py: (B, T, R) log-probabilities of the label and of blank in state (start[t] + r, t); -inf where
        the state or the arc does not exist (s >= S_b for labels; t >= T_b for labels if ``regular``).
      start: (B, T) int64, first state of each frame's window; not decreasing within an utterance.
      num_labels, num_frames: (B,) int64.
      regular: a label stays on its frame (True) or consumes it (False).
      solve: what walks through the band.

    Returns:
      (B,) scores; -inf if no path fits into the band (then without gradient).
    """
    return _BandScore.apply(px, py, start, num_labels, num_frames, regular, solve)
