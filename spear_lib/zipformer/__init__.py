"""The Zipformer encoder of SPEAR."""

from spear_lib.zipformer.config import ZipformerConfig
from spear_lib.zipformer.encoder import EncoderOutput, SpearEncoder

__all__ = ["EncoderOutput", "SpearEncoder", "ZipformerConfig"]
