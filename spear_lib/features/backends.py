"""Which of the fbank implementations computes the features."""

from torch import nn

from spear_lib.features.fbank import FbankExtractor
from spear_lib.features.kaldifeat import KaldifeatFbank

FBANK_BACKENDS = {"torch": FbankExtractor, "kaldifeat": KaldifeatFbank}
"""What may compute the features of training: our extractor, or the package kaldifeat if installed."""


def create_fbank(num_mel_bins: int, backend: str = "torch") -> nn.Module:
    """An extractor of one of ``FBANK_BACKENDS``: a module like ``FbankExtractor``.

    Raises:
      ValueError: another backend, or what KaldifeatFbank refuses.
    """
    if backend not in FBANK_BACKENDS:
        raise ValueError(f"fbank_backend is {backend!r}; use {' or '.join(FBANK_BACKENDS)}")
    return FBANK_BACKENDS[backend](num_mel_bins)
