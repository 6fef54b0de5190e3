"""Writing an encoder as a folder that ``load_encoder`` reads."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from spear_lib.pretrained.kinds import Encoder
from spear_lib.runtime.files import atomic_path, write_json

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT = "spear_lib"


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
