"""The short name of ``spear_lib.encoders.zipformer``."""

from spear_lib.encoders.zipformer import (
    EncoderOutput,
    SpearEncoder,
    StreamingEncoder,
    StreamingState,
    ZipformerConfig,
)

__all__ = ["EncoderOutput", "SpearEncoder", "StreamingEncoder", "StreamingState", "ZipformerConfig"]
