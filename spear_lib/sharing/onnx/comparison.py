"""What an export costs: a test set recognised by PyTorch and by the files, side by side (ours)."""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spear_lib.asr.decoding import Weights, build_model, text_of
from spear_lib.asr.model import AsrModel
from spear_lib.asr.searcher import SearchConfig, Searcher
from spear_lib.asr.wer import score
from spear_lib.config import to_dict
from spear_lib.data.audio_batches import load_waveforms
from spear_lib.data.manifests import Manifest
from spear_lib.data.references import references
from spear_lib.encoders.zipformer.streaming import StreamingEncoder
from spear_lib.runtime.files import write_json
from spear_lib.runtime.log import commit
from spear_lib.runtime.progress import progress
from spear_lib.sharing.onnx.runtime import ERROR_RATES, OnnxTransducer

logger = logging.getLogger(__name__)


@torch.no_grad()
def _texts(searcher: Searcher, manifest: Manifest, description: str) -> dict[str, str]:
    """Cut id -> text, cut by cut: what is rounded to 8 bits is scaled by the largest value of the whole
    batch, so that a text would depend on its neighbours; live recognition has none."""
    texts = {}
    for position in progress(range(len(manifest)), len(manifest), description, "cuts"):
        output = searcher.model.encoder.extract(*load_waveforms(manifest, [position]))
        (hypothesis,) = searcher(output.encoder_out, output.lengths)
        texts[manifest.ids[position]] = text_of(searcher.units, hypothesis)
    return texts


def compare(searchers: dict[str, Searcher], manifest: Manifest, name: str) -> dict[str, dict[str, Any]]:
    """Recognise the set ``manifest``, called ``name``, with each of ``searchers`` and score what they write.

    Returns:
      Runtime -> word errors as in wer-<set>.json, "differing_texts" (utterances whose text is not that of
      the first runtime) and "seconds" (reading, features, encoder and search).

    Raises:
      ValueError: the set has no transcripts.
    """
    spoken = references(manifest)
    audio_seconds = float(np.sum(manifest.durations))
    outcomes: dict[str, dict[str, Any]] = {}
    first: dict[str, str] = {}
    for runtime, searcher in searchers.items():
        started = time.monotonic()
        texts = _texts(searcher, manifest, f"{name}, {runtime}")
        seconds = time.monotonic() - started
        first = first or texts
        differing = sum(texts[id] != first[id] for id in texts)
        errors = score(spoken, texts, name)
        outcomes[runtime] = {
            **errors.summary(),
            "differing_texts": differing,
            "seconds": round(seconds, 1),
        }
        low, high = errors.interval()
        logger.info(
            "%s, %s: WER %.2f %% (%.2f to %.2f), %d of %d texts differ from the first, %.0f x real time",
            name,
            runtime,
            errors.wer,
            low,
            high,
            differing,
            len(texts),
            audio_seconds / max(seconds, 1e-9),
        )
    return outcomes


def in_chunks_of(streaming: StreamingEncoder, weights: Weights, units: Any) -> AsrModel:
    """The model whose pass over whole utterances sees what ``streaming`` does."""
    chunks = {
        "chunk_size": [streaming.chunk_size],
        "left_context_frames": [streaming.left_context_frames],
    }
    config = {**weights.facts["encoder_config"], **chunks}
    return build_model(Weights(weights.state, {**weights.facts, "encoder_config": config}), units)


def compare_files(
    folder: str,
    int8: bool,
    model: AsrModel,
    units: Any,
    sets: dict[str, Manifest],
    search: SearchConfig,
    facts: dict[str, Any],
) -> None:
    """Every set with ``model`` and with the files of ``folder``, side by side, on the log and in wer.json.

    Args:
      int8: the files of 8 bits too. facts: go into wer.json.
    """
    searchers = {"PyTorch": Searcher(model, units, search)}
    for name, small in {"ONNX": False, "ONNX int8": True}.items():
        if int8 or not small:
            exported = OnnxTransducer(folder, small)
            searchers[name] = Searcher(exported, exported.units, search)
    found = {name: compare(searchers, manifest, name) for name, manifest in sets.items()}
    write_json(
        Path(folder) / ERROR_RATES, {"sets": found, "search": to_dict(search), **facts, "code": commit()}
    )
