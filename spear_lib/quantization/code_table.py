"""The code vectors of a quantiser as the search needs them: their Gram matrix and its parts (ours).

Legend: as in search.py.
"""

import torch
from torch import Tensor


def candidates_kept(num_joined: int, codebook_size: int) -> int:
    """How many candidates a group of ``num_joined`` codebooks keeps: min(128, base * 2^floor(log4 L))."""
    base = 8 if codebook_size <= 16 else 16
    return min(128, base * 2 ** ((num_joined.bit_length() - 1) // 2))


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
