"""What the folders hold that are tried on the page (ours)."""

from pathlib import Path
from typing import Any

from spear_lib.encoders import load_encoder
from spear_lib.interfaces.upstreams import load_upstream
from spear_lib.runtime.hub import HUB_PREFIX
from spear_lib.runtime.task_file import FILE_NAME, read_task
from spear_lib.sharing.onnx.runtime import is_onnx_folder
from spear_lib.training import checkpoint


def kind_of(folder: str) -> str:
    """What a folder holds: asr, tagging, the kind of another run, or encoder.

    Raises:
      ValueError: there is none.
    """
    # Only a name that says so is looked for on the network.
    if not Path(folder).exists() and not folder.startswith(HUB_PREFIX):
        raise ValueError(
            f"experiment_dir {folder} does not exist: give the folder of a run (exp/finetune_pretrained), an "
            f"encoder, or {HUB_PREFIX}OWNER/NAME"
        )
    if is_onnx_folder(folder):
        return "asr"
    if (Path(folder) / FILE_NAME).is_file():
        return read_task(Path(folder)).kind
    last = Path(folder) / "checkpoints" / "last.pt"  # a run from before there were descriptions
    return str(checkpoint.load(last)["kind"]) if last.is_file() else "encoder"


def open_encoder(folder: str) -> tuple[Any, str]:
    """Of a run: its averaged encoder, or the one of the last checkpoint; else the folder itself."""
    averaged, last = Path(folder) / "encoder", Path(folder) / "checkpoints" / "last.pt"
    if (averaged / "config.json").is_file():
        return load_encoder(averaged), "its averaged encoder"
    if last.is_file():
        return load_encoder(last), "the encoder of its last checkpoint"
    return load_upstream(folder), "encoder"
