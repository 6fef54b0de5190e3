"""What pre-training took in the paper (Table 9), beside which a plan puts its estimate."""

from typing import NamedTuple

from spear_lib.encoders.zipformer import ZipformerConfig
from spear_lib.training.planning.machines import GPUS


class PaperRun(NamedTuple):
    """A column of the paper's Table 9. All ran on A800 GPUs of 80 GB (paper B.2)."""

    domain: str
    """speech | audio | speech and audio."""
    size: str
    """base | large | xlarge (paper Table 8)."""
    steps: int
    batch_seconds: int
    """Audio of a batch over all GPUs, s."""
    gpus: int
    gpu_hours: int
    """Approximate, as printed; GPUs times elapsed hours."""

    @property
    def audio_hours(self) -> float:
        """Hours of audio that passed through the model."""
        return self.steps * self.batch_seconds / 3600

    @property
    def audio_rate(self) -> float:
        """Audio seconds per second on one GPU."""
        return self.audio_hours / self.gpu_hours


PAPER_RUNS = (
    PaperRun("speech", "base", 400_000, 4800, 8, 460),
    PaperRun("speech", "large", 500_000, 4800, 8, 900),
    PaperRun("audio", "base", 250_000, 4800, 8, 290),
    PaperRun("audio", "large", 250_000, 4800, 8, 560),
    PaperRun("speech and audio", "base", 400_000, 6400, 8, 660),
    PaperRun("speech and audio", "large", 500_000, 6400, 16, 2000),
    PaperRun("speech and audio", "xlarge", 500_000, 6400, 32, 3800),
)
PAPER_GPU = GPUS["a800"]


def paper_runs(encoder: object, num_teachers: int) -> list[PaperRun]:
    """The runs of the paper with the layers and widths of ``encoder`` and as many teachers.

    One teacher is that of speech or that of audio: both runs. An encoder of another size has none.
    """
    names = ("num_encoder_layers", "encoder_dim", "feedforward_dim", "encoder_unmasked_dim")
    if not isinstance(encoder, ZipformerConfig):
        return []

    def shape(config: ZipformerConfig) -> list[object]:
        return [getattr(config, name) for name in names]

    return [
        run
        for run in PAPER_RUNS
        if (run.domain == "speech and audio") == (num_teachers == 2)
        and shape(encoder) == shape(getattr(ZipformerConfig, run.size)())
    ]
