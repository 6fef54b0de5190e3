"""Models as ONNX files with the names, shapes and metadata that sherpa-onnx reads (ours).

An offline transducer is four files: ``encoder.onnx``, ``decoder.onnx``, ``joiner.onnx`` and ``tokens.txt``.
The projections of the joiner belong to the encoder and the decoder, so that all three meet in its width.

PyTorch has two exporters. This is the one that records a run (``dynamo=False``): half a second for a small
encoder where the other, which solves for every size, takes more than a minute and gives the same numbers
(measured on two layers, torch 2.13). What recording could miss, a size of the example kept as a constant, is
found by running the file beside PyTorch on several sizes, which every export goes through.

Legend: N utterances, T fbank frames (10 ms), F mel bins, U encoder frames, D encoder channels.
"""

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spear_lib.asr.model import AsrModel
from spear_lib.asr.onnx_runtime import ENCODER, INSTALL, TOKENS, OnnxPart
from spear_lib.asr.words import WORD_START
from spear_lib.encoders.zipformer import SpearEncoder
from spear_lib.runtime.files import write_text

logger = logging.getLogger(__name__)

OPSET = 17
"""Operators that onnxruntime 1.13 and later have, also inside older builds of sherpa-onnx."""
TOLERANCE = 1e-3
"""Largest difference to PyTorch, relative to the largest value, with which an export is accepted."""
_VERIFIED_SIZES = ((1, 9), (1, 16), (2, 77), (3, 300), (2, 1001))  # (N, T)


class _Encoder(nn.Module):
    def __init__(self, encoder: SpearEncoder, project: nn.Module, layers: bool):
        super().__init__()
        self.encoder, self.project, self.layers = encoder, project, layers

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, ...]:
        embedded, lengths = self.encoder.encoder_embed(x, x_lens)
        encoded, lengths, hidden, _ = self.encoder.encoder(embedded, lengths)
        return self.project(encoded), lengths, *(hidden if self.layers else ())


class _Decoder(nn.Module):
    def __init__(self, model: AsrModel):
        super().__init__()
        self.decoder, self.project = model.decoder, model.joiner.decoder_proj

    def forward(self, y: Tensor) -> Tensor:
        # The last of all positions has the whole context; the way of searches is made for running, not
        # recording.
        return self.project(self.decoder(y)[:, -1])


class _Joiner(nn.Module):
    def __init__(self, model: AsrModel):
        super().__init__()
        self.output = model.joiner.output_linear

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        return self.output(torch.tanh(encoder_out + decoder_out))


def _require_onnx() -> Any:
    try:
        import onnx
        import onnxruntime  # noqa: F401  every export is verified by running it
    except ImportError as error:
        raise RuntimeError(f"ONNX export needs onnx and onnxruntime ({error}): {INSTALL}") from error
    return onnx


