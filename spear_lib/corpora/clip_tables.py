"""The tables of corpora that are folders of clips: which clips there are, with which labels (ours).

Every reader takes the unpacked corpus as its authors publish it and yields one ``Clip`` per line of the
table. A clip has several possible file names, because downloaders name the same clip differently;
``labelled_clips`` finds the file and makes the cut.
"""

import csv
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spear_lib.runtime.tables import csv_lines, read_table


@dataclass(frozen=True)
class Clip:
    """One line of a corpus' table."""

    id: str
    names: tuple[str, ...]
    """File names without folder and ending, the most likely first."""
    labels: tuple[str, ...]
    part: str
    """Which part of the corpus: as the table says, for example "train", or "all" where there are no parts."""
    seconds: float | None = None
    """Length that the table promises, s; None where it says nothing."""
    start: float | None = None
    """Where in the original recording the table's stretch begins, s; None where it does not say."""
    original_names: tuple[str, ...] = ()
    """Those of ``names`` that say nothing of a start, so that a longer file is the original recording."""


@dataclass(frozen=True)
class Layout:
    """How a corpus lies on disk."""

    read: Callable[[Path], Iterator[Clip]]
    expected: str
    """What is expected where, for messages."""
    parts: tuple[str, ...]
    """The values of ``Clip.part``."""


def read_clips(corpus: str, folder: str | Path) -> Iterator[Clip]:
    """The clips of an unpacked corpus in the order of its tables.

    Args:
      corpus: audioset, vggsound, freesound, music4all or mtg_jamendo.

    Raises:
      ValueError: unknown corpus, a table is missing, or a line of it is not as expected.
    """
    folder = Path(folder)
    try:
        layout = LAYOUTS[corpus]
    except KeyError:
        near = difflib.get_close_matches(corpus, LAYOUTS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown corpus {corpus!r}; known are {', '.join(LAYOUTS)} (did you mean {near!r}?)"
        ) from None
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: expected {layout.expected}")
    return layout.read(folder)


def read_class_list(path: str | Path) -> dict[str, str]:
    """``class_labels_indices.csv`` (index, mid, display_name) as {mid: name}, in the order of the indices.

    Raises:
      ValueError: the file is missing, or its indices do not count up from 0, or a mid is there twice.
    """
    path = Path(path)
    classes: dict[str, str] = {}
    for number, row in read_table(path, ("index", "mid", "display_name")):
        if row["index"] != str(len(classes)) or not row["mid"] or row["mid"] in classes:
            raise ValueError(
                f"{path}, line {number}: expected index {len(classes)} and a mid that did not come before, "
                f"found index {row['index']!r} and mid {row['mid']!r}. Is it AudioSet's "
                "class_labels_indices.csv?"
            )
        classes[row["mid"]] = row["display_name"]
    if not classes:
        raise ValueError(f"{path} holds no classes: copy AudioSet's class_labels_indices.csv again")
    return classes


# ---- AudioSet (research.google.com/audioset): three csv files; everybody downloads the clips for himself.

AUDIOSET_PARTS = {
    "eval": "eval_segments.csv",
    "balanced_train": "balanced_train_segments.csv",
    "unbalanced_train": "unbalanced_train_segments.csv",
}


def read_audioset_segments(path: str | Path, part: str) -> Iterator[Clip]:
    """The segments of one csv file: ``YTID, start_seconds, end_seconds, "mid,mid"``, after lines with #.

    A clip's id is ``YTID_<start in ms>``, as in AudioSet's files of strong labels.
    """
    path = Path(path)
    for number, row in csv_lines(path, skipinitialspace=True, comments=True):
        try:
            name, start, end = row[0], float(row[1]), float(row[2])
            labels = _split(row[3], ",")
        except (IndexError, ValueError):
            raise ValueError(
                f"{path}, line {number} is {', '.join(row)!r}: expected "
                'YTID, start_seconds, end_seconds, "label,label,..."'
            ) from None
        if len(row) != 4 or not name or end <= start:
            raise ValueError(
                f"{path}, line {number}: expected four columns and an end after the start, found {row}. "
                "Labels that are separated by commas are one quoted column"
            )
        milliseconds = f"{name}_{round(1000 * start)}"
        short, long = (f"{name}_{form(start)}" for form in ("{:g}".format, "{:.3f}".format))
        both = f"{name}_{start:g}_{end:g}", f"{name}_{start:.3f}_{end:.3f}"
        names = (milliseconds, short, long, *both, name, f"Y{name}", f"Y{both[1]}")
        seconds = round(end - start, 3)
        yield Clip(
            milliseconds, tuple(dict.fromkeys(names)), labels, part, seconds, start, (name, f"Y{name}")
        )


