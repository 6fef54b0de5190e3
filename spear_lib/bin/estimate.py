"""What tokens of a corpus will cost: disk, accelerator hours and how many jobs, before anything runs.

The rate of the teacher is measured here for a few seconds, or given where it is known (--rate).
"""

import logging
import time
from dataclasses import dataclass, field

import torch

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.quantization import Quantizer
from spear_lib.runtime.log import device_name, first_screen
from spear_lib.runtime.world import choose_device
from spear_lib.teachers import Teacher
from spear_lib.teachers.options import SpectralOptions, TeacherOptions
from spear_lib.tokens.frame_sampling import SamplingOptions
from spear_lib.tokens.plan import SHARD_SECONDS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Options of estimate."""

    hours: float
    """Audio of the corpus, h."""
    teacher: str = "spectral"
    """Teacher: spectral, spear, wavlm, hubert, dasheng or atst_frame."""
    teacher_path: str = ""
    """Weights of the teacher."""
    teacher_layer: int | None = None
    """Layer of the teacher; default: the teacher's own."""
    teacher_dtype: str = "float32"
    """Number format of the teacher's blocks: float32 or bfloat16."""
    num_codebooks: int = 16
    """Codebooks of the quantiser (paper §4: 16 for WavLM Large, 8 for Dasheng)."""
    codebook_size: int = 256
    """Codes per codebook."""
    rate: float = 0.0
    """Audio seconds per second of one device, teacher and quantiser together; 0: measure it now."""
    measure_seconds: float = 10.0
    """How long to measure, s, about."""
    batch_seconds: float = 120.0
    """Audio per teacher call, s; lower it where measuring takes too long."""
    clip_seconds: float = 12.0
    """Length of the clips to measure with, s."""
    job_hours: float = 4.0
    """How long one batch job may run, h."""
    spectral: SpectralOptions = field(default_factory=SpectralOptions)
    """The spectral teacher."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """The quantiser's training subset (stage 3)."""

    def __post_init__(self) -> None:
        for name in ("hours", "job_hours", "batch_seconds", "clip_seconds", "measure_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name):g}: it must be positive")


def measure(teacher: Teacher, quantizer: Quantizer, options: Options) -> float:
    """Audio seconds per second of teacher and quantiser on full batches of noise."""
    count = max(1, int(options.batch_seconds / options.clip_seconds))
    samples = round(options.clip_seconds * teacher.sample_rate)
    waveforms = 0.1 * torch.randn(count, samples, generator=torch.Generator().manual_seed(0))
    waveforms, lengths = waveforms.to(teacher.device), torch.full((count,), samples, device=teacher.device)

    def once() -> None:
        embeddings, frames = teacher.embed(waveforms, lengths)
        quantizer.encode(embeddings[:, : int(frames[0])]).cpu()

    once()  # the first call prepares things
    began, done = time.monotonic(), 0
    while time.monotonic() - began < options.measure_seconds or done == 0:
        once()
        done += 1
    return done * count * options.clip_seconds / (time.monotonic() - began)


def cost_lines(options: Options, teacher: Teacher, rate: float) -> dict[str, str]:
    """What to expect, name -> figure with unit."""
    seconds = options.hours * 3600
    width = 1 if options.codebook_size <= 256 else 2
    per_second = teacher.frame_rate * options.num_codebooks * width
    dumped = seconds * teacher.frame_rate * teacher.embedding_dim * 4
    subset = min(options.sampling.num_frames, seconds * teacher.frame_rate) * teacher.embedding_dim * 2
    device_hours = options.hours / rate
    shards = max(1, round(seconds / SHARD_SECONDS + 0.499))
    # No job can be shorter than a shard, and a job has whole shards.
    splits = max(1, min(shards, -int(-device_hours // options.job_hours)))
    return {
        "tokens": f"{size(seconds * per_second)} ({per_second:g} bytes per second of audio), about {shards} "
        "shards",
        "embeddings of stage 3": f"{size(subset)} in float16, the quantiser's subset alone",
        "not written": f"{size(dumped)} of float32 embeddings, which a dump of the whole corpus would take",
        "rate": f"{rate:.3g} audio seconds per second of one device",
        "device hours": f"{device_hours:.3g} h ({device_hours * 60:.3g} min) for {options.hours:g} h of "
        "audio",
        "jobs": f"--num_splits {splits} (at most {options.job_hours:g} h each: about "
        f"{device_hours / splits:.2g} h; up to {shards} jobs can share the work)",
    }


def size(num_bytes: float) -> str:
    """Bytes for people."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}"
    return f"{num_bytes / 1e3:.3g} kB"


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, prog="python -m spear_lib.bin.estimate", description=__doc__)
    teacher = TeacherOptions(
        options.teacher,
        options.teacher_path,
        options.teacher_layer,
        options.teacher_dtype,
        spectral=options.spectral,
    ).create()
    device = choose_device("auto")
    teacher.to(device)
    first_screen("estimate", {"teacher": f"{teacher.id}, {teacher.embedding_dim} channels, {teacher.dtype}"})
    rate = options.rate
    if rate <= 0:
        quantizer = Quantizer(teacher.embedding_dim, options.num_codebooks, min(256, options.codebook_size))
        logger.info("measuring on %s", device_name())
        rate = measure(teacher, quantizer.to(device).eval(), options)
    lines = cost_lines(options, teacher, rate)
    width = max(map(len, lines))
    print("\n".join(f"{name.ljust(width)}  {value}" for name, value in lines.items()))


if __name__ == "__main__":
    run(main)
