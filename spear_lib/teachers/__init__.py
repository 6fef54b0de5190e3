"""Teachers: waveform to frame embeddings, from which the quantiser makes tokens."""

import difflib
import inspect
from pathlib import Path
from typing import Any

from spear_lib.teachers.atst import AtstFrameTeacher
from spear_lib.teachers.base import Teacher
from spear_lib.teachers.dasheng import DashengTeacher
from spear_lib.teachers.encoder import EncoderOutputTeacher, EncoderTeacher
from spear_lib.teachers.huggingface import HubertTeacher, WavLMTeacher
from spear_lib.teachers.resemblyzer import ResemblyzerTeacher
from spear_lib.teachers.spectral import SpectralTeacher
from spear_lib.teachers.speech_embedding import SpeechEmbeddingTeacher

TEACHERS: dict[str, type[Teacher]] = {
    teacher.name: teacher
    for teacher in (
        SpectralTeacher,
        EncoderTeacher,
        EncoderOutputTeacher,
        WavLMTeacher,
        HubertTeacher,
        DashengTeacher,
        AtstFrameTeacher,
        ResemblyzerTeacher,
        SpeechEmbeddingTeacher,
    )
}

__all__ = ["TEACHERS", "Teacher", "create_teacher"]


def create_teacher(
    name: str,
    path: str | Path | None = None,
    *,
    dtype: str = "float32",
    window_seconds: float | None = None,
    overlap_seconds: float | None = None,
    **options: Any,
) -> Teacher:
    """The teacher called ``name``, ready to embed.

    Args:
      name: a key of ``TEACHERS``.
      path: its weights; each class says in ``needs`` what they are. Refused for a teacher without weights.
      dtype, window_seconds, overlap_seconds: see ``Teacher.configure``; None is the teacher's own default.
      options: keyword arguments of the teacher's class, for example ``layer``.

    Raises:
      ValueError: unknown name, a missing or superfluous path, an unknown option, or weights that do not fit.
      RuntimeError: a package or weights that must be fetched first; says how.
    """
    if name not in TEACHERS:
        near = difflib.get_close_matches(name, TEACHERS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown teacher {name!r}; known are {', '.join(TEACHERS)} (did you mean {near!r}?)"
        )
    teacher = TEACHERS[name]
    if path and not teacher.needs:
        raise ValueError(f"the {name} teacher has no weights, but a path was given: {path}")
    if teacher.needs and not path:
        raise ValueError(f"the {name} teacher needs a path (--teacher_path): {teacher.needs}")
    known = [each for each in inspect.signature(teacher).parameters if each != "path"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"the {name} teacher has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
        )
    if path:
        options["path"] = path
    return teacher(**options).eval().configure(dtype, window_seconds, overlap_seconds)
