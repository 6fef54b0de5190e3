"""Settings and names of WavLM's folders in the layout of transformers."""

from pathlib import Path
from typing import Any

from torch import Tensor

from spear_lib.encoders.transformer.config import TransformerConfig

# The weight norm of published WavLM files is that of older PyTorch versions.
_POSITIONS = "encoder.pos_conv_embed.conv."
PUBLISHED_NAMES = {
    f"{_POSITIONS}weight_g": f"{_POSITIONS}parametrizations.weight.original0",
    f"{_POSITIONS}weight_v": f"{_POSITIONS}parametrizations.weight.original1",
}


def published_config(state: dict[str, Tensor], settings: dict[str, Any], path: Path) -> TransformerConfig:
    """Our settings of a WavLM of Base's shape, from its config.json.

    Raises:
      ValueError: a WavLM of another shape.
    """
    channels = set(settings.get("conv_dim", [512]))
    if settings.get("do_stable_layer_norm") or settings.get("feat_extract_norm", "group") != "group":
        raise ValueError(
            f"{path} is a WavLM of Large's shape (norms before each part); our Transformer encoder has "
            "that of Base. As a teacher it works: spear_lib.teachers"
        )
    if len(channels) != 1:
        raise ValueError(f"{path}: its convolutions have {sorted(channels)} channels; all must be equal")
    names = {
        "hidden_dim": ("hidden_size", 768),
        "num_layers": ("num_hidden_layers", 12),
        "num_heads": ("num_attention_heads", 12),
        "feedforward_dim": ("intermediate_size", 3072),
        "position_kernel": ("num_conv_pos_embeddings", 128),
        "position_groups": ("num_conv_pos_embedding_groups", 16),
        "num_buckets": ("num_buckets", 320),
        "max_distance": ("max_bucket_distance", 800),
        "dropout": ("hidden_dropout", 0.1),
        "layerdrop": ("layerdrop", 0.1),
    }
    found = {ours: settings.get(theirs, default) for ours, (theirs, default) in names.items()}
    return TransformerConfig(conv_channels=channels.pop(), **found)
