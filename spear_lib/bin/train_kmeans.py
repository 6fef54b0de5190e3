"""Stage 4, the paper's ablation (appendix F.4): k-means in place of the multi-codebook quantiser."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.quantization.embeddings import StoredFrames
from spear_lib.quantization.kmeans_trainer import KMeansOptions, train_kmeans
from spear_lib.quantization.quantizer import NORMALISATION_EPS
from spear_lib.quantization.report import finish, make_report
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.world import choose_device

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Options of train_kmeans."""

    embeddings: str
    """Folder that extract_embeddings wrote."""
    output_dir: str
    """Folder for quantizer.safetensors, report.json and report.png."""
    seed: int = 0
    """Keys every random draw."""
    kmeans: KMeansOptions = field(default_factory=KMeansOptions)
    """Number of clusters and training."""


def main() -> None:
    options = parse(Options, prog="python -m spear_lib.bin.train_kmeans", description=__doc__)
    kmeans = options.kmeans
    frames = StoredFrames(options.embeddings, kmeans.held_out_fraction, options.seed)
    summary = frames.summary
    first_screen(
        "k-means",
        {
            "teacher": summary["teacher"]["teacher_id"],
            "frames": f"{len(frames.train)} train, {len(frames.held_out)} held out, {frames.dim} channels",
            "clusters": f"{kmeans.num_clusters}, {kmeans.normalisation} normalisation",
        },
    )
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    mean, std, run_id = frames.measure(kmeans, options.seed)
    # As in the quantiser: a dead channel must not become a division by zero; 1 stays 1 without normalisation.
    std = std if kmeans.normalisation == "none" else std + NORMALISATION_EPS
    device = choose_device("auto")
    tokeniser, history = train_kmeans(frames, mean, std, kmeans, options.seed, folder, run_id, device)
    held_out = frames.sample(frames.held_out, kmeans.max_held_out_frames, "report", options.seed)
    train = frames.sample(frames.train, 20000, "report", options.seed)
    # Nothing is refined.
    report = make_report(tokeniser, held_out, train, refinements=(0,))
    report["num_train_frames"] = len(frames.train)
    finish(tokeniser, report, history, frames, kmeans, options.seed, run_id, folder)
    logger.info(
        "k-means %s: relative error %.4f on held-out frames, %d of %d clusters unused",
        tokeniser.id,
        report["relative_error"]["0"],
        report["num_dead_codes"],
        kmeans.num_clusters,
    )


if __name__ == "__main__":
    run(main)
