"""Recognising sets of cuts with a fine-tuned model.

Legend: B utterances, N samples (16 kHz), T encoder frames.
"""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_lib.asr.hypothesis import Hypothesis
from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.asr.searcher import Searcher
from spear_lib.asr.task import check_vocabulary
from spear_lib.asr.units import CharacterUnits, TextUnits, character_units, load_units
from spear_lib.asr.words import Unit, words_of
from spear_lib.config import load as load_options
from spear_lib.data.audio_batches import waveform_batches
from spear_lib.data.manifests import Manifest
from spear_lib.encoders import load_encoder
from spear_lib.runtime.files import write_text
from spear_lib.runtime.progress import progress
from spear_lib.training.checkpoint_average import average_checkpoints, weights_hash

logger = logging.getLogger(__name__)


@dataclass
class Weights:
    """Weights for decoding and where they come from."""

    state: dict[str, Tensor]
    """Names and tensors of an ``AsrModel``."""
    facts: dict[str, Any]
    """encoder_config, transducer_config, units_id, vocab_size of the checkpoint."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Steps, files and content hash, for the result files."""


def load_weights(experiment_dir: str | os.PathLike, average: int) -> Weights:
    """Weights of a fine-tuning run, averaged over its end.

    With the running model average in the checkpoints the mean is over every snapshot between the checkpoint
    ``average`` places before the last one and the last one (spec optim §3); without it, over the weights of
    the last ``average`` checkpoints.

    Args:
      experiment_dir: of ``finetune_asr``.
      average: how many save intervals; 0 takes the last weights as they are.

    Raises:
      ValueError: no checkpoint, fewer checkpoints than wanted, another kind of checkpoint.
    """
    if not (Path(experiment_dir) / "checkpoints" / "last.pt").exists():
        raise ValueError(f"{experiment_dir} has no checkpoint: fine-tune first (run.sh stage 12).")
    method = "none" if average == 0 else None
    averaged = average_checkpoints(experiment_dir, average, method, kind="asr")
    last = averaged.checkpoint
    facts = {name: last[name] for name in ("encoder_config", "transducer_config", "units_id", "vocab_size")}
    provenance = {
        "step": last["step"],
        "average": average,
        "weights": averaged.words,
        "weights_hash": weights_hash(averaged.state),
    }
    return Weights(averaged.state, facts, provenance)


def model_units(weights: Weights, name: str) -> TextUnits | CharacterUnits:
    """The units of a model: characters where it was trained with them, else those called ``name``."""
    characters = character_units()
    return characters if weights.facts["units_id"] == characters.id else load_units(name)


def build_model(weights: Weights, units: Any) -> AsrModel:
    """The model in evaluation mode.

    Raises:
      ValueError: the units are not those that the model was trained with.
    """
    check_vocabulary(weights.facts["vocab_size"], units)
    if weights.facts["units_id"] != units.id:
        raise ValueError(
            f"the model was trained with the text units {weights.facts['units_id']}, and these are "
            f"{units.id}, of the same size but with other pieces: what it writes would be nonsense. "
            "Give the units of its training."
        )
    encoder = load_encoder(weights.facts["encoder_config"])
    config = load_options(TransducerConfig, weights.facts["transducer_config"])
    model = AsrModel(encoder, config, weights.facts["vocab_size"])
    model.load_state_dict(weights.state)
    return model.eval()


@torch.no_grad()
def set_scores(
    searcher: Searcher, manifest: Manifest, batch_seconds: float, description: str
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """What the search reads, for a whole set: positions in the manifest, scores (B, T, ...), lengths (B,)."""
    model = searcher.model
    device = next(model.parameters()).device
    batches = waveform_batches(manifest, batch_seconds)
    for rows, waveforms, lengths in progress(_cuts(batches), len(manifest), description, "cuts"):
        if rows is not None:
            output = model.encoder.extract(waveforms.to(device), lengths.to(device))
            yield rows, searcher.scores(output.encoder_out), output.lengths


def _cuts(batches: Iterator) -> Iterator:
    """Each batch, then an empty item for each further cut of it: a progress bar that counts cuts."""
    for rows, waveforms, lengths in batches:
        yield rows, waveforms, lengths
        for _ in rows[1:]:
            yield None, None, None


def recognise(
    searcher: Searcher,
    manifest: Manifest,
    batch_seconds: float = 100.0,
    num_best: int = 0,
    description: str = "recognising",
) -> dict[str, dict[str, Any]]:
    """What is said in each cut of a set.

    Args:
      searcher: model and search.
      manifest: the cuts.
      batch_seconds: padded audio of a batch; changes speed and memory, not results.
      num_best: hypotheses to keep beside the best one.
      description: of the progress bar.

    Returns:
      Cut id -> {"text", "units", "times" (s, centre of the frame that emitted each unit), "words" ({"word",
      "start", "end"} in s: from the begin of its first unit's frame to the end of its last one's), "score"}
      in the order of the manifest; with ``num_best`` also "nbest", {"text", "score"} by falling score.
    """
    units, encoder = searcher.units, searcher.model.encoder
    first, step = encoder.first_frame_center_ms / 1000, 1 / encoder.frame_rate
    results: dict[int, dict[str, Any]] = {}
    for rows, scores, lengths in set_scores(searcher, manifest, batch_seconds, description):
        for row, hypothesis in zip(rows, searcher.search(scores, lengths)):
            texts = [units.unit(unit) for unit in hypothesis.ids]
            times = [first + frame * step for frame in hypothesis.timestamps]
            emitted = [Unit(text, t - step / 2, t + step / 2, 1.0) for text, t in zip(texts, times)]
            results[row] = {
                "text": text_of(units, hypothesis),
                "units": texts,
                "times": [round(time, 3) for time in times],
                "words": [
                    {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
                    for word in words_of(units, hypothesis.ids, emitted)
                ],
                "score": round(hypothesis.score, 4),
            }
            if num_best:
                results[row]["nbest"] = [
                    {"text": text_of(units, entry), "score": round(entry.score, 4)}
                    for entry in (hypothesis.nbest or [hypothesis])[:num_best]
                ]
    ids = manifest.ids
    return {ids[row]: results[row] for row in sorted(results)}


def text_of(units: Any, hypothesis: Hypothesis) -> str:
    """The words of a hypothesis, joined by single spaces."""
    return " ".join(units.decode(hypothesis.ids).split())


def write_recognised(
    path: str | os.PathLike, results: dict[str, dict[str, Any]], references: dict[str, str]
) -> None:
    """``recogs-<set>.jsonl``: one line per utterance with reference, hypothesis, units and their times."""
    lines = []
    for id, result in results.items():
        line = {"id": id, "reference": references[id], "hypothesis": result["text"], **result}
        del line["text"]
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))
