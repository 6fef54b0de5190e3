"""Published checkpoints of SpidR and DinoSR: settings from shapes, and the names of the fairseq form (spec
spidr §9)."""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_lib.encoders.spidr.config import SpidrConfig

logger = logging.getLogger(__name__)

ANCHOR = "student.layers.0.attention.qkv.weight"
TENSORS = ("mask_embedding", "feature_extractor.", "feature_projection.", "student.", "heads.")
_FAIRSEQ_POSITIONS = "encoder.pos_conv.0.0.weight"
_HEAD_CHANNELS = 64  # of every published model

# Names of the fairseq form -> ours, in the order of trial; the prefix is that of the student.
_FAIRSEQ_NAMES = [
    (r"mask_emb", "mask_embedding"),
    (r"layer_norm\.", "feature_projection.layer_norm."),
    (r"post_extract_proj\.", "feature_projection.projection."),
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.1\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"encoder\.pos_conv\.(\d+)\.0\.", r"student.pos_conv_embed.convs.\1."),
    (r"encoder\.layer_norm\.", "student.layer_norm."),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"student.layers.\1.attention.proj."),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"student.layers.\1.layer_norm."),
    (r"encoder\.layers\.(\d+)\.fc1\.", r"student.layers.\1.feed_forward.intermediate_dense."),
    (r"encoder\.layers\.(\d+)\.fc2\.", r"student.layers.\1.feed_forward.output_dense."),
    (r"encoder\.layers\.(\d+)\.final_layer_norm\.", r"student.layers.\1.final_layer_norm."),
    (r"heads\.(\d+)\.(?:0\.)?(weight|bias)$", r"heads.\1.0.\2"),
]
_FAIRSEQ_ATTENTION = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.(weight|bias)")


def recognises(state: dict[str, Any]) -> bool:
    """Whether a file without settings holds a SpidR or DinoSR, in either form."""
    return any(name.endswith(ANCHOR) for name in state) or _is_fairseq(state)


def _is_fairseq(state: dict[str, Any]) -> bool:
    return _FAIRSEQ_POSITIONS in state and any(name.startswith("heads.") for name in state)


def converted(state: dict[str, Any]) -> dict[str, Any]:
    """The state dict under the published names; that of the fairseq form of DinoSR is renamed, with queries,
    keys and values joined in this order and its teacher and codebooks left out."""
    if not _is_fairseq(state):
        return state
    found: dict[str, Any] = {}
    for name, value in state.items():
        attention = _FAIRSEQ_ATTENTION.fullmatch(name)
        if attention:
            number, kind = attention.groups()
            parts = [state.get(f"encoder.layers.{number}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            if all(part is not None for part in parts):
                found[f"student.layers.{number}.attention.qkv.{kind}"] = torch.cat(parts)
            continue
        for pattern, ours in _FAIRSEQ_NAMES:
            if re.match(pattern, name):
                found[re.sub(f"^{pattern}", ours, name)] = value
                break
    return found


def published_config(state: dict[str, Tensor], settings: dict[str, Any], path: Path) -> SpidrConfig:
    """Settings of a published checkpoint, from the shapes of its tensors.

    SpidR and DinoSR have the same names and shapes. A file whose name holds "dinosr", and the fairseq form,
    which has biases of queries, are DinoSR; ``load_encoder(path, heads_on=...)`` says it otherwise.

    Raises:
      ValueError: tensors are missing that the settings follow from.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise ValueError(
                f"{path} has no tensor {name}, so it is no whole SpidR encoder: download it again"
            )
        return tuple(state[name].shape)

    def count(pattern: str) -> int:
        return len({match[0] for name in state if (match := re.match(pattern, name))})

    dim, group_channels, kernel = shape("student.pos_conv_embed.convs.0.weight")
    depth = count(r"student\.pos_conv_embed\.convs\.\d+\.")
    num_layers = count(r"student\.layers\.\d+\.")
    qkv_bias = "student.layers.0.attention.qkv.bias" in state
    dinosr = qkv_bias or "dinosr" in path.name.lower()
    if not dinosr and _last_norm_was_trained(state, num_layers):
        logger.warning(
            "%s: the last norm was trained, as in DinoSR and not in SpidR; if it is a DinoSR, give "
            "heads_on='output', or its codebook posteriors are wrong (features are the same)",
            path,
        )
    return SpidrConfig(
        conv_channels=shape("feature_extractor.conv_layers.0.conv.weight")[0],
        hidden_dim=dim,
        num_layers=num_layers,
        num_heads=max(1, dim // _HEAD_CHANNELS),
        feedforward_dim=shape("student.layers.0.feed_forward.intermediate_dense.weight")[0],
        position_kernel=kernel * depth,
        position_depth=depth,
        position_groups=dim // group_channels,
        qkv_bias=qkv_bias,
        num_codebooks=count(r"heads\.\d+\."),
        codebook_size=shape("heads.0.0.weight")[0],
        heads_on="output" if dinosr else "layers",
        layerdrop=0.05 if dinosr else 0.0,
    )


def _last_norm_was_trained(state: dict[str, Tensor], num_layers: int) -> bool:
    """SpidR's loss does not reach it, so that it stays at 1 and 0 (spec spidr §2.5)."""
    prefix = f"student.layers.{num_layers - 1}.final_layer_norm."
    start = {"weight": 1.0, "bias": 0.0}
    return any(bool((state[prefix + n] != v).any()) for n, v in start.items() if prefix + n in state)
