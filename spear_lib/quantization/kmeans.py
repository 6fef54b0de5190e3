"""k-means tokens: the baseline of the paper's ablation (appendix F.4), behind the quantiser's interface.

Legend: B frames, K clusters, D channels. A frame's token is the number of the nearest centre, so there is one
codebook, of any size up to 65536; above 256 the tokens are uint16.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spear_lib.quantization.initialisation import nearest
from spear_lib.quantization.storage import content_id, read_quantizer, write_quantizer

MAX_CLUSTERS = 65536


class KMeans(nn.Module):
    """K centres over D channels; encodes, decodes, saves and identifies itself as ``Quantizer`` does.

    Attributes:
      centers: (K, D) in normalised space.
      shares: (K,) part of the training frames in each cluster.
      mean, std: (D,) normalisation of the embeddings; 0 and 1 where none is wanted.
      provenance: free JSON-able facts that travel with the file.
    """

    kind = "kmeans"
    num_codebooks = 1

    def __init__(self, dim: int, codebook_size: int):
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim is {dim}: k-means needs at least 1 channel")
        if not 2 <= codebook_size <= MAX_CLUSTERS:
            raise ValueError(
                f"codebook_size is {codebook_size}: it must be in 2..{MAX_CLUSTERS} so that a token fits in "
                "two bytes"
            )
        self.dim, self.codebook_size = dim, codebook_size
        self.register_buffer("centers", torch.zeros(codebook_size, dim))
        self.register_buffer("shares", torch.full((codebook_size,), 1 / codebook_size))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.provenance: dict[str, Any] = {}

    @property
    def field_suffix(self) -> str:
        """End of the token field's name on a cut: ``wavlm_large_l21_km2000``."""
        return f"km{self.codebook_size}"

    @property
    def id(self) -> str:
        """16 hex digits of a hash over sizes and all tensors."""
        return content_id([self.kind, self.dim, self.codebook_size], self.state_dict())

    def save(self, path: str | Path) -> Path:
        """Write ``path`` (a folder: its quantizer.safetensors) aside and rename it."""
        return write_quantizer(self, path)

    @classmethod
    def load(cls, path: str | Path) -> "KMeans":
        """Read what ``save`` wrote. The content hash is verified."""
        state, facts = read_quantizer(path, cls.kind)
        result = cls(facts["dim"], facts["codebook_size"])
        result.load_state_dict(state)
        result.provenance = facts["provenance"]
        if result.id != facts["id"]:
            raise ValueError(
                f"{path}: the tensors hash to {result.id} but the file says id {facts['id']}; the file was "
                "changed or damaged, restore it or train the k-means again"
            )
        return result

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
        if x.shape[-1] != self.dim:
            raise ValueError(
                f"embeddings have {x.shape[-1]} channels but the k-means was trained for {self.dim}"
            )
        flat = x.reshape(-1, self.dim)
        if not torch.isfinite(flat).all():
            raise ValueError(
                "embeddings contain NaN or infinity; find the recording that made them and drop it"
            )
        flat = flat.float() if normalised else self.normalise(flat)
        chunk = max(1, memory_budget_mb * 2**20 // (4 * self.codebook_size))
        codes = nearest(flat, self.centers, chunk)
        dtype = torch.uint8 if self.codebook_size <= 256 else torch.uint16
        return codes.to(dtype).view(*x.shape[:-1], 1)

    def decode(self, codes: Tensor, *, normalised: bool = False) -> Tensor:
        """(..., 1) tokens -> (..., D) float32 centres, in the embeddings' own scale unless ``normalised``."""
        if codes.shape[-1] != 1:
            raise ValueError(f"codes have {codes.shape[-1]} codebooks but k-means has 1")
        vectors = self.centers[codes.squeeze(-1).long()]
        return vectors if normalised else vectors * self.std + self.mean
