"""The refinement search of the multi-codebook quantiser, in Gram form (Guo et al. 2023; the Gram form is
ours).

Legend: B frames, N codebooks, K entries each, D channels, C the (N*K, D) matrix of code vectors, G = C C^T,
h = x C^T, j = n*K + k the row of entry k of codebook n, i_n the row that codebook n uses at present.

With S_j = sum_n G[i_n, j] and r_j = S_j - h_j = <x^ - x, c_j>, changing codebook n alone to entry k changes
the squared error by  delta[n, k] = 2 (r_j - r_{i_n}) + G[j, j] + G[i_n, i_n] - 2 G[i_n, j];  two groups of
codebooks changed together cost  delta_a + delta_b + 2 X(a, b)  with X(a, b) = <Delta_a, Delta_b>, where Delta
is the change of the decoded vector, again a sum of entries of G. So nothing of size D is touched per frame
and candidate.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def candidates_kept(num_joined: int, codebook_size: int) -> int:
    """How many candidates a group of ``num_joined`` codebooks keeps: min(128, base * 2^floor(log4 L))."""
    base = 8 if codebook_size <= 16 else 16
    return min(128, base * 2 ** ((num_joined.bit_length() - 1) // 2))


@dataclass
class _Group:
    """Candidates for L neighbouring codebooks: rows (B, J, L), delta (B, J), now (B, L)."""

    rows: Tensor
    delta: Tensor
    now: Tensor


class CodeTable:
    """Everything of the code vectors that the search needs, computed once per quantiser."""

    def __init__(self, centers: Tensor):
        """Args: centers: (N, K, D) float32, effective (scaled) code vectors."""
        self.num_codebooks, self.codebook_size, self.dim = centers.shape
        self.vectors = centers.reshape(-1, self.dim).float().contiguous()  # (N*K, D)
        self.gram = self.vectors @ self.vectors.T  # (N*K, N*K)
        self.energy = self.gram.diagonal().contiguous()  # (N*K,)
        blocks = self.gram.view(
            self.num_codebooks, self.codebook_size, self.num_codebooks, self.codebook_size
        )
        steps = torch.arange(self.num_codebooks, device=centers.device)
        self.own_block = blocks[steps, :, steps, :].reshape(-1, self.codebook_size).contiguous()  # (N*K, K)
        self.first_row = steps * self.codebook_size  # (N,)

    def bytes_per_frame(self) -> int:
        """Peak working memory of the search per frame (an estimate from the largest tables)."""
        rows = self.num_codebooks * self.codebook_size
        kept = candidates_kept(max(1, self.num_codebooks // 2), self.codebook_size)
        return 20 * rows + 24 * kept * kept + 8 * self.dim

    def project(self, x: Tensor) -> Tensor:
        """h = x C^T: (B, D) -> (B, N*K)."""
        return x @ self.vectors.T


def refine(
    table: CodeTable, h: Tensor, codes: Tensor, num_iterations: int, keep_best: bool = False
) -> Tensor:
    """Improve ``codes`` by ``num_iterations`` rounds of the pairwise beam search.

    Args:
      h: (B, N*K) inner products of the frames with all code vectors.
      codes: (B, N) int64, the starting point.
      keep_best: return the best of all rounds, the start included. The search is not monotone, so this is
        never worse; off by default because the reference returns the last round (golden parity).

    Returns:
      (B, N) int64.
    """
    rows = codes + table.first_row
    best, best_error = rows, None
    for round_index in range(num_iterations + int(keep_best)):
        # S: one sum of N rows of G per frame.
        residual = F.embedding_bag(rows, table.gram, mode="sum") - h  # r, (B, N*K)
        if keep_best:
            # |x^ - x|^2 - |x|^2 = sum_n (r - h) at the present rows.
            error = (residual - h).gather(1, rows).sum(dim=1)
            if best_error is None:
                best_error = error
            else:
                better = error < best_error
                best = torch.where(better.unsqueeze(1), rows, best)
                best_error = torch.where(better, error, best_error)
            if round_index == num_iterations:
                return best - table.first_row
        rows = _one_round(table, residual, rows)
    return rows - table.first_row


def error_of(table: CodeTable, h: Tensor, codes: Tensor) -> Tensor:
    """|x^ - x|^2 - |x|^2 per frame, (B,), without decoding."""
    rows = codes + table.first_row
    residual = F.embedding_bag(rows, table.gram, mode="sum") - h
    return (residual - h).gather(1, rows).sum(dim=1)


def _one_round(table: CodeTable, residual: Tensor, rows: Tensor) -> Tensor:
    """One round: single changes, then neighbours merged until one group is left. Returns rows (B, N)."""
    groups = _single_changes(table, residual, rows)
    while len(groups) > 1:
        pairs = len(groups) // 2
        last = len(groups) <= 2
        merged = [_merge(table, groups[2 * p], groups[2 * p + 1], last) for p in range(pairs)]
        # An odd group out waits for the next level as it is.
        groups = merged + groups[2 * pairs :]
    return groups[0].rows[:, 0, :]


def _single_changes(table: CodeTable, residual: Tensor, rows: Tensor) -> list[_Group]:
    num_codebooks, size = table.num_codebooks, table.codebook_size
    delta = 2 * residual + table.energy  # (B, N*K)
    present = table.energy[rows] - 2 * residual.gather(1, rows)  # (B, N)
    delta = delta.view(-1, num_codebooks, size) + present.unsqueeze(2)
    delta -= 2 * table.own_block[rows]
    keep = 1 if num_codebooks == 1 else min(size, candidates_kept(1, size))
    if num_codebooks > 1 and size <= candidates_kept(1, size):
        best, entries = delta, torch.arange(size, device=rows.device).expand_as(delta)
    else:
        best, entries = delta.topk(keep, dim=2, largest=False)
    candidates = entries + table.first_row[:, None]  # (B, N, J)
    return [
        _Group(rows=candidates[:, n, :, None], delta=best[:, n], now=rows[:, n : n + 1])
        for n in range(num_codebooks)
    ]


def _merge(table: CodeTable, a: _Group, b: _Group, last: bool) -> _Group:
    """All pairs of candidates of two neighbouring groups, cut to the best."""
    cross = _cross_terms(table, a, b)
    delta = (cross.mul_(2).add_(a.delta.unsqueeze(2)).add_(b.delta.unsqueeze(1))).flatten(1)  # (B, Ja*Jb)
    num_joined = a.now.shape[1] + b.now.shape[1]
    limit = 1 if last else candidates_kept(num_joined, table.codebook_size)
    if delta.shape[1] > limit:
        delta, order = delta.topk(limit, dim=1, largest=False)
    else:
        order = torch.arange(delta.shape[1], device=delta.device).expand_as(delta)
    from_a = (order // b.delta.shape[1]).unsqueeze(2)
    from_b = (order % b.delta.shape[1]).unsqueeze(2)
    rows = torch.cat([_take(a.rows, from_a), _take(b.rows, from_b)], dim=2)
    return _Group(rows=rows, delta=delta, now=torch.cat([a.now, b.now], dim=1))


def _take(source: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (B, J', 1) of ``source`` (B, J, X) -> (B, J', X)."""
    return source.gather(1, index.expand(-1, -1, source.shape[2]))


def _cross_terms(table: CodeTable, a: _Group, b: _Group) -> Tensor:
    """X(a, b) = Y(a, b) - u_a - v_b + w from entries of G, (B, Ja, Jb)."""
    flat, width = table.gram.view(-1), table.gram.shape[0]
    total = None
    for left in range(a.rows.shape[2]):
        base = a.rows[:, :, left, None] * width
        for right in range(b.rows.shape[2]):
            part = flat[base + b.rows[:, None, :, right]]
            total = part if total is None else total.add_(part)
    if total is None:
        raise RuntimeError("a group of codebooks is empty; this is a programming error of the search")
    u = flat[a.rows.unsqueeze(3) * width + b.now[:, None, None, :]].sum(dim=(2, 3))
    v = flat[b.rows.unsqueeze(3) * width + a.now[:, None, None, :]].sum(dim=(2, 3))
    w = flat[a.now.unsqueeze(2) * width + b.now.unsqueeze(1)].sum(dim=(1, 2))
    return total - u.unsqueeze(2) - v.unsqueeze(1) + w[:, None, None]
