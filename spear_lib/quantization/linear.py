"""Units of a trained classifier behind the quantiser's interface: a frame's token is its most probable code.

SpidR's heads are such classifiers (spec spidr §9: units come from the student's heads, not from nearest
codes).

Legend: K codes, D channels.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spear_lib.quantization.storage import content_id, read_quantizer, write_quantizer


class LinearUnits(nn.Module):
    """One linear classifier over the channels of a layer; saves and identifies itself as ``Quantizer`` does.

    Attributes:
      weight, bias: (K, D) and (K,).
      provenance: free JSON-able facts that travel with the file.
    """

    kind = "linear"
    num_codebooks = 1

    def __init__(self, dim: int, codebook_size: int):
        super().__init__()
        if dim < 1 or not 2 <= codebook_size <= 65536:
            raise ValueError(
                f"a classifier of {codebook_size} codes over {dim} channels: 2 to 65536 codes, so that a "
                "token fits in two bytes, over at least 1 channel"
            )
        self.dim, self.codebook_size = dim, codebook_size
        self.register_buffer("weight", torch.zeros(codebook_size, dim))
        self.register_buffer("bias", torch.zeros(codebook_size))
        self.provenance: dict[str, Any] = {}

    @property
    def field_suffix(self) -> str:
        """End of the token field's name on a cut: ``spear_l5_head256``."""
        return f"head{self.codebook_size}"

    @property
    def id(self) -> str:
        """16 hex digits of a hash over sizes and all tensors."""
        return content_id([self.kind, self.dim, self.codebook_size], self.state_dict())

    def save(self, path: str | Path) -> Path:
        """Write ``path`` (a folder: its quantizer.safetensors) aside and rename it."""
        return write_quantizer(self, path)

    @classmethod
    def load(cls, path: str | Path) -> "LinearUnits":
        """Read what ``save`` wrote. The content hash is verified."""
        state, facts = read_quantizer(path, cls.kind)
        result = cls(facts["dim"], facts["codebook_size"])
        result.load_state_dict(state)
        result.provenance = facts["provenance"]
        if result.id != facts["id"]:
            raise ValueError(
                f"{path}: the tensors hash to {result.id} but the file says id {facts['id']}; the file was "
                "changed or damaged, make it again"
            )
        return result

    @torch.no_grad()
    def posteriors(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., K) float32, how probable every code is."""
        return (x.float() @ self.weight.t() + self.bias).softmax(-1)

    @torch.no_grad()
    def encode(self, x: Tensor, refine_iters: int = 0) -> Tensor:
        """(..., D) -> (..., 1) uint8, or uint16 for more than 256 codes; there is nothing to refine."""
        if x.shape[-1] != self.dim:
            raise ValueError(f"embeddings have {x.shape[-1]} channels but the classifier reads {self.dim}")
        if not torch.isfinite(x).all():
            raise ValueError(
                "embeddings contain NaN or infinity; find the recording that made them and drop it"
            )
        codes = (x.float() @ self.weight.t() + self.bias).argmax(-1, keepdim=True)
        return codes.to(torch.uint8 if self.codebook_size <= 256 else torch.uint16)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes of a classifier stand for no vectors: ValueError."""
        raise ValueError(
            "the codes of a classifier head have no vectors to decode to; use k-means of the same layer "
            "(train_quantizer --kind kmeans) where vectors are needed"
        )
