"""Encoders: a folder for each kind, and loading and saving of all (published checkpoints and our own)."""

from spear_lib.encoders.loading import encoder_id, load_encoder, save_encoder

__all__ = ["encoder_id", "load_encoder", "save_encoder"]
