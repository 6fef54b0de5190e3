"""Frame embeddings to tokens: the multi-codebook quantiser, its search, trainer and report."""

from spear_lib.quantization.quantizer import Quantizer, QuantizerLosses

__all__ = ["Quantizer", "QuantizerLosses"]
