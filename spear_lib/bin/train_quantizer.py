"""Stage 4: train the multi-codebook quantiser (or k-means) on teacher embeddings and write its report.

One process, or ``torchrun --nproc-per-node=N -m spear_lib.bin.train_quantizer ...``.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.quantization.embeddings import FrameStream, StoredFrames
from spear_lib.quantization.kinds import TRAINED
from spear_lib.quantization.kmeans import KMeans
from spear_lib.quantization.kmeans_trainer import KMeansOptions, train_kmeans
from spear_lib.quantization.options import QuantizerTrainingOptions
from spear_lib.quantization.quantizer import NORMALISATION_EPS, Quantizer
from spear_lib.quantization.reference_trainer import train_reference
from spear_lib.quantization.report import finish, make_report
from spear_lib.quantization.trainer import train_quantizer
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.world import World, world
from spear_lib.teachers.options import SpectralOptions
from spear_lib.tokens.frame_sampling import SamplingOptions

logger = logging.getLogger(__name__)

REPORT_FRAMES = 20000  # of the training side, for the use of the codes and the covariance


@dataclass(frozen=True)
class Options:
    """Options of train_quantizer."""

    embeddings: str
    """Folder that extract_embeddings wrote."""
    output_dir: str
    """Folder for quantizer.safetensors, report.json and report.png."""
    kind: str = Quantizer.kind
    """mvq: several codebooks; kmeans: one, the ablation of the paper (appendix F.4)."""
    seed: int = 0
    """Keys every random draw."""
    training: QuantizerTrainingOptions = field(default_factory=QuantizerTrainingOptions)
    """The quantiser of several codebooks and its training."""
    kmeans: KMeansOptions = field(default_factory=KMeansOptions)
    """k-means: number of clusters and training."""
    spectral: SpectralOptions = field(default_factory=SpectralOptions)
    """Unused here; extract_embeddings reads it from the same file."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """Unused here; extract_embeddings reads it from the same file."""

    def __post_init__(self) -> None:
        if self.kind not in TRAINED:
            raise ValueError(f"kind is {self.kind!r}: use one of {', '.join(TRAINED)}")


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, "python -m spear_lib.bin.train_quantizer", __doc__)
    with world("auto") as ranks:
        if options.kind == KMeans.kind:
            train_clusters(options, ranks)
        else:
            train_codebooks(options, ranks)


def train_clusters(options: Options, ranks: World) -> None:
    """Train k-means, in one process, and write it with its report."""
    kmeans = options.kmeans
    if ranks.world_size > 1:
        raise ValueError(f"k-means is trained by one process, not {ranks.world_size}: start without torchrun")
    frames = StoredFrames(options.embeddings, kmeans.held_out_fraction, options.seed)
    first_screen(
        "k-means",
        {
            "teacher": frames.summary["teacher"]["teacher_id"],
            "frames": f"{len(frames.train)} train, {len(frames.held_out)} held out, {frames.dim} channels",
            "clusters": f"{kmeans.num_clusters}, {kmeans.normalisation} normalisation",
        },
    )
    mean, std, run_id = frames.measure(kmeans, options.seed)
    # As in the quantiser: a dead channel must not become a division by zero; 1 stays 1 without normalisation.
    std = std if kmeans.normalisation == "none" else std + NORMALISATION_EPS
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    tokeniser, history = train_kmeans(frames, mean, std, kmeans, options.seed, folder, run_id, ranks.device)
    held_out = frames.sample(frames.held_out, kmeans.max_held_out_frames, "report", options.seed)
    train = frames.sample(frames.train, REPORT_FRAMES, "report", options.seed)
    report = make_report(tokeniser, held_out, train, refinements=(0,))  # nothing is refined
    report["num_train_frames"] = len(frames.train)
    finish(tokeniser, report, history, frames, kmeans, options.seed, run_id, folder)
    logger.info(
        "k-means %s: relative error %.4f on held-out frames, %d of %d clusters unused",
        tokeniser.id,
        report["relative_error"]["0"],
        report["num_dead_codes"],
        kmeans.num_clusters,
    )


def train_codebooks(options: Options, ranks: World) -> None:
    """Train on all ranks; the main one writes the quantiser and its report."""
    training = options.training
    stored = StoredFrames(options.embeddings, training.held_out_fraction, options.seed)
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
            },
        )
        if len(stored.train) < 10 * training.codebook_size:
            logger.warning(
                "only %d training frames for codebooks of %d: expect unused codes",
                len(stored.train),
                training.codebook_size,
            )
    mean, std, run_id = stored.measure(training, options.seed)
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
    finish(quantizer, report, history, stored, training, options.seed, run_id, folder)
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
