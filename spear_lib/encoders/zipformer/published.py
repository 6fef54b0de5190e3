"""The configuration of a published encoder, read off the shapes of its weights.

Checkpoints of the authors do not carry all settings (head widths are in none of them), and those that they
carry come in several spellings. The shapes decide nearly everything and cannot disagree with the weights.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from spear_lib.encoders.zipformer.config import ZipformerConfig

# Channels that the training-time feature mask keeps, by model width (reference); shapes do not show it.
_UNMASKED = {512: 256, 1024: 512, 1280: 768}
_POS_HEAD_DIM = 4
# Settings of a Hugging Face config that shapes do not show; the rest is checked against the shapes.
_HIDDEN = ("encoder_unmasked_dim", "chunk_size", "left_context_frames", "padding")
_STREAMING = ("chunk_size", "left_context_frames")
_CHECKED = (
    "downsampling_factor",
    "num_encoder_layers",
    "encoder_dim",
    "feedforward_dim",
    "num_heads",
    "cnn_module_kernel",
    "causal",
    "output_downsampling_factor",
)


def config_from_shapes(state: dict[str, Tensor], **known: Any) -> ZipformerConfig:
    """Configuration of the encoder with this state dict (names of ``SpearEncoder``).

    Args:
      state: names and weights; missing ones are tolerated as long as each stack has a layer.
      known: settings that shapes do not show (``padding``, ``chunk_size``, ``encoder_unmasked_dim``, ...).

    Raises:
      ValueError: where the weights are not those of such an encoder; names the tensor.
    """
    pattern = re.compile(r"encoder\.encoders\.(\d+)\.(?:encoder\.)?layers\.(\d+)\.")
    layers: dict[int, int] = {}
    for name in state:
        match = pattern.match(name)
        if match:
            stack, layer = int(match[1]), int(match[2])
            layers[stack] = max(layers.get(stack, 0), layer + 1)
    num_stacks = max(layers, default=-1) + 1
    if num_stacks == 0 or sorted(layers) != list(range(num_stacks)):
        raise ValueError(f"the checkpoint has layers for the stacks {sorted(layers)}; expected 0, 1, 2, ...")

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise ValueError(f"the checkpoint has no tensor {name}; it is not a complete SPEAR encoder")
        return tuple(state[name].shape)

    causal = any(".depthwise_conv.causal_conv." in name for name in state)
    found: dict[str, list[int]] = {
        name: []
        for name in (
            "downsampling_factor",
            "encoder_dim",
            "feedforward_dim",
            "num_heads",
            "query_head_dim",
            "value_head_dim",
            "cnn_module_kernel",
            "encoder_unmasked_dim",
        )
    }
    pos_head_dim = int(known.get("pos_head_dim", _POS_HEAD_DIM))
    for stack in range(num_stacks):
        prefix = f"encoder.encoders.{stack}."
        factor = shape(f"{prefix}downsample.bias")[0] if f"{prefix}downsample.bias" in state else 1
        layer = prefix + ("layers.0." if factor == 1 else "encoder.layers.0.")
        positions, pos_dim = shape(layer + "self_attn_weights.linear_pos.weight")
        heads = positions // pos_head_dim
        rows, dim = shape(layer + "self_attn_weights.in_proj.weight")
        found["downsampling_factor"].append(factor)
        found["encoder_dim"].append(dim)
        found["feedforward_dim"].append(shape(layer + "feed_forward2.in_proj.weight")[0])
        found["num_heads"].append(heads)
        found["query_head_dim"].append((rows // heads - pos_head_dim) // 2)
        found["value_head_dim"].append(shape(layer + "self_attn1.in_proj.weight")[0] // heads)
        kernel = ".depthwise_conv.chunkwise_conv.weight" if causal else ".depthwise_conv.weight"
        found["cnn_module_kernel"].append(shape(f"{layer}conv_module1{kernel}")[2])
        found["encoder_unmasked_dim"].append(_UNMASKED.get(dim, dim))

    settings: dict[str, Any] = {
        "num_mel_bins": shape("mask_emb")[0] if "mask_emb" in state else 128,
        "frontend_channels": [shape(f"encoder_embed.conv.{index}.weight")[0] for index in (0, 4, 7)],
        "num_encoder_layers": [layers[stack] for stack in range(num_stacks)],
        "pos_dim": pos_dim,
        "pos_head_dim": pos_head_dim,
        "causal": causal,
        "output_downsampling_factor": 2 if "encoder.downsample_output.bias" in state else 1,
        **found,
        **known,
    }
    return ZipformerConfig(**settings)


def published_config(state: dict[str, Tensor], settings: dict[str, Any], path: Path) -> ZipformerConfig:
    """Configuration of the authors' checkpoint ``path``.

    Args:
      state: its tensors, under the names of ``SpearEncoder``.
      settings: those of its config.json; empty where there is none.

    Raises:
      ValueError: weights of something else, or settings that contradict them.
    """
    # Ours write it; the authors' do not, and have 4.
    known = {name: _numbers(settings[name]) for name in ("pos_head_dim",) if name in settings}
    config = config_from_shapes(state, **{name: _as_tuple(value)[0] for name, value in known.items()})
    hidden = {name: _numbers(settings[name]) for name in _HIDDEN if name in settings}
    if not config.causal:
        hidden = {name: value for name, value in hidden.items() if name not in _STREAMING}
    config = replace(config, **hidden)
    for name in _CHECKED:
        if name not in settings:
            continue
        listed, found = _as_tuple(_numbers(settings[name])), _as_tuple(getattr(config, name))
        if listed != found and listed * len(found) != found:
            raise ValueError(f"{path}: its settings say {name} = {listed}, its weights have {found}")
    return config


def _numbers(value: Any) -> Any:
    """A comma string of numbers as a tuple; anything else unchanged."""
    if isinstance(value, str) and value.replace(",", "").replace("-", "").replace(" ", "").isdigit():
        return tuple(int(item) for item in value.split(","))
    return value


def _as_tuple(value: Any) -> tuple:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
