"""Folders that transformers loads: encoders, CTC recognisers and taggers, with published tensor names.

A folder holds config.json in the form of the authors' releases, model.safetensors, modeling_spear.py, the
settings of a feature extractor and a model card. It is written aside, run beside this library on padded
batches, and only then moved to its place.
"""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spear_lib.asr.model import AsrModel
from spear_lib.encoders.kinds import Encoder
from spear_lib.encoders.zipformer import SpearEncoder
from spear_lib.runtime.files import write_json, write_text
from spear_lib.sharing.one_file import MODULE, modelling_file
from spear_lib.sharing.tokenizer import write_tokenizer
from spear_lib.tagging.model import TaggingModel

logger = logging.getLogger(__name__)

PREFIX = "model.model."
"""In front of the encoder's tensors in published files."""
TOLERANCE = 1e-4
"""Largest difference to this library, relative to the largest value, with which an export is accepted."""
INSTALL = "pip install 'spear_lib[hub]', or pip install transformers"
_HEADS = {AsrModel: "ctc_output.", TaggingModel: "audio_tagging_proj."}
_LISTS = (
    "frontend_channels",
    "downsampling_factor",
    "num_encoder_layers",
    "encoder_dim",
    "feedforward_dim",
    "encoder_unmasked_dim",
    "num_heads",
    "query_head_dim",
    "pos_head_dim",
    "value_head_dim",
    "cnn_module_kernel",
    "chunk_size",
    "left_context_frames",
)
_VALUES = ("num_mel_bins", "pos_dim", "causal", "output_downsampling_factor", "padding")
_FEATURE_EXTRACTOR = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "sampling_rate": 16000,
    "padding_value": 0.0,
    "padding_side": "right",
    "do_normalize": False,
    "return_attention_mask": True,
}


@dataclass(frozen=True)
class Exported:
    """What goes into a folder."""

    model: nn.Module
    """An encoder, AsrModel with a CTC head or TaggingModel, in evaluation mode on the CPU."""
    card: str
    """The text of README.md."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from, as "provenance" in config.json."""
    units: Any = None
    """Of a recogniser: its text units."""
    classes: dict[str, str] = field(default_factory=dict)
    """Of a tagger: label -> name, in the order of the outputs."""


def published_settings(encoder: SpearEncoder) -> dict[str, Any]:
    """An encoder's settings as config.json of a release has them: numbers of stacks with commas."""
    config = encoder.config
    lists = {name: ",".join(map(str, getattr(config, name))) for name in _LISTS}
    return {"model_type": "spear", **lists, **{name: getattr(config, name) for name in _VALUES}}


def export_huggingface(exported: Exported, folder: str | os.PathLike) -> float:
    """Write ``folder``; files in it that have other names stay.

    Returns:
      Largest difference between what transformers and this library compute.

    Raises:
      ValueError: a model that transformers has no place for.
      RuntimeError: transformers is missing, or computes something else.
    """
    try:
        import transformers  # noqa: F401  every export is verified by running it
    except ImportError as error:
        raise RuntimeError(f"the export is verified by transformers ({error}): {INSTALL}") from error
    folder = Path(folder)
    aside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        difference = _write(exported, aside)
        folder.mkdir(parents=True, exist_ok=True)
        # The config last: a folder with a config is complete.
        for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return difference


def _write(exported: Exported, folder: Path) -> float:
    model = exported.model
    write_json(folder / "preprocessor_config.json", _FEATURE_EXTRACTOR)
    write_text(folder / "README.md", exported.card)
    encoder = model.encoder if isinstance(model, AsrModel | TaggingModel) else model
    if not isinstance(encoder, SpearEncoder):
        if encoder is not model:
            raise ValueError(
                f"the model's encoder is a {encoder.encoder_type}: only Zipformers are exported with a head; "
                "export the encoder alone (--encoder)"
            )
        return _write_wavlm(encoder, folder, exported.facts)
    state = {PREFIX + name: value for name, value in encoder.state_dict().items()}
    settings = published_settings(encoder)
    name, more = _head(exported, folder)
    if encoder is not model:
        own = {key: value for key, value in model.state_dict().items() if key.startswith(_HEADS[type(model)])}
        state |= own
    settings |= {
        "architectures": [name],
        "auto_map": {
            "AutoConfig": f"{MODULE}.SpearConfig",
            "AutoModel": f"{MODULE}.SpearModel",
            "AutoModelForCTC": f"{MODULE}.SpearForCTC",
            "AutoModelForAudioClassification": f"{MODULE}.SpearForAudioClassification",
        },
        "sampling_rate": encoder.sample_rate,
        "provenance": exported.facts,
        **more,
    }
    _save(state, folder / "model.safetensors")
    write_text(folder / f"{MODULE}.py", modelling_file())
    write_json(folder / "config.json", settings)
    from spear_lib.sharing.modelling import models

    loaded = getattr(models, name).from_pretrained(folder)
    return _verify(lambda audio, lengths: _outputs(loaded(audio, lengths)), _ours(model), encoder)


