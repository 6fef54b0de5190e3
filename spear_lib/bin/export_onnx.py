"""Export a fine-tuned transducer to ONNX files that sherpa-onnx reads, or a pre-trained encoder alone."""

import logging
import os
from dataclasses import dataclass, field
from typing import Any

from spear_lib.asr.decoding import build_model, load_weights
from spear_lib.asr.searcher import SearchConfig
from spear_lib.asr.units import units_of
from spear_lib.bin.common import command_line, run
from spear_lib.config import parse
from spear_lib.data.manifests import Manifest, named_sets
from spear_lib.encoders import encoder_id, load_encoder
from spear_lib.encoders.zipformer.streaming import StreamingEncoder
from spear_lib.runtime.log import commit, first_screen
from spear_lib.sharing.onnx.comparison import compare_files, in_chunks_of
from spear_lib.sharing.onnx.export import export_encoder, export_transducer, streaming_encoder
from spear_lib.sharing.onnx.files import LARGEST_FILE_MB

logger = logging.getLogger(__name__)

SHERPA_FRAME_RATE = 25  # encoder frames per second that its online recogniser assumes


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and where to."""

    output_dir: str
    """Receives encoder.onnx, and of a fine-tuned model decoder.onnx, joiner.onnx and tokens.txt."""
    experiment_dir: str = ""
    """Folder of finetune_asr: the transducer is exported."""
    encoder: str = ""
    """A pre-trained encoder (anything that load_encoder reads) instead: it is exported alone."""
    units: str = ""
    """The text units of the fine-tuning: bpe.model, its folder, or "characters"; empty: those that the
    experiment's config.yaml names."""
    average: int = 1
    """Average the model over the last so many save intervals; 0: the last weights as they are."""
    int8: bool = False
    """Also write encoder.int8.onnx (and joiner.int8.onnx), whose weights have 8 bits."""
    layers: bool = False
    """Of an encoder alone: every layer is an output too, layer_01 and so on, at 50 Hz."""
    streaming: bool = False
    """Of a causal model: chunk by chunk, as the online recogniser of sherpa-onnx reads it."""
    chunk_size: int = 0
    """With streaming: frames of 20 ms per chunk; 0: the first limited size of its training."""
    left_context_frames: int = 0
    """With streaming: frames of 20 ms that attention sees before a chunk; 0: the first limited number of its
    training."""
    largest_file_mb: float = LARGEST_FILE_MB
    """Weights of more MB (1e6 bytes) lie beside the file, in encoder.onnx.data: one file ends at 2 GiB."""
    cuts: list[str] = field(default_factory=list)
    """Sets with transcripts (manifests, or name=manifest) to recognise with PyTorch and with the files: the
    word error rates are printed side by side and written to wer.json."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Search for cuts."""


def main(argv: list[str] | None = None) -> None:
    options = parse(ExportOptions, argv, prog="python -m spear_lib.bin.export_onnx", description=__doc__)
    _check(options)
    sets = {name: Manifest(path) for name, path in named_sets(options.cuts).items()} if options.cuts else {}
    first_screen(
        "Exporting to ONNX",
        {"of": options.experiment_dir or options.encoder, "writes to": options.output_dir},
    )
    form: dict[str, Any] = {"int8": options.int8, "largest_mb": options.largest_file_mb}
    if options.encoder:
        encoder = load_encoder(options.encoder)
        facts = {"code": commit(), "weights": options.encoder, "weights_hash": encoder_id(encoder)}
        streaming = _streaming(options, encoder)
        differences = export_encoder(
            encoder, options.output_dir, facts, options.layers, streaming=streaming, **form
        )
    else:
        units = units_of(options.experiment_dir, options.units)
        weights = load_weights(options.experiment_dir, options.average)
        facts = {"code": commit(), "units_id": units.id, **weights.provenance}
        model = build_model(weights, units)
        streaming = _streaming(options, model.encoder)
        differences = export_transducer(model, units, options.output_dir, facts, streaming=streaming, **form)
        encoder = model.encoder
    for name, difference in differences.items():
        size = os.path.getsize(os.path.join(options.output_dir, name)) / 1e6
        logger.info("%s: %.1f MB, differs from PyTorch by at most %.2g", name, size, difference)
    if options.experiment_dir:
        _say_how_to_run(options, encoder)
    if sets:
        if streaming is not None:
            model = in_chunks_of(streaming, weights, units)
        facts = {**weights.provenance, "command": command_line("spear_lib.bin.export_onnx", argv)}
        compare_files(options.output_dir, options.int8, model, units, sets, options.search, facts)


def _check(options: ExportOptions) -> None:
    """Raises ValueError for options that do not go together."""
    if bool(options.experiment_dir) == bool(options.encoder):
        raise ValueError("give either experiment_dir (a fine-tuned transducer) or encoder (an encoder alone)")
    if options.layers and (options.experiment_dir or options.streaming):
        raise ValueError(
            "layers is for an encoder alone, without streaming: sherpa-onnx reads a transducer's last "
            "one only, and takes what follows the first output of a streaming encoder for states"
        )
    if options.cuts and options.encoder:
        raise ValueError("cuts is for a fine-tuned model: an encoder alone writes no text; leave cuts out")
    for name in ("chunk_size", "left_context_frames"):
        value = getattr(options, name)
        if value < 0:
            raise ValueError(f"{name} is {value}: give a positive number of frames of 20 ms, or 0")
        if value and not options.streaming:
            raise ValueError(f"{name} is {value}, and is for streaming: add --streaming true")
    if options.largest_file_mb < 0 or options.largest_file_mb > LARGEST_FILE_MB:
        raise ValueError(
            f"largest_file_mb is {options.largest_file_mb:g}; it must lie in 0..{LARGEST_FILE_MB:g}: "
            "no file of ONNX holds 2 GiB"
        )


def _streaming(options: ExportOptions, encoder: Any) -> StreamingEncoder | None:
    if not options.streaming:
        return None
    streaming = streaming_encoder(encoder, options.chunk_size, options.left_context_frames)
    logger.info(
        "streaming: %d ms per chunk, %d ms ahead of it, %d ms of left context",
        20 * streaming.chunk_size,
        10 * (streaming.block_frames - streaming.block_shift),
        20 * streaming.left_context_frames,
    )
    return streaming


def _say_how_to_run(options: ExportOptions, encoder: Any) -> None:
    logger.info(
        "sherpa-onnx's %s recogniser reads these files with feature_dim=%d; python -m "
        "spear_lib.bin.transcribe --experiment_dir %s works too",
        "online" if options.streaming else "offline",
        encoder.config.num_mel_bins,
        options.output_dir,
    )
    factor = encoder.frame_rate / SHERPA_FRAME_RATE
    if options.streaming and factor != 1:
        logger.warning(
            "sherpa-onnx takes an encoder frame for %d ms, this model's is %d ms: divide its timestamps by "
            "%g and give its rules of endpoints %g times the trailing silence",
            1000 // SHERPA_FRAME_RATE,
            1000 // encoder.frame_rate,
            factor,
            factor,
        )


if __name__ == "__main__":
    run(main)
