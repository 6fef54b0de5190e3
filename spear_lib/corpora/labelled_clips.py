"""Cuts of folders of labelled clips: AudioSet, VGGSound, Freesound, Music4All, MTG-Jamendo (ours).

The labels of a clip lie in the custom field ``audio_event`` of its one supervision, joined by ``;`` (as in
icefall's AudioSet recipe, but the labels themselves, for AudioSet the mids, which need no class list to be
read). The cut's custom field ``domain`` is ``audio``, from which mixing knows that it is not speech.
"""

import os
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lhotse import Recording, SupervisionSegment
from lhotse.cut import Cut

from spear_lib.corpora.clip_tables import Clip
from spear_lib.data.audio import (
    CANCELLED,
    EMPTY,
    SILENT,
    SILENT_CHANNEL,
    AudioError,
    AudioProblems,
    check_whole,
    cut_of,
    load_audio,
    unreadable,
)
from spear_lib.data.domains import AUDIO
from spear_lib.data.problems import Problems
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.runtime.walking import files_below

AUDIO_ENDINGS = (".flac", ".wav", ".mp3", ".ogg", ".opus", ".m4a")
LABEL_FIELD, SEPARATOR = "audio_event", ";"

MISSING, DUPLICATE, TOO_SHORT, NO_LABEL = "missing file", "duplicate id", "too short", "without a known label"
_BLOCK = 1024  # clips that are read ahead

SHORT_TOLERANCE = 0.1
"""Seconds by which a clip may be shorter than its table says without being called short: downloads are cut at
key frames."""
LONG_TOLERANCE = 1.0
"""Seconds by which it may be longer and still be taken whole (ours)."""
TOO_LONG = "longer than the table says"


def labels_of(cut: Cut) -> list[str]:
    """The labels of a cut (AudioSet: mids), in the order of the table; empty without labels."""
    return _labels(cut.supervisions[0].custom if cut.supervisions else None)


def labels_in(fields: dict[str, Any]) -> list[str]:
    """``labels_of`` for the JSON fields of a cut."""
    supervisions = fields.get("supervisions")
    return _labels(supervisions[0].get("custom") if supervisions else None)


def _labels(custom: dict[str, Any] | None) -> list[str]:
    text = (custom or {}).get(LABEL_FIELD, "")
    return text.split(SEPARATOR) if text else []


