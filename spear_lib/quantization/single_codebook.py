"""What tokenisers of one codebook have in common (k-means, classifier heads): sizes, identity, file."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spear_lib.quantization.storage import content_id, read_quantizer, write_quantizer

MAX_CODES = 65536


class SingleCodebook(nn.Module):
    """One codebook of K codes over D channels; saves and identifies itself as ``Quantizer`` does.

    A subclass names its ``kind`` (of the file), its ``title`` (in messages) and the ``suffix`` of its token
    fields, registers its tensors as buffers and encodes.

    Attributes:
      provenance: free JSON-able facts that travel with the file.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    suffix: ClassVar[str]
    num_codebooks = 1

    def __init__(self, dim: int, codebook_size: int):
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim is {dim}: {self.title} needs at least 1 channel")
        if not 2 <= codebook_size <= MAX_CODES:
            raise ValueError(
                f"codebook_size is {codebook_size}: it must be in 2..{MAX_CODES} so that a token fits in "
                "two bytes"
            )
        self.dim, self.codebook_size = dim, codebook_size
        self.provenance: dict[str, Any] = {}

    @property
    def field_suffix(self) -> str:
        """End of the token field's name on a cut: ``km2000`` in ``wavlm_large_l21_km2000``."""
        return f"{self.suffix}{self.codebook_size}"

    @property
    def id(self) -> str:
        """16 hex digits of a hash over sizes and all tensors."""
        return content_id([self.kind, self.dim, self.codebook_size], self.state_dict())

    def save(self, path: str | Path) -> Path:
        """Write ``path`` (a folder: its quantizer.safetensors) aside and rename it."""
        return write_quantizer(self, path)

    @classmethod
    def load(cls, path: str | Path) -> "SingleCodebook":
        """Read what ``save`` wrote. The content hash is verified."""
        state, facts = read_quantizer(path, cls.kind)
        result = cls(facts["dim"], facts["codebook_size"])
        result.load_state_dict(state)
        result.provenance = facts["provenance"]
        if result.id != facts["id"]:
            raise ValueError(
                f"{path}: the tensors hash to {result.id} but the file says id {facts['id']}; the file was "
                "changed or damaged, restore it or make it again"
            )
        return result

    def check_input(self, x: Tensor) -> None:
        """Embeddings (..., D) that have no token: ValueError."""
        if x.shape[-1] != self.dim:
            raise ValueError(
                f"embeddings have {x.shape[-1]} channels but the {self.title} was trained for {self.dim}"
            )
        if not torch.isfinite(x).all():
            raise ValueError(
                "embeddings contain NaN or infinity; find the recording that made them and drop it"
            )

    def tokens(self, codes: Tensor) -> Tensor:
        """Codes as they are stored: uint8, or uint16 for more than 256 of them."""
        return codes.to(torch.uint8 if self.codebook_size <= 256 else torch.uint16)
