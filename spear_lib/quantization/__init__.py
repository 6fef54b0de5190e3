"""Frame embeddings to tokens: the multi-codebook quantiser, its search, trainer and report; k-means."""

from spear_lib.quantization.kinds import load_tokeniser
from spear_lib.quantization.kmeans import KMeans
from spear_lib.quantization.quantizer import Quantizer, QuantizerLosses
from spear_lib.quantization.tokeniser import Tokeniser

__all__ = ["KMeans", "Quantizer", "QuantizerLosses", "Tokeniser", "load_tokeniser"]
