"""Reading encoders: our exported folders and training checkpoints, the authors' .pt files and HF folders."""

import hashlib
import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_lib.pretrained.saving import CONFIG_NAME, FORMAT, WEIGHTS_NAME
from spear_lib.pretrained.shapes import config_from_shapes
from spear_lib.pretrained.weights import load_strictly, read_json, read_weights
from spear_lib.zipformer import SpearEncoder, ZipformerConfig

logger = logging.getLogger(__name__)

_ANCHOR = "encoder_embed.conv.0.weight"
_PARTS = ("encoder_embed.", "encoder.", "mask_emb")
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


def load_encoder(path_or_config: str | Path | dict | ZipformerConfig, **changes: Any) -> SpearEncoder:
    """An encoder in evaluation mode, on the CPU.

    Args:
      path_or_config: one of
        a folder written by ``save_encoder`` (config.json, model.safetensors);
        a checkpoint of our own training (.pt);
        a checkpoint of the authors' training code (.pt with a "model" entry);
        a folder in the layout of the authors' Hugging Face releases;
        a ``ZipformerConfig`` or a dict of its fields: a new encoder with random weights.
      changes: settings to replace that do not change shapes, e.g. ``padding="reference"`` for parity with
        published numbers.

    Raises:
      FileNotFoundError: nothing at this path.
      ValueError: not an encoder, or one whose names or shapes do not fit; lists every name.
    """
    if isinstance(path_or_config, (ZipformerConfig, dict)):
        config = path_or_config
        config = _config(config, "the given dict") if isinstance(config, dict) else config
        return SpearEncoder(replace(config, **changes)).eval()
    path = Path(path_or_config)
    if not path.exists():
        raise FileNotFoundError(
            f"no encoder at {path}: give a folder with {CONFIG_NAME} and {WEIGHTS_NAME}, or a .pt checkpoint"
        )
    state, config, provenance = _read_folder(path) if path.is_dir() else _read_checkpoint(path)
    state = _encoder_part(state, path)
    if not isinstance(config, ZipformerConfig):
        config = _config_from_release(state, config, path)
    encoder = SpearEncoder(replace(config, **changes))
    load_strictly(encoder, state, path, "encoder")
    encoder.provenance = provenance
    return encoder.eval()


def encoder_id(encoder: SpearEncoder) -> str:
    """Identity of the weights and shape: 16 hexadecimal digits, equal for equal encoders on any machine."""
    config = encoder.config
    facts = [config.per_stack(name) for name in _STRUCTURE]
    facts += [config.pos_dim, config.causal, config.chunk_size, config.left_context_frames]
    digest = hashlib.sha256(repr(facts).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _config(settings: dict[str, Any], where: str) -> ZipformerConfig:
    known = {field.name for field in fields(ZipformerConfig)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(
            f"{where} has unknown encoder settings: {', '.join(unknown)}; "
            f"known ones: {', '.join(sorted(known))}"
        )
    return ZipformerConfig(**settings)


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], ZipformerConfig | dict, dict]:
    config_path = folder / CONFIG_NAME
    if not config_path.exists():
        raise ValueError(f"{folder} has no {CONFIG_NAME}; it is not an encoder folder")
    weights = next((folder / name for name in _WEIGHT_FILES if (folder / name).exists()), None)
    if weights is None:
        raise ValueError(f"{folder} has none of {', '.join(_WEIGHT_FILES)}; download or export it again")
    description = read_json(config_path)
    state = read_weights(weights)
    if "format" not in description:  # a Hugging Face release
        return state.get("model", state), description, {"source": str(folder)}
    if description["format"] != FORMAT or description.get("encoder") != "zipformer":
        raise ValueError(
            f"{config_path} describes format {description['format']!r}, encoder "
            f"{description.get('encoder')!r}; this version reads {FORMAT!r} with 'zipformer'"
        )
    return state, _config(description["config"], str(config_path)), description.get("provenance", {})


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], ZipformerConfig | dict, dict]:
    content = read_weights(path)
    state = content.get("model", content)
    if isinstance(content.get("encoder_config"), dict):
        provenance = {"source": str(path), "step": content.get("step")}
        return state, _config(content["encoder_config"], str(path)), provenance
    return state, {}, {"source": str(path)}


def _encoder_part(state: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of the encoder, with whatever stands in front of their names removed."""
    prefixes = [name.removesuffix(_ANCHOR) for name in state if name.endswith(_ANCHOR)]
    if not prefixes:
        sample = ", ".join(list(state)[:5])
        raise ValueError(
            f"{path} holds no SPEAR encoder: no name ends with {_ANCHOR} (first names: {sample})"
        )
    prefix = min(prefixes, key=len)
    part, others = {}, set()
    for name, value in state.items():
        short = name.removeprefix(prefix)
        if name.startswith(prefix) and short.startswith(_PARTS):
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
