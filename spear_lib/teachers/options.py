"""Which teacher, as one value: what a command was told, and what is stored with the quantiser so that stage 5
makes the same teacher again."""

from dataclasses import dataclass, field, replace
from typing import Any

from spear_lib.teachers import Teacher, create_teacher


@dataclass(frozen=True)
class SpectralOptions:
    """The spectral teacher (ignored by other teachers)."""

    num_mel_coefficients: int = 20
    """Low-order DCT coefficients over the mel axis: the spectral envelope (ours)."""
    num_time_coefficients: int = 4
    """Low-order DCT coefficients over the stacked frames (ours)."""
    context_frames: int = 4
    """10 ms frames on each side of the centre: 9 frames in all (ours; the student sees 9 as well)."""
    dynamic_range_db: float = 60.0
    """The spectrum is raised to this many dB below the utterance's loudest bin; 0: off (ours)."""
    mean_normalisation: bool = True
    """Subtract every mel bin's mean over the utterance, which takes out gain and channel (ours)."""
    energy_weight: float = 0.5
    """Factor on the loudness coefficients, which otherwise dominate (ours)."""
    frame_rate: float = 50.0
    """Frames per second: 50, or 25 as the paper's audio teachers (ours)."""


@dataclass(frozen=True)
class TeacherOptions:
    """A teacher and how it computes."""

    name: str = "spectral"
    """Name in the registry (``spear_lib.teachers.TEACHERS``)."""
    path: str = ""
    """Weights; empty for a teacher without."""
    layer: int | None = None
    """Layer of the embeddings; None: the teacher's own default."""
    dtype: str = "float32"
    """Number format of the teacher's blocks: float32 or bfloat16."""
    window_seconds: float | None = None
    """Longer recordings are cut into windows, s; None: the teacher's own default."""
    overlap_seconds: float | None = None
    """Overlap of neighbouring windows, s; None: the teacher's own default."""
    spectral: SpectralOptions = field(default_factory=SpectralOptions)
    """The spectral teacher (ignored by other teachers)."""

    def create(self) -> Teacher:
        """The teacher; errors of ``create_teacher``."""
        options: dict[str, Any] = {} if self.layer is None else {"layer": self.layer}
        if self.name == "spectral":
            options |= vars(self.spectral)
        return create_teacher(
            self.name,
            self.path or None,
            dtype=self.dtype,
            window_seconds=self.window_seconds,
            overlap_seconds=self.overlap_seconds,
            **options,
        )

    @staticmethod
    def from_recipe(recipe: dict[str, Any], path: str = "", dtype: str = "") -> "TeacherOptions":
        """The options that ``dataclasses.asdict`` made ``recipe`` of.

        Args:
          path: where the weights lie now, if not where they lay then.
          dtype: compute in this format instead of the one of the recipe.
        """
        options = TeacherOptions(**{**recipe, "spectral": SpectralOptions(**recipe["spectral"])})
        return replace(options, path=path or options.path, dtype=dtype or options.dtype)
