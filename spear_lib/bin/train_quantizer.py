"""Stage 4: train the multi-codebook quantiser on teacher embeddings and write its report."""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from spear_lib.bin.common import first_screen, run
from spear_lib.config import parse
from spear_lib.data.tokens_store import write_json
from spear_lib.quantization.embeddings import FrameMatrix, read_embeddings, split_held_out, statistics
from spear_lib.quantization.options import QuantizerTrainingOptions, SamplingOptions, SpectralOptions
from spear_lib.quantization.quantizer import NORMALISATION_EPS
from spear_lib.quantization.reference_trainer import train_reference
from spear_lib.quantization.report import make_report, plot_report
from spear_lib.quantization.trainer import CHECKPOINT, train_quantizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Options of train_quantizer."""

    embeddings: str
    """Folder that extract_embeddings wrote."""
    output_dir: str
    """Folder for quantizer.safetensors, report.json and report.png."""
    seed: int = 0
    """Keys every random draw."""
    training: QuantizerTrainingOptions = field(default_factory=QuantizerTrainingOptions)
    """The quantiser and its training."""
    spectral: SpectralOptions = field(default_factory=SpectralOptions)
    """Unused here; extract_embeddings reads it from the same file."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """Unused here; extract_embeddings reads it from the same file."""


def main() -> None:
    options = parse(Options, prog="python -m spear_lib.bin.train_quantizer", description=__doc__)
    training = options.training
    summary, frames, ids, counts = read_embeddings(options.embeddings)
    held_out = torch.from_numpy(split_held_out(ids, counts, training.held_out_fraction, options.seed))
    frames = torch.from_numpy(frames)
    train_frames, held_out_frames = frames[~held_out], frames[held_out][: training.max_held_out_frames]
    for name, part in (("train", train_frames), ("held-out", held_out_frames)):
        if len(part) == 0:
            raise ValueError(
                f"no {name} frames: {options.embeddings} has {len(frames)} frames of {len(ids)} recordings"
            )
    first_screen(
        "multi-codebook quantiser",
        {
            "teacher": summary["teacher"]["teacher_id"],
            "frames": f"{len(train_frames)} train, {len(held_out_frames)} held out, {frames.shape[1]} "
            "channels",
            "quantiser": f"{training.num_codebooks} codebooks of {training.codebook_size}, "
            f"{training.normalisation} normalisation",
        },
    )
    if len(train_frames) < 10 * training.codebook_size:
        logger.warning(
            "only %d training frames for codebooks of %d: expect unused codes",
            len(train_frames),
            training.codebook_size,
        )
    mean, std = statistics(train_frames, training.normalisation)
    identity = json.dumps([asdict(training), options.seed, summary], sort_keys=True).encode()
    run_id = hashlib.sha256(identity + hashlib.sha256(frames.numpy().tobytes()).digest()).hexdigest()[:16]
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    data = FrameMatrix(train_frames, mean, std + NORMALISATION_EPS)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train = train_reference if training.method == "reference" else train_quantizer
    quantizer, history = train(data, training, options.seed, folder, run_id, device)
    report = make_report(quantizer, held_out_frames, train_frames)
    quantizer.provenance = {
        "teacher": summary["teacher"],
        "recipe": summary["recipe"],
        "training": asdict(training),
        "seed": options.seed,
        "run_id": run_id,
        "relative_error": report["relative_error"],
    }
    report = {"quantizer_id": quantizer.id, **report, "history": history, "provenance": quantizer.provenance}
    plot_report(report, folder / "report.png")
    write_json(folder / "report.json", report)
    # Last: its presence says that the stage is done.
    quantizer.save(folder)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    logger.info(
        "quantiser %s: relative error %s on held-out frames (Gaussian bound %.4f), %d of %d codes unused",
        quantizer.id,
        ", ".join(f"{error:.4f} after {count}" for count, error in report["relative_error"].items()),
        report["gaussian_bound"],
        report["num_dead_codes"],
        training.num_codebooks * training.codebook_size,
    )


if __name__ == "__main__":
    run(main)
