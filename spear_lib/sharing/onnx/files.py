"""How a PyTorch module becomes an ONNX file (ours).

PyTorch has two exporters. This is the one that records a run (``dynamo=False``): half a second for a small
encoder where the other, which solves for every size, takes more than a minute and gives the same numbers
(measured on two layers, torch 2.13). What recording could miss, a size of the example kept as a constant, is
found by running the file beside PyTorch on several sizes, which every export goes through.

One file of protobuf holds less than 2 GiB. Larger weights lie beside it, ``encoder.onnx.data`` beside
``encoder.onnx``; onnxruntime finds them by their name, so the two move together and keep their names.
"""

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spear_lib.sharing.onnx.runtime import (
    DECODER,
    ENCODER,
    ERROR_RATES,
    INSTALL,
    JOINER,
    TOKENS,
    eight_bit_name,
)

OPSET = 17
"""Operators that onnxruntime 1.13 and later have, also inside older builds of sherpa-onnx."""
TOLERANCE = 1e-3
"""Largest difference to PyTorch, relative to the largest value, with which an export is accepted."""
LARGEST_FILE_MB = 1900.0
"""Weights above so many MB (1e6 bytes) lie beside the file: protobuf ends at 2 GiB, the graph included."""
_NAMES = [name for part in (ENCODER, DECODER, JOINER) for name in (part, eight_bit_name(part))]
_PRODUCTS = {*_NAMES, *(f"{name}.data" for name in _NAMES), TOKENS, ERROR_RATES}


@dataclass
class Graph:
    """A module to record: what goes in and comes out by name, and which axes are free."""

    module: nn.Module
    inputs: dict[str, Tensor]
    """Examples by name, in the order of ``forward``."""
    outputs: list[str]
    axes: dict[str, dict[int, str]]
    """Of inputs and outputs: axis -> its symbol, where its size is free."""
    metadata: dict[str, Any] = field(default_factory=dict)


def require_onnx() -> Any:
    """The package onnx; RuntimeError where it or onnxruntime is missing."""
    try:
        import onnx
        import onnxruntime  # noqa: F401  every export is verified by running it
    except ImportError as error:
        raise RuntimeError(f"ONNX export needs onnx and onnxruntime ({error}): {INSTALL}") from error
    return onnx


def record(graph: Graph, path: Path, largest_mb: float = LARGEST_FILE_MB) -> None:
    """Write ``graph`` as ``path``, and its weights as ``path``.data where they exceed ``largest_mb``."""
    onnx = require_onnx()
    # In a folder of its own: weights of more than 2 GiB leave the exporter as one file for each tensor.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        recorded = Path(folder) / path.name
        with torch.no_grad(), warnings.catch_warnings():
            # Both are told above: which exporter this is, and that sizes become constants where layers need
            # them.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", torch.jit.TracerWarning)
            warnings.filterwarnings("ignore", message="Constant folding")
            torch.onnx.export(
                graph.module.eval(),
                tuple(graph.inputs.values()),
                str(recorded),
                input_names=list(graph.inputs),
                output_names=graph.outputs,
                dynamic_axes=graph.axes,
                opset_version=OPSET,
                dynamo=False,
            )
        model = onnx.load(recorded)
    for name, value in graph.metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, str(value)
    _save(model, path, largest_mb)


def _save(model: Any, path: Path, largest_mb: float) -> None:
    """Write ``model``, all of it in memory."""
    onnx = require_onnx()
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if size <= largest_mb * 1e6:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location=weights_beside(path).name)
        shutil.copymode(path, weights_beside(path))  # onnx lets nobody else read them


def quantise(source: Path, target: Path, largest_mb: float = LARGEST_FILE_MB) -> None:
    """Write ``source`` with the weights of its matrix products in 8 bits, their inputs too while it runs."""
    onnx = require_onnx()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it tells of every operator through the root logger
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            quantised = Path(folder) / target.name
            quantize_dynamic(
                str(source),
                str(quantised),
                op_types_to_quantize=["MatMul"],
                weight_type=QuantType.QInt8,
                use_external_data_format=weights_beside(source).is_file(),
            )
            model = onnx.load(quantised)
    finally:
        logging.disable(disabled)
    _save(model, target, largest_mb)


def weights_beside(path: Path) -> Path:
    """Where the weights of ``path`` lie, if they do not lie in it."""
    return path.with_name(path.name + ".data")


def write_aside(folder: str | os.PathLike, write: Callable[[Path], dict[str, float]]) -> dict[str, float]:
    """``write`` files aside; they are moved into ``folder`` when all of them are there and verified.

    What an earlier export left there and this one does not write is removed: its 8-bit files, its weights
    beside a file, its error rates would be another model's.
    """
    require_onnx()
    folder = Path(folder)
    aside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        differences = write(aside)
        folder.mkdir(parents=True, exist_ok=True)
        written = sorted(path.name for path in aside.iterdir())
        for name in _PRODUCTS.difference(written):
            (folder / name).unlink(missing_ok=True)
        for name in written:
            os.replace(aside / name, folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return differences


def check_equal(name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> float:
    """Largest difference; RuntimeError where it is above ``tolerance`` of the largest value of ``ours``."""
    if ours.shape != theirs.shape:
        raise RuntimeError(f"{name} gives {tuple(theirs.shape)} where PyTorch gives {tuple(ours.shape)}")
    if not ours.numel():
        return 0.0
    difference = float((ours - theirs).abs().max())
    if not difference <= tolerance * max(1.0, float(ours.abs().max())):
        raise RuntimeError(
            f"{name} differs from PyTorch by {difference:.3g}, the limit is {tolerance:g} of the largest "
            "value: nothing was written. Please report the encoder's configuration and the version of torch"
        )
    return difference
