"""What the page is asked for, and the models of the folders that it is given."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from spear_lib.asr.searcher import SearchConfig
from spear_lib.asr.transcription import Recogniser
from spear_lib.data.audio_windows import WindowConfig
from spear_lib.demo.listening import Models, PageLimits
from spear_lib.encoders import load_encoder
from spear_lib.interfaces.upstreams import load_upstream
from spear_lib.runtime.hub import HUB_PREFIX
from spear_lib.runtime.task_file import FILE_NAME, read_task
from spear_lib.sharing.onnx.runtime import is_onnx_folder
from spear_lib.sharing.recogniser import open_searcher
from spear_lib.tagging.events import EventConfig
from spear_lib.tagging.inference import load_tagger
from spear_lib.training import checkpoint


@dataclass(frozen=True)
class DemoOptions:
    """What is tried, and where the page is."""

    experiment_dir: str | list[str]
    """Folder of finetune_asr, export_onnx, finetune_tagging or pretrain, or an encoder. Several, as "[a,b]",
    make one page, with one recogniser and one tagger at most; the layers are those of the first."""
    units: str = ""
    """Of a recogniser: the text units of its training, if its folder does not hold them."""
    average: int = 1
    """Average fine-tuned models over the last so many save intervals; 0: the last weights as they are."""
    top: int = 10
    """How many classes of sounds are shown."""
    host: str = "127.0.0.1"
    """Address that the page is bound to; any but 127.0.0.1 opens it to others, without a password."""
    port: int = 7860
    """Its port; 0: any free one."""
    device: str = "auto"
    """cpu, cuda or auto."""
    limits: PageLimits = field(default_factory=PageLimits)
    """What a recording may cost."""
    windows: WindowConfig = field(default_factory=WindowConfig)
    """How long recordings are cut to be transcribed."""
    tag_windows: WindowConfig = field(default_factory=lambda: WindowConfig(10.0, 2.0, 100.0))
    """How long recordings are cut to be tagged."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Search of a recogniser; the same values as in transcribe give the same text."""
    events: EventConfig = field(default_factory=EventConfig)
    """How frames become events."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"top is {self.top}: at least one class must be shown")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}: use 0 (any free one) to 65535")


_ROLES = {"asr": "recogniser", "tagging": "tagger"}


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


def open_models(options: DemoOptions, device: torch.device) -> tuple[Models, dict[str, str]]:
    """The models of the folders, and a line about each.

    Raises:
      ValueError: two recognisers or two taggers; a folder without a model.
    """
    found: dict[str, Any] = {}
    facts: dict[str, str] = {}
    folders = options.experiment_dir
    for folder in [folders] if isinstance(folders, str) else folders:
        kind = kind_of(folder)
        role = _ROLES.get(kind, "encoder")
        if role in facts:
            raise ValueError(f"{folder} is a second {role}: give one of each kind")
        if kind == "asr":
            searcher, provenance, place = open_searcher(
                folder, options.units, options.average, options.search, device
            )
            found["recogniser"] = Recogniser(searcher, place)
            weights = f"{provenance.get('weights')}; {searcher.head}, {options.search}"
            encoder = None if is_onnx_folder(folder) else searcher.model.encoder  # ONNX has no layers
        elif kind == "tagging":
            tagger = found["tagger"] = load_tagger(folder, options.average, device)
            weights = f"{tagger.provenance['weights']}; {len(tagger.classes)} classes"
            encoder = tagger.model.encoder
        else:
            encoder, weights = _encoder(folder)
        facts[role] = f"{folder} ({weights})"
        if encoder is not None:
            found.setdefault("encoder", encoder.to(device))
    return Models(**found), facts


def _encoder(folder: str) -> tuple[Any, str]:
    """Of a run: its averaged encoder, or the one of the last checkpoint; else the folder itself."""
    averaged, last = Path(folder) / "encoder", Path(folder) / "checkpoints" / "last.pt"
    if (averaged / "config.json").is_file():
        return load_encoder(averaged), "its averaged encoder"
    if last.is_file():
        return load_encoder(last), "the encoder of its last checkpoint"
    return load_upstream(folder), "encoder"