def _head(exported: Exported, folder: Path) -> tuple[str, dict[str, Any]]:
    """Class of the model, in ``modelling.models`` too, and the settings of its head."""
    model = exported.model
    if isinstance(model, AsrModel):
        if "ctc" not in model.heads:
            raise ValueError(
                "the model has no CTC head, the one recogniser that transformers has a place for: fine-tune "
                "with model.ctc_loss_scale above 0, or export the transducer with spear_lib.bin.export_onnx"
            )
        write_tokenizer(exported.units, folder)
        size = {"vocab_size": model.vocab_size, "pad_token_id": model.blank_id}
        return "SpearForCTC", {**size, "ctc_loss_reduction": "mean"}
    if isinstance(model, TaggingModel):
        names = list(exported.classes.values())
        more = {
            "id2label": {str(number): name for number, name in enumerate(names)},
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": "multi_label_classification",
            "pooling": model.config.pooling,
            "class_labels": list(exported.classes),
        }
        return "SpearForAudioClassification", more
    feature = {"impl": f"{MODULE}.SpearFeaturePipeline", "pt": ["AutoModel"], "type": "audio"}
    return "SpearModel", {"custom_pipelines": {"feature-extraction": feature}}


def _write_wavlm(encoder: Encoder, folder: Path, facts: dict[str, Any]) -> float:
    """The Transformer encoder is WavLM's: transformers has its code, and no remote code is needed."""
    from transformers import AutoModel, WavLMConfig

    config = encoder.config
    settings = WavLMConfig(
        conv_dim=(config.conv_channels,) * 7,
        hidden_size=config.hidden_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.feedforward_dim,
        num_conv_pos_embeddings=config.position_kernel,
        num_conv_pos_embedding_groups=config.position_groups,
        num_buckets=config.num_buckets,
        max_bucket_distance=config.max_distance,
        hidden_dropout=config.dropout,
        layerdrop=config.layerdrop,
        architectures=["WavLMModel"],
    )
    _save(encoder.state_dict(), folder / "model.safetensors")
    write_json(folder / "config.json", {**settings.to_dict(), "provenance": facts})
    loaded = AutoModel.from_pretrained(folder)

    def theirs(audio: Tensor, lengths: Tensor) -> list[Tensor]:
        return [loaded(audio).last_hidden_state]

    # One utterance at a time: WavLM's first norm runs over the padding of a batch, ours does not.
    return _verify(theirs, lambda audio, lengths: _ours(encoder)(audio, lengths)[:1], encoder, (1, 1, 1))


def _save(state: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors lets nobody else read it


def _outputs(output: Any) -> list[Tensor]:
    """What is compared: frames (B, T, ...) of the output and the layers, or (B, K) of clips."""
    if "encoder_out" in output:
        return [output.encoder_out, *output.hidden_states]
    return [output.logits]


def _ours(model: nn.Module) -> Callable[[Tensor, Tensor], list[Tensor]]:
    def compute(audio: Tensor, lengths: Tensor) -> list[Tensor]:
        encoder = model.encoder if isinstance(model, AsrModel | TaggingModel) else model
        output = encoder.extract(audio, lengths)
        if isinstance(model, AsrModel):
            return [model.ctc_output(output.encoder_out)]
        if isinstance(model, TaggingModel):
            return [model.clip_logits(model.frame_logits(output.encoder_out), output.lengths)]
        return [output.encoder_out, *output.hidden_states]

    return compute


@torch.no_grad()
def _verify(
    theirs: Callable, ours: Callable, encoder: Encoder, batches: tuple[int, int, int] = (1, 2, 3)
) -> float:
    """Largest difference in valid frames over padded batches."""
    random, largest = torch.Generator().manual_seed(1), 0.0
    for batch, samples in zip(batches, (1360, 16000, 43210)):
        audio = 0.1 * torch.randn(batch, samples, generator=random)
        lengths = torch.linspace(samples, max(1360, samples // 3), batch).long()
        pairs = zip(ours(audio, lengths), theirs(audio, lengths), strict=True)
        for number, (mine, other) in enumerate(pairs):
            if mine.shape != other.shape:
                raise RuntimeError(
                    f"transformers gives {tuple(other.shape)}, this library {tuple(mine.shape)}"
                )
            for row, length in enumerate(lengths.tolist()):
                frames = encoder.output_length(length) if number == 0 else encoder.hidden_length(length)
                valid = slice(frames) if mine.dim() == 3 else slice(None)
                a, b = mine[row, valid], other[row, valid]
                difference = float((a - b).abs().max())
                if not difference <= TOLERANCE * max(1.0, float(a.abs().max())):
                    raise RuntimeError(
                        f"transformers' output differs by {difference:.3g}, the limit is {TOLERANCE:g} of "
                        "the largest value: nothing was written. Please report the encoder's "
                        "configuration and the versions of torch and transformers"
                    )
                largest = max(largest, difference)
    return largest
