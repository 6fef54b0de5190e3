"""A Transformer encoder of WavLM's shape, for comparison with the Zipformer (paper appendix F.3)."""

from spear_lib.encoders.transformer.config import TransformerConfig
from spear_lib.encoders.transformer.encoder import TransformerEncoder

__all__ = ["TransformerConfig", "TransformerEncoder"]
