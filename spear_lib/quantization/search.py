"""The refinement search of the multi-codebook quantiser, in Gram form (Guo et al. 2023; the Gram form is
ours).

Legend: B frames, N codebooks, K entries each, D channels, C the (N*K, D) matrix of code vectors, G = C C^T,
h = x C^T, j = n*K + k the row of entry k of codebook n, i_n the row that codebook n uses at present.

With S_j = sum_n G[i_n, j] and r_j = S_j - h_j = <x^ - x, c_j>, changing codebook n alone to entry k changes
the squared error by  delta[n, k] = 2 (r_j - r_{i_n}) + G[j, j] + G[i_n, i_n] - 2 G[i_n, j];  two groups of
codebooks changed together cost  delta_a + delta_b + 2 X(a, b)  with X(a, b) = <Delta_a, Delta_b>, where Delta
is the change of the decoded vector. X is read from G once, for the kept candidates of single codebooks; when
neighbours are joined, the X of the joined groups are sums of four X of their parts. So nothing of size D is
touched per frame and candidate, and G itself only once per round.

This module is what callers use; search_rounds.py holds the rounds themselves.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from spear_lib.quantization.code_table import CodeTable
from spear_lib.quantization.search_rounds import refine_rows


def chunk_of(table: CodeTable, memory_budget_mb: int | None = None) -> int:
    """Frames per call of the search: short on a CPU (its cache), long on a GPU, never above the budget.

    Args:
      memory_budget_mb: working memory; None: 256 MB on a CPU, 2 GB on a GPU.
    """
    on_cpu = table.gram.device.type == "cpu"
    budget = memory_budget_mb or (256 if on_cpu else 2048)
    return int(max(1, min(512 if on_cpu else 32768, budget * 2**20 // table.bytes_per_frame())))


def refine(
    table: CodeTable, h: Tensor, codes: Tensor, num_iterations: int, keep_best: bool = False
) -> Tensor:
    """Improve ``codes`` by ``num_iterations`` rounds of the pairwise beam search.

    A frame whose codes a round did not change is left alone from then on: further rounds could not change it.

    Args:
      h: (B, N*K) inner products of the frames with all code vectors.
      codes: (B, N) int64, the starting point.
      keep_best: return the best of all rounds, the start included. The search is not monotone, so this is
        never worse; off by default because the reference returns the last round (golden parity).

    Returns:
      (B, N) int64.
    """
    rows = codes + table.first_row
    if num_iterations > 0 and len(rows) > 0:
        rows = refine_rows(table, h, rows, num_iterations, keep_best)
    return rows - table.first_row


def greedy(table: CodeTable, h: Tensor) -> Tensor:
    """Codes (B, N) of frames with inner products h: each codebook in turn lowers the error most."""
    delta = table.energy - 2 * h  # (B, N*K): what adding one more code vector changes the error by
    codes = []
    for codebook, first in enumerate(range(0, len(table.vectors), table.codebook_size)):
        own = delta[:, first : first + table.codebook_size].argmin(dim=1)
        codes.append(own)
        if codebook + 1 < table.num_codebooks:
            delta += 2 * table.gram.index_select(0, own + first)
    return torch.stack(codes, dim=1)


def error_of(table: CodeTable, h: Tensor, codes: Tensor) -> Tensor:
    """|x^ - x|^2 - |x|^2 per frame, (B,), without decoding."""
    rows = codes + table.first_row
    residual = F.embedding_bag(rows, table.gram, mode="sum") - h
    return (residual - h).gather(1, rows).sum(dim=1)
