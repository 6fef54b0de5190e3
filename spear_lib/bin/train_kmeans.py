"""Stage 4, the paper's ablation (appendix F.4): k-means in place of the multi-codebook quantiser."""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from spear_lib.bin.common import first_screen, run
from spear_lib.config import parse
from spear_lib.data.tokens_store import write_json
from spear_lib.quantization.embeddings import CHUNK, StoredFrames, statistics
from spear_lib.quantization.kmeans_trainer import KMeansOptions, train_kmeans
from spear_lib.quantization.quantizer import NORMALISATION_EPS
from spear_lib.quantization.report import make_report, plot_report
from spear_lib.quantization.trainer import CHECKPOINT
from spear_lib.training.progress import progress

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
    parts = progress(frames.read(frames.train), -(-len(frames.train) // CHUNK), "statistics", "pieces")
    mean, std, frames_hash = statistics(parts, frames.dim, kmeans.normalisation)
    identity = json.dumps([asdict(kmeans), options.seed, summary, frames_hash], sort_keys=True)
    run_id = hashlib.sha256(identity.encode()).hexdigest()[:16]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # As in the quantiser: a dead channel must not become a division by zero; 1 stays 1 without normalisation.
    std = std if kmeans.normalisation == "none" else std + NORMALISATION_EPS
    tokeniser, history = train_kmeans(frames, mean, std, kmeans, options.seed, folder, run_id, device)
    held_out = frames.sample(frames.held_out, kmeans.max_held_out_frames, "report", options.seed)
    train = frames.sample(frames.train, 20000, "report", options.seed)
    report = make_report(tokeniser, held_out, train)
    # Nothing is refined, so the errors after any number of refinements are one.
    report["relative_error"] = {"0": report["relative_error"]["0"]}
    report["num_train_frames"] = len(frames.train)
    tokeniser.provenance = {
        "teacher": summary["teacher"],
        "recipe": summary["recipe"],
        "training": asdict(kmeans),
        "seed": options.seed,
        "run_id": run_id,
        "relative_error": report["relative_error"],
    }
    report = {"quantizer_id": tokeniser.id, **report, "history": history, "provenance": tokeniser.provenance}
    plot_report(report, folder / "report.png")
    write_json(folder / "report.json", report)
    # Last: its presence says that the stage is done.
    tokeniser.save(folder)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    logger.info(
        "k-means %s: relative error %.4f on held-out frames, %d of %d clusters unused",
        tokeniser.id,
        report["relative_error"]["0"],
        report["num_dead_codes"],
        kmeans.num_clusters,
    )


if __name__ == "__main__":
    run(main)
