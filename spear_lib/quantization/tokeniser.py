"""What turns frame embeddings into tokens, whichever kind it is: what files and the token stages rely on."""

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor


class Tokeniser(Protocol):
    """The interface that ``Quantizer``, ``KMeans`` and ``LinearUnits`` share; the codes of the last have no
    vectors."""

    kind: str
    """mvq, kmeans or linear."""
    dim: int
    """Channels of the teacher's embeddings."""
    num_codebooks: int
    """Codes per frame."""
    codebook_size: int
    """Codes are 0..codebook_size-1; above 256 the tokens are uint16."""
    field_suffix: str
    """End of the token field's name on a cut: cb16, km2000."""
    id: str
    """Hash of everything that decides the tokens."""
    provenance: dict[str, Any]
    """Teacher and training; dump_tokens makes the same teacher from it."""

    def encode(self, x: Tensor, refine_iters: int = 5) -> Tensor:
        """(..., D) embeddings -> (..., N) codes."""

    def decode(self, codes: Tensor) -> Tensor:
        """(..., N) codes -> (..., D) embeddings."""

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by name."""

    def save(self, path: str | Path) -> Path:
        """Write to a file or folder."""
