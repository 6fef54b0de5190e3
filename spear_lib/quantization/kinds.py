"""The kinds of tokenisers, by the name that their files hold."""

from pathlib import Path

from spear_lib.quantization.kmeans import KMeans
from spear_lib.quantization.linear import LinearUnits
from spear_lib.quantization.quantizer import Quantizer
from spear_lib.quantization.storage import read_quantizer

KINDS: dict[str, type[Quantizer | KMeans | LinearUnits]] = {
    cls.kind: cls for cls in (Quantizer, KMeans, LinearUnits)
}
TRAINED = (Quantizer.kind, KMeans.kind)
"""What train_quantizer makes."""


def load_tokeniser(path: str | Path) -> Quantizer | KMeans | LinearUnits:
    """The multi-codebook quantiser, the k-means or the classifier at ``path`` (a file, or a folder with
    quantizer.safetensors)."""
    kind = read_quantizer(path)[1]["kind"]
    if kind not in KINDS:
        raise ValueError(f"{path} holds a tokeniser of kind {kind!r}; this version knows {', '.join(KINDS)}")
    return KINDS[kind].load(path)
