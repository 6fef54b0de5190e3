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
from spear_lib.teachers.embedding import count_frames, count_windows, embed_pieces, resolve_manifests
from spear_lib.teachers.options import TeacherOptions
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
    """Teacher: spectral (no weights), spear (an encoder of ours), wavlm, hubert, dasheng or atst_frame."""
    teacher_path: str = ""
    """Weights of the teacher; without them the command says which."""
    teacher_layer: int | None = None
    """Layer of the teacher, negative counts from the last; default: the teacher's own."""
    teacher_dtype: str = "float32"
    """Number format of the teacher's blocks: float32 or bfloat16."""
    teacher_window: float | None = None
    """Longer recordings are cut into overlapping windows, s; default: the teacher's own."""
    teacher_overlap: float | None = None
    """Overlap of neighbouring windows, s; default: the teacher's own."""
    seed: int = 0
    """Keys the choice of recordings and frames."""
    spectral: SpectralOptions = field(default_factory=SpectralOptions)
    """The spectral teacher."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """Which frames."""
    training: QuantizerTrainingOptions = field(default_factory=QuantizerTrainingOptions)
    """Unused here; train_quantizer reads it from the same file."""

    def of_teacher(self) -> TeacherOptions:
        """The options of the teacher alone."""
        return TeacherOptions(
            self.teacher,
            self.teacher_path,
            self.teacher_layer,
            self.teacher_dtype,
            self.teacher_window,
            self.teacher_overlap,
            self.spectral,
        )


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


def frame_choice(count: int, cut_id: str, options: Options) -> np.ndarray:
    """Which of a cut's ``count`` frames are taken, ascending."""
    if count <= options.sampling.frames_per_cut:
        return np.arange(count)
    draw = keyed_random.generator("embedding frames", options.seed, cut_id)
    return np.sort(draw.choice(count, options.sampling.frames_per_cut, replace=False))


def write_shard(
    teacher: Teacher, manifest: Manifest, positions: list[int], path: Path, options: Options
) -> int:
    """Embed the cuts at ``positions`` and commit sampled frames to ``path``(.npy, .json); number of
    frames."""
    cuts = [manifest[position] for position in positions]
    chosen = [frame_choice(count_frames(teacher, cut), cut.id, options) for cut in cuts]
    parts = [np.empty((len(index), teacher.embedding_dim), dtype=np.float16) for index in chosen]
    pieces = embed_pieces(teacher, cuts, options.sampling.batch_seconds)
    for piece in progress(pieces, count_windows(teacher, cuts), path.name, "windows"):
        index = chosen[piece.position] - piece.first_frame
        wanted = (index >= 0) & (index < len(piece.embeddings))
        embeddings = piece.embeddings[torch.from_numpy(index[wanted]).to(piece.embeddings.device)]
        parts[piece.position][wanted] = embeddings.to(torch.float16).cpu().numpy()
    with atomic_file(path.with_suffix(".npy")) as file:
        np.save(file, np.concatenate(parts))
    counts = [len(part) for part in parts]
    write_json(path.with_suffix(".json"), {"ids": [cut.id for cut in cuts], "num_frames": counts})
    return sum(counts)


def main() -> None:
    options = parse(Options, prog="python -m spear_lib.bin.extract_embeddings", description=__doc__)
    teacher = options.of_teacher().create()
    teacher.to("cuda" if torch.cuda.is_available() else "cpu")
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
        "recipe": asdict(options.of_teacher()),
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
