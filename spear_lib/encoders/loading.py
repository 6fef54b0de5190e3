"""Encoders on disk: our folders and training checkpoints, the authors' .pt files and Hugging Face folders."""

import hashlib
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_lib.encoders.base import EncoderKind
from spear_lib.encoders.kinds import (
    KINDS,
    Encoder,
    EncoderConfig,
    build_encoder,
    config_from_settings,
    kind_of,
)
from spear_lib.encoders.weights import load_strictly, read_weights
from spear_lib.runtime.files import atomic_path, read_json, write_json
from spear_lib.runtime.hub import download_encoder, is_hub_name

logger = logging.getLogger(__name__)

FORMAT = "spear_lib"
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_WEIGHT_FILES = (WEIGHTS_NAME, "pytorch_model.bin", "pytorch_model.pt", "model.pt")


def load_encoder(path_or_config: str | Path | dict | EncoderConfig, **changes: Any) -> Encoder:
    """An encoder in evaluation mode, on the CPU.

    In training mode it computes as in evaluation mode, with gradients, until ``begin_step`` is called for the
    first time; from then on it trains as SPEAR does, and every forward needs a step.

    Args:
      path_or_config: one of
        a folder written by ``save_encoder`` (config.json, model.safetensors);
        a checkpoint of our own training (.pt);
        a checkpoint of the authors' training code (.pt with a "model" entry);
        a folder in the layout of the authors' Hugging Face releases;
        a folder of WavLM Base in the layout of transformers (our Transformer encoder);
        a published checkpoint of SpidR or DinoSR (.pt), also DinoSR's in the form of fairseq;
        "OWNER/NAME", "hub:OWNER/NAME", either with "@REVISION": such a folder on huggingface.co, through its
        cache; only its configuration and safetensors are fetched;
        a ``ZipformerConfig``, ``TransformerConfig`` or ``SpidrConfig``, or a dict of its fields: a new
        encoder with random weights.
      changes: settings to replace that do not change shapes, e.g. ``padding="reference"`` for parity with
        published numbers.

    Raises:
      FileNotFoundError: nothing at this path or name.
      RuntimeError: a name, and the package huggingface_hub is missing.
      ValueError: not an encoder, or one whose names or shapes do not fit; lists every name.
    """
    if isinstance(path_or_config, (EncoderConfig, dict)):
        config = path_or_config
        config = config_from_settings(config, "the given dict") if isinstance(config, dict) else config
        return _for_clients(build_encoder(replace(config, **changes)))
    path, source = Path(path_or_config), None
    if not path.exists() and is_hub_name(str(path_or_config)):
        path, source = download_encoder(str(path_or_config))
    if not path.exists():
        raise FileNotFoundError(
            f"no encoder at {path}: give a folder with {CONFIG_NAME} and {WEIGHTS_NAME}, or a .pt checkpoint"
        )
    state, config, provenance = _read_folder(path) if path.is_dir() else _read_checkpoint(path)
    kind = _published_kind(config, state) if isinstance(config, dict) else kind_of(config)
    if isinstance(config, dict):
        state = kind.converted(state)
    state = _encoder_part(state, path, kind)
    if isinstance(config, dict):
        config = kind.published_config(state, config, path)
    encoder = build_encoder(replace(config, **changes))
    load_strictly(encoder, state, path, "encoder")
    encoder.provenance = provenance if source is None else {**provenance, "source": source}
    return _for_clients(encoder)


def _for_clients(encoder: Encoder) -> Encoder:
    """In evaluation mode, and trainable by code that knows nothing of steps."""
    encoder.context.optional = True
    return encoder.eval()


def save_encoder(encoder: Encoder, folder: str | Path, provenance: dict[str, Any]) -> None:
    """Write ``folder``/config.json and model.safetensors, each aside first and renamed when complete.

    Args:
      encoder: any mode, any device; float32 weights are stored as they are.
      folder: made if missing; an encoder that is already there is replaced.
      provenance: where the weights come from (checkpoint, step, hours, commit, quantiser ids); JSON values.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    description = {
        "format": FORMAT,
        "encoder": encoder.encoder_type,
        "config": asdict(encoder.config),
        "provenance": provenance,
    }
    with atomic_path(folder / WEIGHTS_NAME) as weights:
        save_file(state, weights)
    # The config last: a folder with a config is complete.
    write_json(folder / CONFIG_NAME, description)


def encoder_id(encoder: Encoder) -> str:
    """Identity of the weights and shape: 16 hexadecimal digits, equal for equal encoders on any machine."""
    digest = hashlib.sha256(repr(encoder.config.structure()).encode())
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
        return (
            state.get("model", state),
            description,
            {"source": str(folder)} | description.get("provenance", {}),
        )
    if description["format"] != FORMAT or description.get("encoder") not in KINDS:
        raise ValueError(
            f"{config_path} describes format {description['format']!r}, encoder "
            f"{description.get('encoder')!r}; this version reads {FORMAT!r} with {' or '.join(KINDS)}"
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


def _published_kind(settings: dict[str, Any], state: dict[str, Tensor]) -> EncoderKind:
    """Of a folder or file that is not ours: by its model_type or its names, else a SPEAR encoder."""
    model_type = settings.get("model_type")
    return next(
        (kind for kind in KINDS.values() if model_type in kind.model_types or kind.recognises(state)),
        KINDS["zipformer"],
    )


def _encoder_part(state: dict[str, Any], path: Path, kind: EncoderKind) -> dict[str, Tensor]:
    """The tensors of the encoder, with whatever stands in front of their names removed."""
    anchor = kind.anchor
    prefixes = [name.removesuffix(anchor) for name in state if name.endswith(anchor)]
    if not prefixes:
        sample = ", ".join(list(state)[:5])
        raise ValueError(f"{path} holds no SPEAR encoder: no name ends with {anchor} (first names: {sample})")
    prefix = min(prefixes, key=len)
    part, others = {}, set()
    for name, value in state.items():
        short = name.removeprefix(prefix)
        short = kind.published_names.get(short, short)
        if name.startswith(prefix) and short.startswith(kind.tensors):
            part[short] = value
        else:
            others.add(name.split(".")[0] if not name.startswith(prefix) else short.split(".")[0])
    if others:
        logger.info("%s: left out what does not belong to the encoder: %s", path, ", ".join(sorted(others)))
    return part
