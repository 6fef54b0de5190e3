"""What turns frame embeddings into tokens, whichever kind it is: what the token stages rely on."""

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from spear_lib.quantization.kmeans import KMeans
from spear_lib.quantization.quantizer import Quantizer
from spear_lib.quantization.storage import read_quantizer


class Tokeniser(Protocol):
    """The interface that ``Quantizer`` and ``KMeans`` share."""

    kind: str
    """mvq or kmeans."""
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

    def save(self, path: str | Path) -> Path:
        """Write to a file or folder."""


KINDS: dict[str, type[nn.Module]] = {Quantizer.kind: Quantizer, KMeans.kind: KMeans}


def load_tokeniser(path: str | Path) -> Quantizer | KMeans:
    """The multi-codebook quantiser or the k-means at ``path`` (a file, or a folder with
    quantizer.safetensors)."""
    kind = read_quantizer(path)[1]["kind"]
    if kind not in KINDS:
        raise ValueError(f"{path} holds a tokeniser of kind {kind!r}; this version knows {', '.join(KINDS)}")
    return KINDS[kind].load(path)
