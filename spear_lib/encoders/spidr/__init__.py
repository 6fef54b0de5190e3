"""SpidR's encoder: waveforms, a post-norm Transformer, linear heads on its layers (DinoSR is a variant)."""

from spear_lib.encoders.spidr.config import SpidrConfig
from spear_lib.encoders.spidr.encoder import SpidrEncoder

__all__ = ["SpidrConfig", "SpidrEncoder"]
