"""A recogniser from the folder that holds it: of a fine-tuning, or of its export to ONNX."""

from typing import Any

import torch

from spear_lib.asr.decoding import build_model, load_weights
from spear_lib.asr.searcher import SearchConfig, Searcher
from spear_lib.asr.units import units_of
from spear_lib.sharing.onnx.runtime import OnnxTransducer, is_onnx_folder


def open_searcher(
    experiment_dir: str, units: str, average: int, search: SearchConfig, device: torch.device
) -> tuple[Searcher, dict[str, Any], torch.device]:
    """The model with its search, where its weights come from, and the device it computes on.

    Args:
      experiment_dir: of finetune_asr, or of export_onnx.
      units: see ``asr.units.units_of``.
      average: see ``asr.decoding.load_weights``.
    """
    if is_onnx_folder(experiment_dir):
        exported = OnnxTransducer(experiment_dir)
        searcher = Searcher(exported, exported.units, search)
        return searcher, exported.encoder.provenance, torch.device("cpu")
    text_units = units_of(experiment_dir, units)
    weights = load_weights(experiment_dir, average)
    searcher = Searcher(build_model(weights, text_units).to(device), text_units, search)
    return searcher, weights.provenance, device
