"""Stage 3: teacher embeddings of randomly chosen frames, on which the quantiser is trained."""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.data.manifests import Manifest
from spear_lib.data.problems import Problems
from spear_lib.quantization.embeddings import SUMMARY_FILE
from spear_lib.quantization.options import QuantizerTrainingOptions
from spear_lib.runtime.files import read_json, write_json
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.world import choose_device
from spear_lib.teachers.embedding import resolve_manifests
from spear_lib.teachers.options import SpectralOptions, TeacherOptions
from spear_lib.tokens.frame_sampling import SamplingOptions, choose_cuts, write_frames

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
    num_workers: int = 4
    """Threads that decode audio while the teacher computes."""
    max_bad_fraction: float = 0.001
    """Share of the chosen cuts that may be skipped because they cannot be read."""
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


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, prog="python -m spear_lib.bin.extract_embeddings", description=__doc__)
    teacher = options.of_teacher().create()
    teacher.to(choose_device("auto"))
    manifest = Manifest(resolve_manifests(options.cuts))
    chosen = choose_cuts(manifest, teacher.frame_rate, options.sampling, options.seed)
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
    write_json(begun, run_facts, compact=True)
    per_shard = max(1, options.sampling.shard_frames // options.sampling.frames_per_cut)
    blocks = [chosen[begin : begin + per_shard] for begin in range(0, len(chosen), per_shard)]
    total, problems = 0, Problems(options.max_bad_fraction, "cuts", total=len(chosen))
    for number, positions in enumerate(blocks):
        path = folder / f"shard-{number:05d}"
        if path.with_suffix(".json").exists() and path.with_suffix(".npy").exists():
            total += sum(read_json(path.with_suffix(".json"))["num_frames"])
        else:
            settings = (options.sampling, options.seed, problems, options.num_workers)
            total += write_frames(teacher, manifest, positions, path, *settings)
    problems.log()
    if total == 0:
        raise ValueError(f"{manifest.describe()}: no recording is long enough for one teacher frame")
    summary = {**run_facts, "num_shards": len(blocks), "num_frames": total}
    write_json(folder / SUMMARY_FILE, summary, compact=True)
    logger.info("%d frames of %d recordings in %s", total, len(chosen), folder)


if __name__ == "__main__":
    run(main)
