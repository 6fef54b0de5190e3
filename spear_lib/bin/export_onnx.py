"""Export a fine-tuned transducer to ONNX files that sherpa-onnx reads, or a pre-trained encoder alone."""

import logging
import os
from dataclasses import dataclass

from spear_lib.asr.decoding import build_model, load_weights
from spear_lib.asr.onnx_export import export_encoder, export_transducer
from spear_lib.asr.units import units_of
from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.encoders import encoder_id, load_encoder
from spear_lib.runtime.log import commit, first_screen

logger = logging.getLogger(__name__)


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


def main(argv: list[str] | None = None) -> None:
    options = parse(ExportOptions, argv, prog="python -m spear_lib.bin.export_onnx", description=__doc__)
    if bool(options.experiment_dir) == bool(options.encoder):
        raise ValueError("give either experiment_dir (a fine-tuned transducer) or encoder (an encoder alone)")
    if options.layers and options.experiment_dir:
        raise ValueError("layers is for an encoder alone: sherpa-onnx reads a transducer's last one only")
    first_screen(
        "Exporting to ONNX",
        {"of": options.experiment_dir or options.encoder, "writes to": options.output_dir},
    )
    if options.encoder:
        encoder = load_encoder(options.encoder)
        facts = {"code": commit(), "weights": options.encoder, "weights_hash": encoder_id(encoder)}
        differences = export_encoder(encoder, options.output_dir, facts, options.layers, options.int8)
    else:
        units = units_of(options.experiment_dir, options.units)
        weights = load_weights(options.experiment_dir, options.average)
        facts = {"code": commit(), "units_id": units.id, **weights.provenance}
        model = build_model(weights, units)
        differences = export_transducer(model, units, options.output_dir, facts, options.int8)
    for name, difference in differences.items():
        size = os.path.getsize(os.path.join(options.output_dir, name)) / 1e6
        logger.info("%s: %.1f MB, differs from PyTorch by at most %.2g", name, size, difference)
    if options.experiment_dir:
        logger.info(
            "sherpa-onnx reads these files with feature_dim=%d; python -m spear_lib.bin.transcribe "
            "--experiment_dir %s works too",
            model.encoder.config.num_mel_bins,
            options.output_dir,
        )


if __name__ == "__main__":
    run(main)
