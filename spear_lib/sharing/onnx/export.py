"""Encoders and fine-tuned transducers as the ONNX files that sherpa-onnx reads (ours).

A transducer is four files: ``encoder.onnx``, ``decoder.onnx``, ``joiner.onnx`` and ``tokens.txt``. The
projections of the joiner belong to the encoder and the decoder, so that all three meet in its width.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spear_lib.asr.model import AsrModel
from spear_lib.asr.words import WORD_START
from spear_lib.encoders.zipformer import SpearEncoder
from spear_lib.encoders.zipformer.streaming import StreamingEncoder
from spear_lib.runtime.files import write_text
from spear_lib.sharing.onnx import files
from spear_lib.sharing.onnx.encoders import Chunks, EncoderGraph, WholeUtterances, check_encoder
from spear_lib.sharing.onnx.files import LARGEST_FILE_MB, Graph, check_equal
from spear_lib.sharing.onnx.runtime import DECODER, ENCODER, JOINER, TOKENS, OnnxPart, eight_bit_name


class _Decoder(nn.Module):
    def __init__(self, model: AsrModel):
        super().__init__()
        self.decoder, self.project = model.decoder, model.joiner.decoder_proj

    def forward(self, y: Tensor) -> Tensor:
        # Our searches begin with nothing but a blank (-1, 0); the online greedy search of sherpa-onnx with
        # blanks alone (0, 0). A blank before a blank can be nothing else than that beginning: labels that
        # were written are none.
        nothing = (y[:, :-1] == 0) & (y[:, 1:] == 0)
        y = torch.cat([torch.where(nothing, -1, y[:, :-1]), y[:, -1:]], dim=1)
        # The last of all positions has the whole context; the way of searches is made for running, not
        # recording.
        return self.project(self.decoder(y)[:, -1])


class _Joiner(nn.Module):
    def __init__(self, model: AsrModel):
        super().__init__()
        self.output = model.joiner.output_linear

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        return self.output(torch.tanh(encoder_out + decoder_out))


def streaming_encoder(
    encoder: SpearEncoder, chunk_size: int = 0, left_context_frames: int = 0
) -> StreamingEncoder:
    """``encoder`` in chunks, for an export; 0 takes the first limited size of its training."""
    check_encoder(encoder)
    config = encoder.config
    if not config.causal:
        raise ValueError(
            "streaming needs an encoder with causal: true, and this one sees whole utterances: train one "
            "(encoder_config: causal, chunk_size, left_context_frames), or export it without streaming"
        )

    def chosen(name: str, given: int, least: int) -> int:
        limited = [size for size in getattr(config, name) if size >= least]
        if given == 0 and not limited:
            raise ValueError(
                f"the encoder was trained with {name} {list(getattr(config, name))}, without limit: give "
                f"{name}, in frames of 20 ms"
            )
        return given or limited[0]

    return StreamingEncoder(
        encoder,
        chosen("chunk_size", chunk_size, 1),
        chosen("left_context_frames", left_context_frames, 0),
    )


def _encoder_graph(
    encoder: nn.Module, project: nn.Module, streaming: StreamingEncoder | None, layers: bool = False
) -> EncoderGraph:
    return WholeUtterances(encoder, project, layers) if streaming is None else Chunks(streaming, project)


def _write_encoder(
    form: EncoderGraph, folder: Path, facts: dict[str, Any], int8: bool, largest_mb: float
) -> dict[str, float]:
    """``folder``/encoder.onnx, verified, and its 8-bit version where wanted, measured."""
    path = folder / ENCODER
    files.record(form.graph(facts), path, largest_mb)
    differences = {ENCODER: form.verify(OnnxPart(path), files.TOLERANCE)}
    if int8:
        name = eight_bit_name(ENCODER)
        files.quantise(path, folder / name, largest_mb)
        differences[name] = form.verify(OnnxPart(folder / name), float("inf"))
    return differences


def export_encoder(
    encoder: SpearEncoder,
    folder: str | os.PathLike,
    facts: dict[str, Any] | None = None,
    layers: bool = False,
    int8: bool = False,
    streaming: StreamingEncoder | None = None,
    largest_mb: float = LARGEST_FILE_MB,
) -> dict[str, float]:
    """Write ``folder``/encoder.onnx: x (N, T, F), x_lens (N,) -> encoder_out (N, U, D), its lengths (N,).

    Args:
      layers: also the output of every layer, layer_01 ... (N, V, D_i), V frames at 50 Hz.
      int8: also write ``encoder.int8.onnx``, with weights of 8 bits.
      streaming: the same encoder in chunks: the file has the form of ``encoders.Chunks``, without layers.
      largest_mb: MB of weights above which they lie beside the file, as encoder.onnx.data.

    Returns:
      File -> largest difference to PyTorch.
    """
    form = _encoder_graph(encoder, nn.Identity(), streaming, layers)
    return files.write_aside(folder, lambda aside: _write_encoder(form, aside, facts or {}, int8, largest_mb))


def export_transducer(
    model: AsrModel,
    units: Any,
    folder: str | os.PathLike,
    facts: dict[str, Any] | None = None,
    int8: bool = False,
    streaming: StreamingEncoder | None = None,
    largest_mb: float = LARGEST_FILE_MB,
) -> dict[str, float]:
    """Write a fine-tuned transducer for sherpa-onnx.

    Args:
      model: in evaluation mode, on the CPU.
      units: its text units.
      facts: more metadata of the encoder (where the weights come from).
      int8: also write ``encoder.int8.onnx`` and ``joiner.int8.onnx``, with weights of 8 bits.
      streaming: its encoder in chunks: for the online recogniser instead of the offline one.
      largest_mb: MB of weights above which they lie beside the file, as encoder.onnx.data.

    Returns:
      File -> largest difference to PyTorch (of the 8-bit ones too, which are not held to the tolerance).

    Raises:
      ValueError: the model has no transducer, or an encoder that has no such form.
      RuntimeError: onnx is missing; a file does not compute what PyTorch does.
    """
    if "transducer" not in model.heads:
        raise ValueError(
            "the model has no transducer (it was trained with CTC alone), whose decoder and joiner these "
            "files hold. Fine-tune with model.transducer_loss_scale above 0"
        )
    size, width, vocab = model.decoder.context_size, model.config.joiner_dim, model.vocab_size
    form = _encoder_graph(model.encoder, model.joiner.encoder_proj, streaming)

    def write(aside: Path) -> dict[str, float]:
        differences = _write_encoder(form, aside, facts or {}, int8, largest_mb)
        decoder = Graph(
            _Decoder(model),
            {"y": torch.zeros((3, size), dtype=torch.int64)},
            ["decoder_out"],
            {"y": {0: "N"}, "decoder_out": {0: "N"}},
            {"context_size": size, "vocab_size": vocab},
        )
        joiner = Graph(
            _Joiner(model),
            {"encoder_out": torch.zeros(3, width), "decoder_out": torch.zeros(3, width)},
            ["logit"],
            {"encoder_out": {0: "N"}, "decoder_out": {0: "N"}, "logit": {0: "N"}},
            {"joiner_dim": width},
        )
        files.record(decoder, aside / DECODER, largest_mb)
        files.record(joiner, aside / JOINER, largest_mb)
        write_text(aside / TOKENS, "".join(token_lines(units)))
        differences |= _verify_heads(model, aside)
        if int8:
            files.quantise(aside / JOINER, aside / eight_bit_name(JOINER), largest_mb)
        return differences

    return files.write_aside(folder, write)


def token_lines(units: Any) -> Iterable[str]:
    """The lines of tokens.txt: "<unit> <id>"; the space between words is written as sentencepiece does."""
    for number in range(units.vocab_size):
        unit = units.unit(number)
        yield f"{WORD_START if unit == ' ' else unit} {number}\n"


@torch.no_grad()
def _verify_heads(model: AsrModel, folder: Path) -> dict[str, float]:
    random = torch.Generator().manual_seed(2)
    decoder, joiner = OnnxPart(folder / DECODER), OnnxPart(folder / JOINER)
    largest = {DECODER: 0.0, JOINER: 0.0}
    for batch in (1, 7):
        context = torch.randint(-1, model.vocab_size, (batch, model.decoder.context_size), generator=random)
        ours = _Decoder(model)(context)
        difference = check_equal(DECODER, ours, decoder(y=context)[0], files.TOLERANCE)
        largest[DECODER] = max(largest[DECODER], difference)
        encoded = torch.randn(ours.shape, generator=random)
        logits = _Joiner(model)(encoded, ours)
        found = joiner(encoder_out=encoded, decoder_out=ours)[0]
        difference = check_equal(JOINER, logits, found, files.TOLERANCE)
        largest[JOINER] = max(largest[JOINER], difference)
    return largest
