"""Frame embeddings to tokens: the multi-codebook quantiser, its search, trainer and report; k-means."""

from spear_lib.quantization.kmeans import KMeans
from spear_lib.quantization.quantizer import Quantizer, QuantizerLosses
from spear_lib.quantization.tokeniser import Tokeniser, load_tokeniser

__all__ = ["KMeans", "Quantizer", "QuantizerLosses", "Tokeniser", "load_tokeniser"]
