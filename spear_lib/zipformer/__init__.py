"""The Zipformer encoder of SPEAR."""

from spear_lib.zipformer.config import ZipformerConfig
from spear_lib.zipformer.encoder import EncoderOutput, SpearEncoder
from spear_lib.zipformer.streaming import StreamingEncoder, StreamingState

__all__ = ["EncoderOutput", "SpearEncoder", "StreamingEncoder", "StreamingState", "ZipformerConfig"]