class ClipFiles:
    """The audio files below a folder, by name without ending.

    Links to folders are followed (``runtime.walking``). Of two files with one name, the one that comes first
    in the order of AUDIO_ENDINGS and then of the alphabet is taken.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._paths: dict[str, str] = {}
        for path in files_below(folder, *AUDIO_ENDINGS):
            stem, ending = os.path.splitext(os.path.basename(path))
            known = self._paths.get(stem)
            if known is None or _rank(ending) < _rank(os.path.splitext(known)[1]):
                self._paths[stem] = path
        if not self._paths:
            raise ValueError(
                f"{folder} holds no audio ({', '.join(AUDIO_ENDINGS)}): download the clips, or give the "
                "folder that holds them"
            )

    def __len__(self) -> int:
        return len(self._paths)

    def find(self, clip: Clip) -> Path | None:
        """The file of a clip; None if there is none."""
        return next((Path(self._paths[name]) for name in clip.names if name in self._paths), None)


def _rank(ending: str) -> int:
    return AUDIO_ENDINGS.index(ending.lower())


@dataclass(frozen=True)
class ClipChecks:
    """What a clip must be to become a cut."""

    min_seconds: float = 0.1
    """Shorter clips are left out."""
    window_seconds: float = 30.0
    """Longer recordings become several cuts of this length, each with the labels of the whole."""
    decode: bool = True
    """Decode every sample; False reads the headers alone (enough to find missing and empty files)."""

    def __post_init__(self) -> None:
        if not 0.0 < self.min_seconds < self.window_seconds:
            raise ValueError(
                f"min_seconds is {self.min_seconds} and window_seconds {self.window_seconds}: expected "
                "0 < min_seconds < window_seconds"
            )


class ClipProblems:
    """Two counts with limits of their own: files that are not there, of which AudioSet always has some, and
    everything else.

    Args:
      total: number of clips in all, where it is known: the limits are then numbers of clips from the start.
    """

    def __init__(
        self,
        max_missing_fraction: float = 0.3,
        max_bad_fraction: float = 0.01,
        what: str = "clips",
        total: int | None = None,
    ):
        self.missing = Problems(max_missing_fraction, what, total)
        self.other = Problems(max_bad_fraction, what, total)

    def check(self) -> None:
        """ValueError if there are too many of either."""
        self.missing.check()
        self.other.check()

    def log(self) -> None:
        """Logs what was skipped or noted."""
        self.missing.log()
        self.other.log()

    def to_dict(self) -> dict:
        """Counts and examples for a statistics file."""
        return {"missing": self.missing.to_dict(), "other": self.other.to_dict()}


def clip_cuts(
    clips: Iterable[Clip],
    files: ClipFiles,
    problems: ClipProblems,
    *,
    known_labels: Collection[str] | None = None,
    seen: set[str] | None = None,
    checks: ClipChecks | None = None,
    num_jobs: int = 1,
) -> Iterator[Cut]:
    """Cuts of the clips that can be used, in their order; nothing but one block of clips is held in memory.

    A clip is left out and counted if its id came before, if its file is missing, empty, corrupt, cut short or
    too short, if it is longer than the table says and the labelled stretch cannot be told
    (``labelled_stretch``), or if all its labels are unknown. Single unknown labels are dropped and noted. The
    limits of ``problems`` are enforced along the way and at the end.

    Args:
      known_labels: the class list; None takes every label.
      seen: ids that came before, also in other parts of the corpus; extended here.
      num_jobs: how many files are read at the same time.

    Raises:
      ValueError: more clips are bad or missing than ``problems`` allows, or a label holds a semicolon.
    """
    checks, seen = checks or ClipChecks(), set() if seen is None else seen
    clips = iter(clips)
    with ThreadPoolExecutor(max(1, num_jobs)) as pool:
        while block := list(islice(clips, _BLOCK)):
            found = [
                (clip, path, labels)
                for clip in block
                if (path := _usable_file(clip, files, problems, seen)) is not None
                and (labels := _usable_labels(clip, known_labels, problems.other)) is not None
            ]
            read = pool.map(lambda item: _read(item[0], item[1], checks), found)
            for (clip, _, labels), result in zip(found, read):
                if isinstance(result, str):
                    problems.other.bad(result, clip.id)
                    continue
                problems.other.good()
                whole, notes = result
                for note in _notes(clip, whole) + notes:
                    problems.other.note(note)
                yield from _windows(whole, labels, checks.window_seconds)
    problems.check()


def _usable_file(clip: Clip, files: ClipFiles, problems: ClipProblems, seen: set[str]) -> Path | None:
    if clip.id in seen:
        problems.other.bad(DUPLICATE, clip.id)
        return None
    seen.add(clip.id)
    path = files.find(clip)
    if path is None or not path.is_file():
        problems.missing.bad(MISSING, clip.id)
    else:
        problems.missing.good()
        return path
    return None


def _usable_labels(clip: Clip, known: Collection[str] | None, problems: Problems) -> list[str] | None:
    if any(SEPARATOR in label for label in clip.labels):
        raise ValueError(
            f"a label of clip {clip.id} holds a {SEPARATOR!r}, which separates labels in the field "
            f"{LABEL_FIELD}: {clip.labels}. Replace it in the table"
        )
    labels = [label for label in clip.labels if known is None or label in known]
    for label in clip.labels:
        if known is not None and label not in known:
            problems.note(f"unknown label {label}")
    if not labels and known is not None:
        problems.bad(NO_LABEL, clip.id)
        return None
    return labels


def labelled_stretch(clip: Clip, path: Path, seconds: float) -> tuple[float, float] | None:
    """(start, length) in s of the stretch of a file that the table's labels are of; None: it cannot be told.

    A file of the promised length, or shorter, is the clip. A longer one whose name says nothing of a start
    (``YTID.wav``) is the original recording, from which the promised stretch is cut if it reaches so far;
    one whose name holds the start begins there, and its first seconds are taken (ours).

    Args:
      seconds: length of the file.
    """
    if clip.seconds is None or seconds <= clip.seconds + LONG_TOLERANCE:
        return 0.0, seconds
    if clip.start is None:
        return None
    if path.stem not in clip.original_names:
        return 0.0, clip.seconds
    length = min(clip.seconds, seconds - clip.start)
    return (clip.start, length) if length >= clip.seconds - SHORT_TOLERANCE else None


def _read(clip: Clip, path: Path, checks: ClipChecks) -> tuple[Cut, list[str]] | str:
    """The labelled audio as one cut and what is worth telling of it, or the kind of problem; runs in a
    thread."""
    if path.stat().st_size == 0:
        return EMPTY
    try:
        recording = Recording.from_file(path, recording_id=clip.id)
    except Exception as error:
        # Which exception it is depends on the library that reads the format; the count names the file.
        return unreadable(path, error).kind
    if recording.num_samples == 0:
        return EMPTY
    if recording.duration < checks.min_seconds:
        return TOO_SHORT
    stretch = labelled_stretch(clip, path, recording.duration)
    if stretch is None:
        return TOO_LONG
    whole, notes = _cut(clip.id, recording, *stretch, []), AudioProblems()
    if checks.decode:
        try:
            load_audio(whole, problems=notes)
            check_whole(whole)
        except AudioError as error:
            return error.kind
    return whole, [note for note in (SILENT, SILENT_CHANNEL, CANCELLED) if note in notes.notes]


def _notes(clip: Clip, whole: Cut) -> list[str]:
    notes, recording = [], whole.recording
    if clip.seconds is not None and whole.duration < clip.seconds - SHORT_TOLERANCE:
        notes.append("shorter than the table says")
    if whole.duration < recording.duration:
        notes.append(f"{TOO_LONG}: the labelled stretch was cut out")
    if recording.sampling_rate != SAMPLE_RATE:
        notes.append(f"resampled from {recording.sampling_rate} Hz")
    if recording.num_channels > 1:
        notes.append(f"mean of {recording.num_channels} channels")
    return notes


def _windows(whole: Cut, labels: list[str], window_seconds: float) -> Iterator[Cut]:
    recording, name, begin = whole.recording, whole.id, whole.start
    if whole.duration <= window_seconds:
        yield _cut(name, recording, begin, whole.duration, labels)
        return
    # A short rest would teach little and is left out with less than a second.
    count, rest = divmod(whole.num_samples, round(window_seconds * recording.sampling_rate))
    for index in range(count):
        start = begin + index * window_seconds
        yield _cut(f"{name}-{index:03d}", recording, start, window_seconds, labels)
    if rest >= recording.sampling_rate:
        start = begin + count * window_seconds
        yield _cut(f"{name}-{count:03d}", recording, start, rest / recording.sampling_rate, labels)


def _cut(name: str, recording: Recording, start: float, seconds: float, labels: list[str]) -> Cut:
    segment = SupervisionSegment(
        id=name,
        recording_id=recording.id,
        start=0.0,
        duration=seconds,
        custom={LABEL_FIELD: SEPARATOR.join(labels)},
    )
    return cut_of(recording, name, start, seconds, segment, {"domain": AUDIO})
