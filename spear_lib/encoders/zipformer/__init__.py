"""The Zipformer encoder of SPEAR."""

from spear_lib.encoders.base import EncoderOutput
from spear_lib.encoders.zipformer.config import ZipformerConfig
from spear_lib.encoders.zipformer.encoder import SpearEncoder
from spear_lib.encoders.zipformer.streaming import StreamingEncoder, StreamingState

__all__ = ["EncoderOutput", "SpearEncoder", "StreamingEncoder", "StreamingState", "ZipformerConfig"]
