"""Stage 3: teacher embeddings of randomly chosen frames, on which the quantiser is trained."""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from spear_lib import keyed_random
from spear_lib.bin.common import first_screen, run
from spear_lib.config import parse
from spear_lib.data.manifests import Manifest
from spear_lib.data.tokens_store import read_json, write_json
from spear_lib.files import atomic_file
from spear_lib.quantization.embeddings import SUMMARY_FILE
from spear_lib.quantization.options import QuantizerTrainingOptions, SamplingOptions, SpectralOptions
from spear_lib.teachers import Teacher
from spear_lib.teachers.embedding import embed_cuts, recipe_of, resolve_manifests, teacher_from_options
from spear_lib.training.progress import progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Options of extract_embeddings."""

    cuts: str | list[str]
    """Manifest(s) of the recordings to sample from."""
    output_dir: str
    """Folder for the embeddings."""
    teacher: str = "spectral"
    """Teacher: spectral (no weights) or spear (an encoder of ours)."""
    teacher_path: str = ""
    """Encoder folder or checkpoint of the spear teacher."""
    teacher_layer: int | None = None
    """Layer of the spear teacher: index into hidden_states, negative counts from the last."""
    seed: int = 0
    """Keys the choice of recordings and frames."""
    spectral: SpectralOptions = field(default_factory=SpectralOptions)
    """The spectral teacher."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """Which frames."""
    training: QuantizerTrainingOptions = field(default_factory=QuantizerTrainingOptions)
    """Unused here; train_quantizer reads it from the same file."""


def choose_cuts(manifest: Manifest, teacher: Teacher, options: Options) -> list[int]:
    """Positions of random recordings that together hold about ``num_frames`` sampled frames."""
    order = keyed_random.generator("embeddings", options.seed).permutation(len(manifest))
    chosen, frames = [], 0
    for position in order.tolist():
        if frames >= options.sampling.num_frames:
            break
        count = round(float(manifest.durations[position]) * teacher.frame_rate)
        frames += min(count, options.sampling.frames_per_cut)
        chosen.append(position)
    return chosen


def write_shard(
    teacher: Teacher, manifest: Manifest, positions: list[int], path: Path, options: Options
) -> int:
    """Embed the cuts at ``positions`` and commit sampled frames to ``path``(.npy, .json); number of
    frames."""
    cuts = [manifest[position] for position in positions]
    parts: list[np.ndarray] = [np.empty((0, teacher.embedding_dim), dtype=np.float16)] * len(cuts)
    batches = embed_cuts(teacher, cuts, options.sampling.batch_seconds)
    for position, embeddings in progress(batches, total=len(cuts), description=path.name, unit="cuts"):
        count = embeddings.shape[0]
        if count > options.sampling.frames_per_cut:
            draw = keyed_random.generator("embedding frames", options.seed, cuts[position].id)
            index = np.sort(draw.choice(count, options.sampling.frames_per_cut, replace=False))
            embeddings = embeddings[torch.from_numpy(index)]
        parts[position] = embeddings.to(torch.float16).cpu().numpy()
    with atomic_file(path.with_suffix(".npy")) as file:
        np.save(file, np.concatenate(parts))
    counts = [len(part) for part in parts]
    write_json(path.with_suffix(".json"), {"ids": [cut.id for cut in cuts], "num_frames": counts})
    return sum(counts)


def main() -> None:
    options = parse(Options, prog="python -m spear_lib.bin.extract_embeddings", description=__doc__)
    teacher = teacher_from_options(
        options.teacher, options.teacher_path, options.teacher_layer, options.spectral
    )
    manifest = Manifest(resolve_manifests(options.cuts))
    chosen = choose_cuts(manifest, teacher, options)
    hours = float(manifest.durations[chosen].sum()) / 3600
    frames = min(options.sampling.num_frames, round(hours * 3600 * teacher.frame_rate))
    first_screen(
        "teacher embeddings",
        {
            "teacher": f"{teacher.id}, {teacher.embedding_dim} channels at {teacher.frame_rate:g} Hz",
            "recordings": f"{len(chosen)} of {len(manifest)}, {hours:.2f} h",
            "estimate": f"about {frames} frames, {frames * teacher.embedding_dim * 2 / 1e6:.1f} MB in "
            "float16",
        },
    )
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    run_facts = {
        "teacher": teacher.describe(),
        "recipe": recipe_of(options.teacher, options.teacher_path, options.teacher_layer, options.spectral),
        "sampling": asdict(options.sampling),
        "seed": options.seed,
        "cuts": [manifest.ids[position] for position in chosen[:3]] + [len(chosen)],
    }
    begun = folder / "run.json"
    if begun.exists() and read_json(begun) != json.loads(json.dumps(run_facts)):
        raise ValueError(
            f"{folder} holds embeddings made with other options; delete it or choose another folder"
        )
    write_json(begun, run_facts)
    per_shard = max(1, options.sampling.shard_frames // options.sampling.frames_per_cut)
    blocks = [chosen[begin : begin + per_shard] for begin in range(0, len(chosen), per_shard)]
    total = 0
    for number, positions in enumerate(blocks):
        path = folder / f"shard-{number:05d}"
        if path.with_suffix(".json").exists() and path.with_suffix(".npy").exists():
            total += sum(read_json(path.with_suffix(".json"))["num_frames"])
        else:
            total += write_shard(teacher, manifest, positions, path, options)
    if total == 0:
        raise ValueError(f"{manifest.describe()}: no recording is long enough for one teacher frame")
    write_json(folder / SUMMARY_FILE, {**run_facts, "num_shards": len(blocks), "num_frames": total})
    logger.info("%d frames of %d recordings in %s", total, len(chosen), folder)


if __name__ == "__main__":
    run(main)
