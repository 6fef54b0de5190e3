"""An encoder small enough for hundreds of steps in a test."""

import torch

from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig

TINY = {
    "frontend_channels": (2, 3, 4),
    "encoder_dim": 32,
    "encoder_unmasked_dim": 20,
    "feedforward_dim": 48,
    "num_heads": 2,
    "query_head_dim": 8,
    "downsampling_factor": (1, 2, 4),
    "num_encoder_layers": (1, 2, 1),
    "cnn_module_kernel": 7,
}


def tiny(**changes) -> SpearEncoder:
    """The encoder with these changes, in training mode."""
    torch.manual_seed(0)
    return SpearEncoder(ZipformerConfig(**{**TINY, **changes})).train()
