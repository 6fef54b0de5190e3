"""What an export takes along: the model, its card, and where its weights come from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spear_lib.asr.decoding import build_model, load_weights
from spear_lib.asr.units import units_of
from spear_lib.encoders import encoder_id, load_encoder
from spear_lib.runtime.files import read_json
from spear_lib.runtime.log import commit
from spear_lib.sharing.huggingface import Exported
from spear_lib.sharing.model_card import model_card
from spear_lib.tagging.inference import load_tagger


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and where to."""

    output_dir: str
    """Receives config.json, model.safetensors, modeling_spear.py, README.md and the feature extractor's
    settings; of a recogniser tokenizer.json too."""
    encoder: str = ""
    """An encoder (anything that load_encoder reads)."""
    experiment_dir: str = ""
    """Folder of finetune_asr with a CTC head, or of finetune_tagging, instead."""
    units: str = ""
    """The text units of the fine-tuning: bpe.model, its folder, or "characters"; empty: those that the
    experiment's config.yaml names."""
    average: int = 1
    """Average a fine-tuned model over the last so many save intervals; 0: the last weights as they are."""
    licence: str = ""
    """Of the weights, for the model card, as the hub writes it ("apache-2.0"); empty: not stated."""


def experiment_of(encoder: str) -> Path | None:
    """The run that an encoder's folder or checkpoint lies in."""
    return next((each for each in Path(encoder).parents[:2] if (each / "config.yaml").is_file()), None)


def collect(options: ExportOptions, command: str) -> Exported:
    """The model with its card."""
    if options.encoder:
        encoder = model = load_encoder(options.encoder)
        kind = "encoder" if encoder.encoder_type == "zipformer" else "wavlm"
        experiment, facts, more = experiment_of(options.encoder), dict(encoder.provenance), {}
    else:
        experiment = Path(options.experiment_dir)
        kind = _task(experiment)
        if kind == "tagging":
            tagger = load_tagger(experiment, options.average)
            model, facts, more = tagger.model, tagger.provenance, {"classes": tagger.classes}
        else:
            units = units_of(options.experiment_dir, options.units)
            weights = load_weights(experiment, options.average)
            model, facts, more = build_model(weights, units), weights.provenance, {"units": units}
        encoder = model.encoder
    facts = {name: value for name, value in facts.items() if name != "source"}
    facts = {"code": commit(), **facts, "encoder_id": encoder_id(encoder)}
    sizes: dict[str, Any] = {
        "parameters": f"{sum(each.numel() for each in model.parameters()):,}",
        "layers": len(encoder.hidden_dims),
        "channels": encoder.output_dim,
        "frame rate of the output": f"{encoder.frame_rate} Hz",
        "centre of the first frame": f"{encoder.first_frame_center_ms:g} ms",
    }
    card = model_card(kind, facts, sizes, experiment, options.licence, command)
    return Exported(model, card, facts, **more)


def _task(experiment: Path) -> str:
    """ "tagging" or "ctc", from the run's task.json."""
    path = experiment / "task.json"
    if not path.is_file():
        raise ValueError(
            f"{experiment} has no task.json: give the folder of a fine-tuning (asr or tagging), or --encoder"
        )
    kind = read_json(path).get("kind")
    if kind not in ("asr", "tagging"):
        raise ValueError(
            f"{experiment} is a run of {kind!r}, not a fine-tuning: give its encoder (--encoder)"
        )
    return "ctc" if kind == "asr" else "tagging"
