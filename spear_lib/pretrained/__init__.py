"""Encoders on disk: published checkpoints and our own, in and out."""

from spear_lib.pretrained.loading import encoder_id, load_encoder
from spear_lib.pretrained.saving import save_encoder

__all__ = ["encoder_id", "load_encoder", "save_encoder"]
