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

There are two kernels with the same order of additions and the same treatment of ties, hence the same codes:
plain PyTorch (search_torch.py; any device) and compiled (search_compiled.py; CPU, needs numba).
"""

import functools
import importlib
import logging
import os

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

KERNELS = ("auto", "torch", "compiled")


def candidates_kept(num_joined: int, codebook_size: int) -> int:
    """How many candidates a group of ``num_joined`` codebooks keeps: min(128, base * 2^floor(log4 L))."""
    base = 8 if codebook_size <= 16 else 16
    return min(128, base * 2 ** ((num_joined.bit_length() - 1) // 2))


def chunk_of(table: "CodeTable", memory_budget_mb: int | None = None) -> int:
    """Frames per call of the search: short on a CPU (its cache), long on a GPU, never above the budget.

    Args:
      memory_budget_mb: working memory; None: 256 MB on a CPU, 2 GB on a GPU.
    """
    on_cpu = table.gram.device.type == "cpu"
    budget = memory_budget_mb or (256 if on_cpu else 2048)
    return int(max(1, min(512 if on_cpu else 32768, budget * 2**20 // table.bytes_per_frame())))


class CodeTable:
    """Everything of the code vectors that the search needs, computed once per quantiser."""

    def __init__(self, centers: Tensor):
        """Args: centers: (N, K, D) float32, effective (scaled) code vectors."""
        self.num_codebooks, self.codebook_size, self.dim = centers.shape
        self.vectors = centers.reshape(-1, self.dim).float().contiguous()  # (N*K, D)
        self.gram = _gram(self.vectors)  # (N*K, N*K)
        self.energy = self.gram.diagonal().contiguous()  # (N*K,)
        blocks = self.gram.view(
            self.num_codebooks, self.codebook_size, self.num_codebooks, self.codebook_size
        )
        steps = torch.arange(self.num_codebooks, device=centers.device)
        self.own_block = blocks[steps, :, steps, :].reshape(-1, self.codebook_size).contiguous()  # (N*K, K)
        self.first_row = steps * self.codebook_size  # (N,)

    def bytes_per_frame(self) -> int:
        """Peak working memory of the plain search per frame (an estimate from its largest tables)."""
        rows = self.num_codebooks * self.codebook_size
        candidates = self.num_codebooks * min(self.codebook_size, candidates_kept(1, self.codebook_size))
        return 48 * rows + 8 * candidates * candidates + 8 * self.dim

    def project(self, x: Tensor) -> Tensor:
        """h = x C^T: (B, D) -> (B, N*K)."""
        return x @ self.vectors.T


def _gram(vectors: Tensor, pieces: int = 8) -> Tensor:
    """V V^T of V (M, D), (M, M): a little more than half of it computed, the rest copied.

    A training of codes by gradient needs a new one in every step.
    """
    gram = vectors.new_empty(len(vectors), len(vectors))
    step = -(-len(vectors) // pieces)
    for begin in range(0, len(vectors), step):
        end = min(begin + step, len(vectors))
        torch.mm(vectors[begin:end], vectors[begin:].T, out=gram[begin:end, begin:])
        gram[end:, begin:end] = gram[begin:end, end:].T
    return gram


@functools.cache
def _numba_missing() -> str:
    """Why the compiled kernel cannot be used; empty if it can."""
    try:
        importlib.import_module("numba")
    except ImportError as error:
        return f"numba cannot be imported ({error}); pip install numba makes the search several times faster"
    return ""


def choose_kernel(kernel: str, device: torch.device) -> tuple[str, str]:
    """The kernel that will search, ``torch`` or ``compiled``, and why, in words for a log.

    Args:
      kernel: ``auto`` takes the compiled one where it can run. The environment variable
        SPEAR_SEARCH_KERNEL replaces ``auto``.

    Raises:
      ValueError: unknown name, or ``compiled`` where it cannot run.
    """
    source = ""
    if kernel == "auto" and os.environ.get("SPEAR_SEARCH_KERNEL"):
        kernel, source = os.environ["SPEAR_SEARCH_KERNEL"], " (SPEAR_SEARCH_KERNEL)"
    if kernel not in KERNELS:
        raise ValueError(f"the search kernel is {kernel!r}{source}: use one of {', '.join(KERNELS)}")
    if kernel == "torch":
        return "torch", f"asked for{source}"
    obstacle = f"the frames are on {device.type}" if device.type != "cpu" else _numba_missing()
    if not obstacle:
        return "compiled", "numba compiles for this CPU"
    if kernel == "compiled":
        raise ValueError(f"the compiled search{source} cannot run: {obstacle}; use the kernel auto or torch")
    return "torch", obstacle


@functools.cache
def _announce(name: str, reason: str) -> None:
    """Say once per process which kernel searches."""
    logger.info("search kernel of the quantiser: %s (%s)", name, reason)


def refine(
    table: CodeTable,
    h: Tensor,
    codes: Tensor,
    num_iterations: int,
    keep_best: bool = False,
    kernel: str = "auto",
) -> Tensor:
    """Improve ``codes`` by ``num_iterations`` rounds of the pairwise beam search.

    A frame whose codes a round did not change is left alone from then on: further rounds could not change it.

    Args:
      h: (B, N*K) inner products of the frames with all code vectors.
      codes: (B, N) int64, the starting point.
      keep_best: return the best of all rounds, the start included. The search is not monotone, so this is
        never worse; off by default because the reference returns the last round (golden parity).
      kernel: see ``choose_kernel``; the codes are the same.

    Returns:
      (B, N) int64.
    """
    rows = codes + table.first_row
    if num_iterations > 0 and len(rows) > 0:
        name, reason = choose_kernel(kernel, h.device)
        _announce(name, reason)
        if name == "compiled":
            from spear_lib.quantization.search_compiled import refine_rows
        else:
            from spear_lib.quantization.search_torch import refine_rows
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
