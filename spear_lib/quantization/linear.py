"""Units of a trained classifier behind the quantiser's interface: a frame's token is its most probable code.

SpidR's heads are such classifiers (spec spidr §9: units come from the student's heads, not from nearest
codes).

Legend: K codes, D channels.
"""

import torch
from torch import Tensor

from spear_lib.quantization.single_codebook import SingleCodebook


class LinearUnits(SingleCodebook):
    """One linear classifier over the channels of a layer; saves and identifies itself as ``Quantizer`` does.

    Attributes:
      weight, bias: (K, D) and (K,).
    """

    kind = "linear"
    title = "classifier"
    suffix = "head"

    def __init__(self, dim: int, codebook_size: int):
        super().__init__(dim, codebook_size)
        self.register_buffer("weight", torch.zeros(codebook_size, dim))
        self.register_buffer("bias", torch.zeros(codebook_size))

    @torch.no_grad()
    def posteriors(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., K) float32, how probable every code is."""
        return (x.float() @ self.weight.t() + self.bias).softmax(-1)

    @torch.no_grad()
    def encode(self, x: Tensor, refine_iters: int = 0) -> Tensor:
        """(..., D) -> (..., 1) uint8, or uint16 for more than 256 codes; there is nothing to refine."""
        self.check_input(x)
        return self.tokens((x.float() @ self.weight.t() + self.bias).argmax(-1, keepdim=True))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes of a classifier stand for no vectors: ValueError."""
        raise ValueError(
            "the codes of a classifier head have no vectors to decode to; use k-means of the same layer "
            "(train_quantizer --kind kmeans) where vectors are needed"
        )
