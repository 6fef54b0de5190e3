"""Distances of segments by dynamic time warping, thousands at a time.

Cost of the cheapest path of steps (1,1), (1,0), (0,1), divided by the number of its cells; of equally cheap
paths the one that, from the end, prefers the diagonal, then a step in the second segment (spec §5.1).

Legend: F frames of a block, D channels, P pairs, L frames of a segment.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 4096
"""Pairs that are warped together: their costs stay in the cache of a CPU."""


def angular(x: Tensor, y: Tensor) -> Tensor:
    """(F, D), (G, D) -> (F, G): the angle between vectors over pi; a zero vector is at 1/2 from all."""
    x, y = (z / z.norm(dim=1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny) for z in (x, y))
    return (x @ y.T).clamp_(-1.0, 1.0).acos_().div_(math.pi)


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """(F, D), (G, D) -> (F, G)."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def differing(x: Tensor, y: Tensor) -> Tensor:
    """Units of C codebooks (F, C), (G, C) -> (F, G): share of the codebooks that differ, 0 or 1 for one."""
    different = torch.zeros(len(x), len(y), device=x.device)
    for codebook in range(x.shape[1]):
        different += x[:, codebook, None] != y[None, :, codebook]
    return different / x.shape[1]


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "angular": angular,
    "euclidean": euclidean,
    "units": differing,
}


def warp(frames: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Distances of pairs of segments.

    Args:
      frames: (F, G) distances of frames.
      rows, columns: (P, 2) int64: first frame and length of each pair's first segment, among the rows of
        ``frames``, and of its second one, among the columns.

    Returns:
      (P,) as ``frames``.
    """
    result = frames.new_empty(len(rows))
    # Pairs of similar size together.
    order = (rows[:, 1] * 1024 + columns[:, 1]).argsort()
    for start in range(0, len(order), CHUNK):
        chosen = order[start : start + CHUNK]
        result[chosen] = _warp_chunk(frames, rows[chosen], columns[chosen])
    return result


def _warp_chunk(frames: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Diagonal by diagonal: cell (i, k - i) of all pairs at once."""
    flat, width = frames.reshape(-1), frames.shape[1]
    count = len(rows)
    longest, broadest = int(rows[:, 1].max()), int(columns[:, 1].max())
    origin = rows[:, 0] * width + columns[:, 0]
    last = rows[:, 1] - 1
    ends = last + columns[:, 1] - 1
    result = frames.new_empty(count)
    # Column i + 1 holds row i of a diagonal; column 0 and what a diagonal lacks are never on a path.
    blank = frames.new_full((longest + 1, count), math.inf)
    costs = [blank.clone(), blank.clone()]
    sizes = [torch.zeros_like(blank), torch.zeros_like(blank)]
    index = torch.arange(longest, device=frames.device).unsqueeze(1)
    for k in range(longest + broadest - 1):
        first, behind = max(0, k - broadest + 1), min(k, longest - 1) + 1
        place = (origin + k + index[first:behind] * (width - 1)).clamp_(max=flat.numel() - 1)
        local = flat[place]
        cost, size = blank.clone(), torch.zeros_like(blank)
        if k == 0:
            cost[1], size[1] = local[0], 1.0
        else:
            diagonal = costs[0][first:behind]
            second, one = costs[1][first + 1 : behind + 1], costs[1][first:behind]
            best = torch.minimum(torch.minimum(diagonal, second), one)
            steps = torch.where(
                diagonal == best,
                sizes[0][first:behind],
                torch.where(second == best, sizes[1][first + 1 : behind + 1], sizes[1][first:behind]),
            )
            cost[first + 1 : behind + 1] = best + local
            size[first + 1 : behind + 1] = steps + 1.0
        done = (ends == k).nonzero().flatten()
        if len(done):
            at = last[done] + 1
            result[done] = cost[at, done] / size[at, done]
        costs, sizes = [costs[1], cost], [sizes[1], size]
    return result
