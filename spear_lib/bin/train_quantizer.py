"""Stage 4: train the multi-codebook quantiser on teacher embeddings and write its report.

One process, or ``torchrun --nproc-per-node=N -m spear_lib.bin.train_quantizer ...``.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

from spear_lib.bin.common import first_screen, run
from spear_lib.config import parse
from spear_lib.data.tokens_store import write_json
from spear_lib.quantization.embeddings import CHUNK, FrameStream, StoredFrames, statistics
from spear_lib.quantization.options import QuantizerTrainingOptions, SamplingOptions, SpectralOptions
from spear_lib.quantization.quantizer import NORMALISATION_EPS, Quantizer
from spear_lib.quantization.reference_trainer import train_reference
from spear_lib.quantization.report import make_report, plot_report
from spear_lib.quantization.search import choose_kernel
from spear_lib.quantization.trainer import CHECKPOINT, train_quantizer
from spear_lib.training.distributed import World, world
from spear_lib.training.progress import progress

logger = logging.getLogger(__name__)

REPORT_FRAMES = 20000  # of the training side, for the use of the codes and the covariance


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
    with world("auto") as ranks:
        train(options, ranks)


def train(options: Options, ranks: World) -> None:
    """Train on all ranks; the main one writes the quantiser and its report."""
    training = options.training
    stored = StoredFrames(options.embeddings, training.held_out_fraction, options.seed)
    for name, positions in (("train", stored.train), ("held-out", stored.held_out)):
        if len(positions) == 0:
            raise ValueError(
                f"no {name} frames: {options.embeddings} has {stored.summary['num_frames']} frames of "
                f"{stored.num_recordings} recordings"
            )
    if ranks.is_main:
        first_screen(
            "multi-codebook quantiser",
            {
                "teacher": stored.summary["teacher"]["teacher_id"],
                "frames": f"{len(stored.train)} train, {len(stored.held_out)} held out; {stored.dim} "
                f"channels; {training.shuffle_frames} in memory at a time",
                "quantiser": f"{training.num_codebooks} codebooks of {training.codebook_size}, "
                f"{training.normalisation} normalisation, search {training.search}",
                "method": f"{training.method} on {ranks.world_size} rank(s)",
                "kernel": "{} ({})".format(*choose_kernel("auto", ranks.device)),
            },
        )
        if len(stored.train) < 10 * training.codebook_size:
            logger.warning(
                "only %d training frames for codebooks of %d: expect unused codes",
                len(stored.train),
                training.codebook_size,
            )
    parts = progress(stored.read(stored.train), -(-len(stored.train) // CHUNK), "statistics", "pieces")
    mean, std, frames_hash = statistics(parts, stored.dim, training.normalisation)
    identity = json.dumps([asdict(training), options.seed, stored.summary, frames_hash], sort_keys=True)
    run_id = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    frames = FrameStream(stored, mean, std + NORMALISATION_EPS, training.shuffle_frames, options.seed)
    method = train_reference if training.method == "reference" else train_quantizer
    quantizer, history = method(frames, training, options.seed, folder, run_id, ranks)
    if ranks.is_main:
        _finish(quantizer, history, frames, options, run_id, folder)


def _finish(
    quantizer: Quantizer,
    history: list[dict[str, float]],
    frames: FrameStream,
    options: Options,
    run_id: str,
    folder: Path,
) -> None:
    """Measure the quantiser, write report and picture, and, last, the quantiser itself."""
    training, stored = options.training, frames.stored
    held_out = stored.sample(stored.held_out, training.max_held_out_frames, "report", options.seed)
    train_sample = frames.raw(0, min(REPORT_FRAMES, frames.epoch_frames))
    report = make_report(quantizer, held_out, train_sample)
    report["num_train_frames"] = frames.epoch_frames
    quantizer.provenance = {
        "teacher": stored.summary["teacher"],
        "recipe": stored.summary["recipe"],
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