def _record(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    axes: dict[str, dict[int, str]],
    names: tuple[list[str], list[str]],
    metadata: dict[str, Any],
) -> None:
    """Write ``module`` as ``path`` with dynamic ``axes`` and ``metadata``."""
    onnx = _require_onnx()
    with torch.no_grad(), warnings.catch_warnings():
        # Both are told above: which exporter this is, and that sizes become constants where layers need them.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", message="Constant folding")
        torch.onnx.export(
            module.eval(),
            inputs,
            str(path),
            input_names=names[0],
            output_names=names[1],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    graph = onnx.load(path)
    for name, value in metadata.items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = name, str(value)
    onnx.save(graph, path)


def layer_names(encoder: SpearEncoder) -> list[str]:
    """Names of the outputs of single layers: layer_01, layer_02, ..."""
    return [f"layer_{number:02d}" for number in range(1, len(encoder.hidden_dims) + 1)]


def _write_encoder(
    encoder: SpearEncoder, project: nn.Module, path: Path, facts: dict[str, Any], layers: bool = False
) -> None:
    if not isinstance(encoder, SpearEncoder):
        raise ValueError(
            f"the encoder is a {type(encoder).__name__}: only Zipformer encoders, which read log-mel "
            "features, can be exported (sherpa-onnx has no front end for the others)"
        )
    bins = encoder.config.num_mel_bins
    fbank = torch.randn(2, 203, bins, generator=torch.Generator().manual_seed(0))
    metadata = {
        "model_type": "zipformer2",
        "version": "1",
        "model_author": "spear_lib",
        "comment": "offline Zipformer encoder of spear_lib",
        "feature_dim": bins,
        "sample_rate": encoder.sample_rate,
        "frame_rate": encoder.frame_rate,
        "first_frame_center_ms": encoder.first_frame_center_ms,
        **facts,
    }
    names = layer_names(encoder) if layers else []
    _record(
        _Encoder(encoder, project, layers),
        (fbank, torch.tensor([203, 150])),
        path,
        {
            "x": {0: "N", 1: "T"},
            "x_lens": {0: "N"},
            "encoder_out": {0: "N", 1: "U"},
            "encoder_out_lens": {0: "N"},
            **{name: {0: "N", 1: "V"} for name in names},
        },
        (["x", "x_lens"], ["encoder_out", "encoder_out_lens", *names]),
        metadata,
    )


def _into(folder: str | os.PathLike, write: Callable[[Path], dict[str, float]]) -> dict[str, float]:
    """``write`` files aside; they are moved into ``folder`` when all of them are there and verified."""
    folder = Path(folder)
    aside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        differences = write(aside)
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(aside.iterdir()):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return differences


def export_encoder(
    encoder: SpearEncoder,
    folder: str | os.PathLike,
    facts: dict[str, Any] | None = None,
    layers: bool = False,
    int8: bool = False,
) -> dict[str, float]:
    """Write ``folder``/encoder.onnx: x (N, T, F), x_lens (N,) -> encoder_out (N, U, D), its lengths (N,).

    Args:
      layers: also the output of every layer, layer_01 ... (N, V, D_i), V frames at 50 Hz.
      int8: also write ``encoder.int8.onnx``, with weights of 8 bits.

    Returns:
      Largest difference to PyTorch.
    """

    def write(aside: Path) -> dict[str, float]:
        _write_encoder(encoder, nn.Identity(), aside / ENCODER, facts or {}, layers)
        differences = {ENCODER: _verify_encoder(encoder, nn.Identity(), aside / ENCODER)}
        if int8:
            name = "encoder.int8.onnx"
            _quantise(aside / ENCODER, aside / name)
            differences[name] = _verify_encoder(encoder, nn.Identity(), aside / name, float("inf"))
        return differences

    _require_onnx()
    return _into(folder, write)


def export_transducer(
    model: AsrModel,
    units: Any,
    folder: str | os.PathLike,
    facts: dict[str, Any] | None = None,
    int8: bool = False,
) -> dict[str, float]:
    """Write a fine-tuned transducer for sherpa-onnx.

    Args:
      model: in evaluation mode, on the CPU.
      units: its text units.
      facts: more metadata of the encoder (where the weights come from).
      int8: also write ``encoder.int8.onnx`` and ``joiner.int8.onnx``, with weights of 8 bits.

    Returns:
      File -> largest difference to PyTorch (of the 8-bit ones too, which are not held to ``TOLERANCE``).

    Raises:
      ValueError: the model has no transducer, or another encoder than a Zipformer.
      RuntimeError: onnx is missing; a file does not compute what PyTorch does.
    """
    _require_onnx()
    if "transducer" not in model.heads:
        raise ValueError(
            "the model has no transducer (it was trained with CTC alone), whose decoder and joiner these "
            "files hold. Fine-tune with model.transducer_loss_scale above 0"
        )
    size, width, vocab = model.decoder.context_size, model.config.joiner_dim, model.vocab_size

    def write(aside: Path) -> dict[str, float]:
        project = model.joiner.encoder_proj
        _write_encoder(model.encoder, project, aside / ENCODER, facts or {})
        _record(
            _Decoder(model),
            (torch.zeros((3, size), dtype=torch.int64),),
            aside / "decoder.onnx",
            {"y": {0: "N"}, "decoder_out": {0: "N"}},
            (["y"], ["decoder_out"]),
            {"context_size": size, "vocab_size": vocab},
        )
        _record(
            _Joiner(model),
            (torch.zeros(3, width), torch.zeros(3, width)),
            aside / "joiner.onnx",
            {"encoder_out": {0: "N"}, "decoder_out": {0: "N"}, "logit": {0: "N"}},
            (["encoder_out", "decoder_out"], ["logit"]),
            {"joiner_dim": width},
        )
        write_text(aside / TOKENS, "".join(token_lines(units)))
        differences = {
            ENCODER: _verify_encoder(model.encoder, project, aside / ENCODER),
            **_verify_heads(model, aside),
        }
        if int8:
            for name in ("encoder", "joiner"):
                _quantise(aside / f"{name}.onnx", aside / f"{name}.int8.onnx")
            name = "encoder.int8.onnx"
            differences[name] = _verify_encoder(model.encoder, project, aside / name, float("inf"))
        return differences

    return _into(folder, write)


def token_lines(units: Any) -> Iterable[str]:
    """The lines of tokens.txt: "<unit> <id>"; the space between words is written as sentencepiece does."""
    for number in range(units.vocab_size):
        unit = units.unit(number)
        yield f"{WORD_START if unit == ' ' else unit} {number}\n"


def _quantise(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # it tells of every operator through the root logger
    try:
        options = {"op_types_to_quantize": ["MatMul"], "weight_type": QuantType.QInt8}
        quantize_dynamic(str(source), str(target), **options)
    finally:
        logging.disable(logging.NOTSET)


def _difference(name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> float:
    if ours.shape != theirs.shape:
        raise RuntimeError(f"{name} gives {tuple(theirs.shape)} where PyTorch gives {tuple(ours.shape)}")
    difference = float((ours - theirs).abs().max())
    if not difference <= tolerance * max(1.0, float(ours.abs().max())):
        raise RuntimeError(
            f"{name} differs from PyTorch by {difference:.3g}, the limit is {tolerance:g} of the largest "
            "value: nothing was written. Please report the encoder's configuration and the version of torch"
        )
    return difference


@torch.no_grad()
def _verify_encoder(
    encoder: SpearEncoder, project: nn.Module, path: Path, tolerance: float = TOLERANCE
) -> float:
    """Largest difference over several sizes of batches, with padding."""
    part, largest = OnnxPart(path), 0.0
    random = torch.Generator().manual_seed(1)
    for batch, frames in _VERIFIED_SIZES:
        fbank = 3.0 * torch.randn(batch, frames, encoder.config.num_mel_bins, generator=random) - 8.0
        lengths = torch.randint(9, frames + 1, (batch,), generator=random)
        lengths[0] = frames
        expected = encoder(fbank, lengths)
        found, found_lengths, *layers = part(x=fbank, x_lens=lengths)
        if found_lengths.tolist() != expected.lengths.tolist():
            raise RuntimeError(f"{path.name} gives lengths {found_lengths.tolist()}, not {expected.lengths}")
        ours = project(expected.encoder_out)
        for row, length in enumerate(expected.lengths.tolist()):
            place = f"{path.name} (batch of {batch}, {frames} frames)"
            difference = _difference(place, ours[row, :length], found[row, :length], tolerance)
            largest = max(largest, difference)
            frames_50 = int(lengths[row] - 7) // 2
            for name, mine, other in zip(layer_names(encoder), expected.hidden_states, layers):
                mine, other = mine[row, :frames_50], other[row, :frames_50]
                largest = max(largest, _difference(f"{place}, {name}", mine, other, tolerance))
    return largest


@torch.no_grad()
def _verify_heads(model: AsrModel, folder: Path) -> dict[str, float]:
    random = torch.Generator().manual_seed(2)
    decoder, joiner = OnnxPart(folder / "decoder.onnx"), OnnxPart(folder / "joiner.onnx")
    largest = {"decoder.onnx": 0.0, "joiner.onnx": 0.0}
    for batch in (1, 7):
        context = torch.randint(-1, model.vocab_size, (batch, model.decoder.context_size), generator=random)
        ours = _Decoder(model)(context)
        difference = _difference("decoder.onnx", ours, decoder(y=context)[0], TOLERANCE)
        largest["decoder.onnx"] = max(largest["decoder.onnx"], difference)
        encoded = torch.randn(ours.shape, generator=random)
        logits = _Joiner(model)(encoded, ours)
        found = joiner(encoder_out=encoded, decoder_out=ours)[0]
        difference = _difference("joiner.onnx", logits, found, TOLERANCE)
        largest["joiner.onnx"] = max(largest["joiner.onnx"], difference)
    return largest