def _read_audioset(folder: Path) -> Iterator[Clip]:
    found = {part: folder / name for part, name in AUDIOSET_PARTS.items() if (folder / name).is_file()}
    if not found:
        raise ValueError(f"{folder} has none of {', '.join(AUDIOSET_PARTS.values())}")
    for part, path in found.items():
        yield from read_audioset_segments(path, part)


# ---- VGGSound (robots.ox.ac.uk/~vgg/data/vggsound): vggsound.csv without a header.


def _read_vggsound(folder: Path) -> Iterator[Clip]:
    path = folder / "vggsound.csv"
    for number, row in csv_lines(path):
        if len(row) != 4 or not row[1].isdecimal() or row[3] not in LAYOUTS["vggsound"].parts:
            raise ValueError(
                f"{path}, line {number} is {row}: expected YouTube id, start in s, label, train or test"
            )
        name, start, label, part = row
        clip = f"{name}_{int(start):06d}"
        names = clip, f"{name}_{start}", name
        yield Clip(clip, names, (label.strip(),), part, 10.0, float(start), (name,))


# ---- Freesound as FSD50K (zenodo.org/records/4060432): dev.csv and eval.csv, labels as AudioSet's mids.


def _read_freesound(folder: Path) -> Iterator[Clip]:
    truth = folder / "FSD50K.ground_truth"
    for _, row in read_table(truth / "dev.csv", ("fname", "labels", "mids", "split")):
        yield Clip(row["fname"], (row["fname"],), _split(row["mids"], ","), row["split"])
    for _, row in read_table(truth / "eval.csv", ("fname", "labels", "mids")):
        yield Clip(row["fname"], (row["fname"],), _split(row["mids"], ","), "eval")


# ---- Music4All: tables separated by tabs in spite of their ending, 30 s in audios/ID.mp3, no official parts.


def _read_music4all(folder: Path) -> Iterator[Clip]:
    for _, row in read_table(folder / "id_genres.csv", ("id", "genres"), delimiter="\t"):
        yield Clip(row["id"], (row["id"],), _split(row["genres"], ","), "all", 30.0)


# ---- MTG-Jamendo (github.com/MTG/mtg-jamendo-dataset): a column for each tag, whole tracks, splits/split-0.

_JAMENDO_COLUMNS = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]


def _read_mtg_jamendo(folder: Path) -> Iterator[Clip]:
    data = folder / "data" if (folder / "data").is_dir() else folder
    splits = {
        part: data / "splits" / "split-0" / f"autotagging-{part}.tsv"
        for part in ("train", "validation", "test")
    }
    if any(path.is_file() for path in splits.values()):
        for part, path in splits.items():
            yield from _read_jamendo_table(path, part)
    else:
        yield from _read_jamendo_table(data / "autotagging.tsv", "all")


def _read_jamendo_table(path: Path, part: str) -> Iterator[Clip]:
    lines = csv_lines(path, delimiter="\t", quoting=csv.QUOTE_NONE)
    if next(lines, (0, []))[1] != _JAMENDO_COLUMNS:
        raise ValueError(f"{path}: expected the columns {', '.join(_JAMENDO_COLUMNS)} in its first line")
    for number, row in lines:
        try:
            track, place, seconds, tags = row[0], Path(row[3]), float(row[4]), row[5:]
        except (IndexError, ValueError):
            raise ValueError(
                f"{path}, line {number} is {row}: expected {', '.join(_JAMENDO_COLUMNS)}"
            ) from None
        # 14/214.mp3 is 14/214.low.mp3 in the smaller download.
        yield Clip(track, (place.stem, f"{place.stem}.low"), tuple(tags), part, seconds)


LAYOUTS: dict[str, Layout] = {
    "audioset": Layout(
        _read_audioset,
        "DIR/balanced_train_segments.csv, unbalanced_train_segments.csv, eval_segments.csv and the clips "
        "anywhere below DIR, named YTID_<start in ms>.wav, YTID.wav, YYTID.wav, YTID_30.000_40.000.wav, ...",
        tuple(AUDIOSET_PARTS),
    ),
    "vggsound": Layout(
        _read_vggsound, "DIR/vggsound.csv and the audio below DIR, named YTID_000030.wav", ("train", "test")
    ),
    "freesound": Layout(
        _read_freesound,
        "DIR/FSD50K.ground_truth/dev.csv and eval.csv, with DIR/FSD50K.dev_audio and DIR/FSD50K.eval_audio",
        ("train", "val", "eval"),
    ),
    "music4all": Layout(_read_music4all, "DIR/id_genres.csv and DIR/audios/ID.mp3", ("all",)),
    "mtg_jamendo": Layout(
        _read_mtg_jamendo,
        "DIR/data/splits/split-0/autotagging-train.tsv, ... (or DIR/data/autotagging.tsv) and the tracks "
        "below DIR, as 14/214.mp3 or 14/214.low.mp3",
        ("train", "validation", "test", "all"),
    ),
}


def _split(text: str, separator: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(label.strip() for label in text.split(separator) if label.strip()))
