"""What the parts of the mixture are made of: for every corpus its recordings and the set of each.

Another corpus is one more function here, named in READERS.
"""

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from spear_lib.runtime.tables import read_table

TRAIN, DEV = "train", "dev"
AN4_DEV_UTTERANCES = 100
FSDD_TEST_INDICES = 5
ESC10_DEV_TAKES = 20  # every so many-th clip is in dev


class Item(NamedTuple):
    """One recording."""

    set: str
    """train or dev."""
    id: str
    """Unique in its part."""
    paths: tuple[Path, ...]
    """Its files; several are joined, with pauses between them."""
    speaker: str | None = None


def rows_of(folder: Path, name: str, columns: str) -> list[dict[str, str]]:
    """Lines of the table ``name``; ValueError where it is missing or lacks one of ``columns``."""
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{path} does not exist: the README of egs/realmini says what the folder must hold")
    return [row for _, row in read_table(path, columns.split(), quoting=csv.QUOTE_NONE)]


def an4(folder: Path) -> Iterator[Item]:
    """CMU AN4's training utterances; dev is its first eight speakers, as in egs/an4. None of its test set."""
    rows = [
        row for row in rows_of(folder, "utterances.tsv", "utt split speaker path") if row["split"] == "train"
    ]
    rows.sort(key=lambda row: (row["speaker"], row["utt"]))
    for number, row in enumerate(rows):
        chosen = DEV if number < AN4_DEV_UTTERANCES else TRAIN
        yield Item(chosen, f"an4-{row['utt']}", (folder / row["path"],), row["speaker"])


def fsdd(folder: Path) -> Iterator[Item]:
    """Spoken digits in strings of eight of one speaker: a recording alone is a third of a second. Train only,
    without the recordings that the data set keeps for testing (indices 0 to 4)."""
    found: dict[str, list[tuple[int, int, Path]]] = {}
    for path in (folder / "recordings").glob("[!.]*.wav"):
        parts = re.fullmatch(r"(\d)_(\w+)_(\d+)", path.stem)
        if parts is None:
            raise ValueError(f"{path} is no recording of a digit: expected DIGIT_SPEAKER_INDEX.wav")
        if int(parts[3]) >= FSDD_TEST_INDICES:
            found.setdefault(parts[2], []).append((int(parts[3]), int(parts[1]), path))
    if not found:
        raise ValueError(f"{folder / 'recordings'} holds no DIGIT_SPEAKER_INDEX.wav of the training part")
    for speaker, digits in sorted(found.items()):
        paths = [path for *_, path in sorted(digits)]
        for number, start in enumerate(range(0, len(paths), 8)):
            yield Item(TRAIN, f"fsdd-{speaker}-{number:03d}", tuple(paths[start : start + 8]), speaker)


def ami(folder: Path) -> Iterator[Item]:
    """Meetings: its train and dev excerpts, several speakers each. None of its test excerpts."""
    for row in rows_of(folder, "recordings.tsv", "recording split path"):
        if row["split"] in (TRAIN, DEV):
            yield Item(row["split"], f"ami-{row['recording']}", (folder / row["path"],))


def esc10(folder: Path) -> Iterator[Item]:
    """All 400 clips of all folds, without their labels; dev is every 20th by name."""
    rows = rows_of(folder, "clips.tsv", "clip path")
    for number, row in enumerate(sorted(rows, key=lambda row: row["clip"])):
        yield Item(
            TRAIN if number % ESC10_DEV_TAKES else DEV, f"esc10-{row['clip']}", (folder / row["path"],)
        )


Reader = Callable[[Path], Iterator[Item]]
READERS: dict[str, dict[str, Reader]] = {
    "speech": {"an4": an4, "fsdd": fsdd, "ami_diarization_mini": ami},
    "audio": {"esc10": esc10},
}
"""Part -> folder below --corpus-dir -> its reader."""
ROOMS = "noise_rir/rir"
"""Folder below --corpus-dir: impulse responses of rooms; where it is not there, nothing sounds in a room."""
ROOM_SHARE = 0.5
"""Of the training speech, how much is heard in a room."""
