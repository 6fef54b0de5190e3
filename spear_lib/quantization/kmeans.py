"""k-means tokens: the baseline of the paper's ablation (appendix F.4), behind the quantiser's interface.

Legend: B frames, K clusters, D channels. A frame's token is the number of the nearest centre, so there is one
codebook, of any size up to 65536; above 256 the tokens are uint16.
"""

import torch
from torch import Tensor

from spear_lib.quantization.initialisation import nearest
from spear_lib.quantization.single_codebook import SingleCodebook


class KMeans(SingleCodebook):
    """K centres over D channels; encodes, decodes, saves and identifies itself as ``Quantizer`` does.

    Attributes:
      centers: (K, D) in normalised space.
      shares: (K,) part of the training frames in each cluster.
      mean, std: (D,) normalisation of the embeddings; 0 and 1 where none is wanted.
    """

    kind = "kmeans"
    title = "k-means"
    suffix = "km"

    def __init__(self, dim: int, codebook_size: int):
        super().__init__(dim, codebook_size)
        self.register_buffer("centers", torch.zeros(codebook_size, dim))
        self.register_buffer("shares", torch.full((codebook_size,), 1 / codebook_size))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / std per channel, float32."""
        return (x.float() - self.mean) / self.std

    def effective_centers(self) -> Tensor:
        """(1, K, D): the only codebook, in normalised space."""
        return self.centers.unsqueeze(0)

    def data_mean(self) -> Tensor:
        """(D,) mean of the decoded training frames, in normalised space."""
        return self.shares @ self.centers

    def codebook_correlations(self) -> Tensor:
        """(1, 1): a codebook overlaps with itself."""
        return torch.ones(1, 1)

    @torch.no_grad()
    def encode(
        self, x: Tensor, refine_iters: int = 0, *, normalised: bool = False, memory_budget_mb: int = 256
    ) -> Tensor:
        """Tokens of frames: the nearest centre of each.

        Args:
          x: (..., D) float embeddings of the teacher.
          refine_iters: taken for the common interface; the nearest centre needs no refinement.
          normalised: x is already (x - mean) / std.
          memory_budget_mb: working memory; frames are worked on in chunks that fit.

        Returns:
          (..., 1) uint8, or uint16 for more than 256 clusters.
        """
        self.check_input(x)
        flat = x.reshape(-1, self.dim)
        flat = flat.float() if normalised else self.normalise(flat)
        chunk = max(1, memory_budget_mb * 2**20 // (4 * self.codebook_size))
        codes = nearest(flat, self.centers, chunk)
        return self.tokens(codes).view(*x.shape[:-1], 1)

    def decode(self, codes: Tensor, *, normalised: bool = False) -> Tensor:
        """(..., 1) tokens -> (..., D) float32 centres, in the embeddings' own scale unless ``normalised``."""
        if codes.shape[-1] != 1:
            raise ValueError(f"codes have {codes.shape[-1]} codebooks but k-means has 1")
        vectors = self.centers[codes.squeeze(-1).long()]
        return vectors if normalised else vectors * self.std + self.mean
