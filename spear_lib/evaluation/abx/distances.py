"""Distances of segments by dynamic time warping, thousands at a time.

Cost of the cheapest path of steps (1,1), (1,0), (0,1), divided by the number of its cells; of equally cheap
paths the one that, from the end, prefers the diagonal, then a step in the second segment (spec §5.1).

Legend: F, G frames, D channels, P pairs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 4096
"""Pairs that are warped together: their costs stay in the cache of a CPU."""


@dataclass(frozen=True)
class Distance:
    """Of frames: ``between(prepare(x), prepare(y))``, where all frames are prepared once."""

    between: Callable[[Tensor, Tensor], Tensor]
    """(F, D), (G, D) -> (F, G) float."""
    prepare: Callable[[Tensor], Tensor] = lambda x: x
    """(F, D) -> (F, D)."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """(F, D), (G, D) -> (F, G)."""
        return self.between(self.prepare(x), self.prepare(y))


def _unit_length(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def _angles(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T).clamp_(-1.0, 1.0).acos_().div_(math.pi)


def _euclidean(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _differing(x: Tensor, y: Tensor) -> Tensor:
    different = torch.zeros(len(x), len(y), device=x.device)
    for codebook in range(x.shape[1]):
        different += x[:, codebook, None] != y[None, :, codebook]
    return different / x.shape[1]


DISTANCES = {
    "angular": Distance(_angles, _unit_length),
    "euclidean": Distance(_euclidean),
    "units": Distance(_differing),
}
"""angular: the angle over pi, a zero vector is at 1/2 from all. units: of C codebooks (F, C), the share of
those that differ."""


def warp(blocks: Sequence[Tensor], origins: Tensor, strides: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Distances of pairs of segments.

    Args:
      blocks: (F, G) distances of frames, each.
      origins: (P,) int64, where the first frames of both segments meet, in all blocks one after the other.
      strides: (P,) int64, from there to the second frame of the first segment.
      rows, columns: (P,) int64, frames of the first and of the second segment; a row lies in one piece.

    Returns:
      (P,) as ``blocks``.
    """
    # What lies beyond a shorter segment of a chunk is read too, and not used.
    beyond = int(rows.max()) * int(strides.max()) + int(columns.max())
    flat = torch.cat([*(block.flatten() for block in blocks), blocks[0].new_zeros(beyond)])
    result = flat.new_empty(len(origins))
    # Pairs of similar size together.
    order = (rows * 1024 + columns).argsort(stable=True)
    for start in range(0, len(order), CHUNK):
        chosen = order[start : start + CHUNK]
        result[chosen] = _warp_chunk(flat, *(each[chosen] for each in (origins, strides, rows, columns)))
    return result


def _warp_chunk(flat: Tensor, origins: Tensor, strides: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Diagonal by diagonal: cell (i, k - i) of all pairs at once."""
    count, longest, broadest = len(rows), int(rows.max()), int(columns.max())
    ends = rows + columns - 2
    result = flat.new_empty(count)
    index = torch.arange(longest, device=flat.device).unsqueeze(1)
    places = origins + index * (strides - 1)
    # Row i of a diagonal stands at i + 1. The three last diagonals take turns, and only what a diagonal has
    # is written: the places before its first row and behind its last are still infinite when they are read.
    costs = [flat.new_full((longest + 2, count), math.inf) for _ in range(3)]
    sizes = [torch.zeros(longest + 2, count, dtype=torch.int16, device=flat.device) for _ in range(3)]
    for k in range(longest + broadest - 1):
        first, behind = max(0, k - broadest + 1), min(k, longest - 1) + 1
        here, above = slice(first + 1, behind + 1), slice(first, behind)
        at = places[first:behind] + k
        local = flat.index_select(0, at.view(-1)).view(at.shape)
        cost, size = costs[k % 3][here], sizes[k % 3][here]
        if k == 0:
            cost.copy_(local)
            size.fill_(1)
        else:
            diagonal, second, one = costs[k % 3 - 2][above], costs[k % 3 - 1][here], costs[k % 3 - 1][above]
            best = torch.minimum(torch.minimum(diagonal, second), one)
            steps = torch.where(
                diagonal == best,
                sizes[k % 3 - 2][above],
                torch.where(second == best, sizes[k % 3 - 1][here], sizes[k % 3 - 1][above]),
            )
            torch.add(best, local, out=cost)
            torch.add(steps, 1, out=size)
        done = (ends == k).nonzero().flatten()
        if len(done):
            last = rows[done]
            result[done] = costs[k % 3][last, done] / sizes[k % 3][last, done]
    return result
