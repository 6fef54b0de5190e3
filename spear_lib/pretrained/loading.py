"""Reading encoders: our exported folders and training checkpoints, the authors' .pt files and HF folders."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_lib.files import read_json
from spear_lib.pretrained.kinds import (
    ENCODER_TYPES,
    Encoder,
    EncoderConfig,
    build_encoder,
    config_from_settings,
)
from spear_lib.pretrained.saving import CONFIG_NAME, FORMAT, WEIGHTS_NAME
from spear_lib.pretrained.shapes import config_from_shapes
from spear_lib.pretrained.weights import load_strictly, read_weights
from spear_lib.transformer import TransformerConfig
from spear_lib.zipformer import ZipformerConfig

logger = logging.getLogger(__name__)

# A name that every encoder of a kind has, and how the names of its tensors begin.
_ZIPFORMER_NAMES = ("encoder_embed.conv.0.weight", ("encoder_embed.", "encoder.", "mask_emb"))
_TRANSFORMER_NAMES = (
    "feature_extractor.conv_layers.0.conv.weight",
    ("feature_extractor.", "feature_projection.", "encoder.", "masked_spec_embed"),
)
# The weight norm of published WavLM files is that of older PyTorch versions.
_POSITIONS = "encoder.pos_conv_embed.conv."
_WEIGHT_NORM_NAMES = {
    f"{_POSITIONS}weight_g": f"{_POSITIONS}parametrizations.weight.original0",
    f"{_POSITIONS}weight_v": f"{_POSITIONS}parametrizations.weight.original1",
}
_WEIGHT_FILES = (WEIGHTS_NAME, "pytorch_model.bin", "pytorch_model.pt", "model.pt")
# Settings that change the output but no shape.
_STRUCTURE = ("downsampling_factor", "num_heads", "query_head_dim", "pos_head_dim", "value_head_dim")
# Settings of a Hugging Face config that shapes do not show; the rest is checked against the shapes.
_HF_HIDDEN = ("encoder_unmasked_dim", "chunk_size", "left_context_frames")
_HF_CHECKED = (
    "downsampling_factor",
    "num_encoder_layers",
    "encoder_dim",
    "feedforward_dim",
    "num_heads",
    "cnn_module_kernel",
    "causal",
    "output_downsampling_factor",
)


def load_encoder(path_or_config: str | Path | dict | EncoderConfig, **changes: Any) -> Encoder:
    """An encoder in evaluation mode, on the CPU.

    Args:
      path_or_config: one of
        a folder written by ``save_encoder`` (config.json, model.safetensors);
        a checkpoint of our own training (.pt);
        a checkpoint of the authors' training code (.pt with a "model" entry);
        a folder in the layout of the authors' Hugging Face releases;
        a folder of WavLM Base in the layout of transformers (our Transformer encoder);
        a ``ZipformerConfig`` or ``TransformerConfig``, or a dict of its fields: a new encoder with random
        weights.
      changes: settings to replace that do not change shapes, e.g. ``padding="reference"`` for parity with
        published numbers.

    Raises:
      FileNotFoundError: nothing at this path.
      ValueError: not an encoder, or one whose names or shapes do not fit; lists every name.
    """
    if isinstance(path_or_config, (EncoderConfig, dict)):
        config = path_or_config
        config = config_from_settings(config, "the given dict") if isinstance(config, dict) else config
        return build_encoder(replace(config, **changes)).eval()
    path = Path(path_or_config)
    if not path.exists():
        raise FileNotFoundError(
            f"no encoder at {path}: give a folder with {CONFIG_NAME} and {WEIGHTS_NAME}, or a .pt checkpoint"
        )
    state, config, provenance = _read_folder(path) if path.is_dir() else _read_checkpoint(path)
    state = _encoder_part(state, path, isinstance(config, TransformerConfig))
    if isinstance(config, dict):
        config = _config_from_release(state, config, path)
    encoder = build_encoder(replace(config, **changes))
    load_strictly(encoder, state, path, "encoder")
    encoder.provenance = provenance
    return encoder.eval()


def encoder_id(encoder: Encoder) -> str:
    """Identity of the weights and shape: 16 hexadecimal digits, equal for equal encoders on any machine."""
    config = encoder.config
    if isinstance(config, TransformerConfig):
        facts = [config.type, config.num_heads, config.max_distance]
    else:
        facts = [config.per_stack(name) for name in _STRUCTURE]
        facts += [config.pos_dim, config.causal, config.chunk_size, config.left_context_frames]
    digest = hashlib.sha256(repr(facts).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], EncoderConfig | dict, dict]:
    config_path = folder / CONFIG_NAME
    if not config_path.exists():
        raise ValueError(f"{folder} has no {CONFIG_NAME}; it is not an encoder folder")
    weights = next((folder / name for name in _WEIGHT_FILES if (folder / name).exists()), None)
    if weights is None:
        raise ValueError(f"{folder} has none of {', '.join(_WEIGHT_FILES)}; download or export it again")
    description = read_json(config_path)
    state = read_weights(weights)
    if "format" not in description:  # a Hugging Face release
        is_wavlm = description.get("model_type") == "wavlm"
        settings = _wavlm_config(description, folder) if is_wavlm else description
        return state.get("model", state), settings, {"source": str(folder)}
    if description["format"] != FORMAT or description.get("encoder") not in ENCODER_TYPES:
        raise ValueError(
            f"{config_path} describes format {description['format']!r}, encoder "
            f"{description.get('encoder')!r}; this version reads {FORMAT!r} with {' or '.join(ENCODER_TYPES)}"
        )
    config = config_from_settings(description["config"], str(config_path))
    return state, config, description.get("provenance", {})


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], EncoderConfig | dict, dict]:
    content = read_weights(path)
    state = content.get("model", content)
    if isinstance(content.get("encoder_config"), dict):
        provenance = {"source": str(path), "step": content.get("step")}
        return state, config_from_settings(content["encoder_config"], str(path)), provenance
    return state, {}, {"source": str(path)}


def _encoder_part(state: dict[str, Any], path: Path, transformer: bool) -> dict[str, Tensor]:
    """The tensors of the encoder, with whatever stands in front of their names removed."""
    anchor, parts = _TRANSFORMER_NAMES if transformer else _ZIPFORMER_NAMES
    prefixes = [name.removesuffix(anchor) for name in state if name.endswith(anchor)]
    if not prefixes:
        sample = ", ".join(list(state)[:5])
        raise ValueError(f"{path} holds no SPEAR encoder: no name ends with {anchor} (first names: {sample})")
    prefix = min(prefixes, key=len)
    part, others = {}, set()
    for name, value in state.items():
        short = name.removeprefix(prefix)
        short = _WEIGHT_NORM_NAMES.get(short, short)
        if name.startswith(prefix) and short.startswith(parts):
            part[short] = value
        else:
            others.add(name.split(".")[0] if not name.startswith(prefix) else short.split(".")[0])
    if others:
        logger.info("%s: left out what does not belong to the encoder: %s", path, ", ".join(sorted(others)))
    return part


def _numbers(value: Any) -> Any:
    """A comma string of numbers as a tuple; anything else unchanged."""
    if isinstance(value, str) and value.replace(",", "").replace("-", "").replace(" ", "").isdigit():
        return tuple(int(item) for item in value.split(","))
    return value


def _as_tuple(value: Any) -> tuple:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _wavlm_config(settings: dict[str, Any], folder: Path) -> TransformerConfig:
    """Our settings of a WavLM of Base's shape."""
    channels = set(settings.get("conv_dim", [512]))
    if settings.get("do_stable_layer_norm") or settings.get("feat_extract_norm", "group") != "group":
        raise ValueError(
            f"{folder} is a WavLM of Large's shape (norms before each part); our Transformer encoder has "
            "that of Base. As a teacher it works: spear_lib.teachers"
        )
    if len(channels) != 1:
        raise ValueError(f"{folder}: its convolutions have {sorted(channels)} channels; all must be equal")
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


def _config_from_release(state: dict[str, Tensor], settings: dict[str, Any], path: Path) -> ZipformerConfig:
    config = config_from_shapes(state)
    hidden = {name: _numbers(settings[name]) for name in _HF_HIDDEN if name in settings}
    if not config.causal:
        hidden = {name: value for name, value in hidden.items() if name == "encoder_unmasked_dim"}
    config = replace(config, **hidden)
    for name in _HF_CHECKED:
        if name not in settings:
            continue
        listed, found = _as_tuple(_numbers(settings[name])), _as_tuple(getattr(config, name))
        if listed != found and listed * len(found) != found:
            raise ValueError(f"{path}: its settings say {name} = {listed}, its weights have {found}")
    return config
