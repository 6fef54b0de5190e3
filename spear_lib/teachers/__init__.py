"""Teachers: waveform to frame embeddings, from which the quantiser makes tokens."""

import difflib
from pathlib import Path
from typing import Any

from spear_lib.teachers.base import Teacher
from spear_lib.teachers.encoder import EncoderTeacher
from spear_lib.teachers.spectral import SpectralTeacher

TEACHERS: dict[str, type[Teacher]] = {"spectral": SpectralTeacher, "spear": EncoderTeacher}

__all__ = ["TEACHERS", "EncoderTeacher", "SpectralTeacher", "Teacher", "create_teacher"]


def create_teacher(name: str, path: str | Path | None = None, **options: Any) -> Teacher:
    """The teacher called ``name``, ready to embed.

    Args:
      name: ``spectral`` (no weights) or ``spear`` (a pre-trained encoder).
      path: the encoder of ``spear``; not allowed for ``spectral``.
      options: keyword arguments of the teacher's class.

    Raises:
      ValueError: unknown name, a missing or superfluous path, or an unknown option.
    """
    if name not in TEACHERS:
        near = difflib.get_close_matches(name, TEACHERS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown teacher {name!r}; known are {', '.join(TEACHERS)} (did you mean {near!r}?)"
        )
    if name == "spectral" and path:
        raise ValueError(f"the spectral teacher has no weights, but a path was given: {path}")
    if name == "spear":
        if not path:
            raise ValueError("the spear teacher needs the path of an encoder (--teacher_path FOLDER)")
        options = {"path": path, **options}
    try:
        return TEACHERS[name](**options).eval()
    except TypeError as error:
        raise ValueError(f"wrong options for teacher {name!r}: {error}") from error
