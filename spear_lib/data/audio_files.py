"""Audio files by name, without a manifest: what a user types to transcribe or to tag (ours)."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from lhotse import Recording
from lhotse.cut import Cut

from spear_lib.data.audio import CORRUPT, EMPTY, MISSING, AudioError, cut_of, unreadable
from spear_lib.data.containers import cut_short
from spear_lib.runtime.walking import files_below

logger = logging.getLogger(__name__)

AUDIO_ENDINGS = (
    *(".flac", ".wav", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".webm"),
    *(".aif", ".aiff", ".au", ".caf", ".sph", ".w64"),
)
"""How names of audio files in a folder end; a file that is named itself may end as it likes."""


def find_audio(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """The files among ``paths`` and the audio files below the folders among them, each once, in order.

    ``-`` is standard input. Folders are walked as ``runtime.walking`` says: links are followed, no folder is
    entered twice, also when several of ``paths`` lead to it. A path that does not exist is kept:
    ``open_audio`` says so when its turn comes, and the others are not lost.

    Raises:
      ValueError: a folder without audio; nothing to read.
    """
    found: dict[str, Path] = {}  # by folder's real place and name: a link to a file has a name of its own
    for path in (Path("/dev/stdin" if str(path) == "-" else path) for path in paths):
        files = files_below(path, *AUDIO_ENDINGS) if path.is_dir() else [str(path)]
        if not files:
            raise ValueError(
                f"the folder {path} holds no audio: no file in it or below ends in "
                f"{', '.join(AUDIO_ENDINGS)}. Name the files themselves if they end otherwise."
            )
        for file in map(Path, files):
            found.setdefault(os.path.join(os.path.realpath(file.parent), file.name), file)
    if not found:
        raise ValueError("nothing to read: give audio files or folders")
    return list(found.values())


def open_audio(path: str | os.PathLike) -> Cut:
    """The whole file as one cut of any rate and any number of channels; nothing but its header is read, but
    for a pipe, which is taken into memory.

    Raises:
      AudioError: the file is missing, empty, or no audio.
    """
    path = Path(path)
    if not path.exists():
        raise AudioError(MISSING, f"{path} does not exist")
    if path.is_dir():
        raise AudioError(CORRUPT, f"{path} is a folder, expected an audio file")
    try:
        # Pipes have no size and cannot be read twice (/dev/stdin, or <(command) of a shell).
        content = None if path.is_file() else path.read_bytes()
        if not (path.stat().st_size if content is None else content):
            raise AudioError(EMPTY, f"{path} is an empty file")
        recording = (
            Recording.from_file(path, recording_id=str(path))
            if content is None
            else Recording.from_bytes(content, recording_id=str(path))
        )
    except AudioError:
        raise
    except Exception as error:  # whatever the backends of lhotse raise for a file that they do not know
        raise unreadable(path, error) from error
    if recording.num_samples == 0:
        raise AudioError(EMPTY, f"{path} holds no samples")
    if reason := cut_short(path):
        logger.warning("%s: %s; what can be read is used", path, reason)
    return cut_of(recording)


def result_names(files: list[Path], folders: list[str]) -> list[str]:
    """For each file the name of its results, without ending: its place in the folder that was named.

    Raises:
      ValueError: two files would write the same results.
    """
    names: dict[str, Path] = {}
    for file in files:
        parent = next((Path(f) for f in folders if Path(f).is_dir() and file.is_relative_to(f)), file.parent)
        name = str(file.relative_to(parent).with_suffix(""))
        if name in names:
            raise ValueError(
                f"{names[name]} and {file} would both write {name}.json: give them two runs, "
                "with an output_dir each"
            )
        names[name] = file
    return list(names)
