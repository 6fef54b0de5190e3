#!/usr/bin/env python3
"""Stage 13: tables of what the frozen encoder is asked, for evaluate_linear.

esc10          class of a clip, the official 5 folds
an4-speakers   which of the 18 speakers of AN4's dev and test sets, none of whom is in training; 5 folds
timit-speakers which of the 16 speakers, 5 folds; no audio of TIMIT is in training
timit-phones   phone of a frame, 39 classes (Lee and Hon 1989); dialects 1 to 5 train, 6 valid, 7 and 8 test
ami-overlap    do two or more speak in a frame; AMI's own excerpts: train, dev and test

A corpus that is not there is named, and its task is left out.
"""

import argparse
import csv
import io
import logging
from collections.abc import Callable
from pathlib import Path

from recordings import AN4_DEV_UTTERANCES, rows_of

from spear_lib.bin.common import run
from spear_lib.runtime.files import atomic_file

logger = logging.getLogger("evaluation_tables")

FOLDS = 5
RATE = 16000
OVERLAP, OTHER = "overlap", "other"
# Lee and Hon's classes: what is not named is its own class; q is left out.
FOLDED = {
    "aa": "ao",
    "ah": "ax ax-h",
    "er": "axr",
    "hh": "hv",
    "ih": "ix",
    "l": "el",
    "m": "em",
    "n": "en nx",
    "ng": "eng",
    "sh": "zh",
    "uw": "ux",
    "sil": "pcl tcl kcl bcl dcl gcl h# pau epi",
}
CLASS_OF = {phone: name for name, phones in FOLDED.items() for phone in phones.split()}

Rows = list[dict[str, object]]


def esc10(corpora: Path) -> Rows:
    folder = corpora / "esc10"
    rows = rows_of(folder, "clips.tsv", "fold label path")
    return [{"path": folder / row["path"], "label": row["label"], "part": row["fold"]} for row in rows]


def speakers(folder: Path, rows: list[dict[str, str]]) -> Rows:
    """The utterances of each speaker go through the folds in turn."""
    counts: dict[str, int] = {}
    found = []
    for row in sorted(rows, key=lambda row: row["utt"]):
        number = counts[row["speaker"]] = counts.get(row["speaker"], -1) + 1
        part = f"fold{number % FOLDS}"
        found.append({"path": folder / row["path"], "label": row["speaker"], "part": part})
    return found


def an4_speakers(corpora: Path) -> Rows:
    rows = rows_of(corpora / "an4", "utterances.tsv", "utt split speaker path")
    train = sorted(
        (row for row in rows if row["split"] == "train"), key=lambda row: (row["speaker"], row["utt"])
    )
    held_out = train[:AN4_DEV_UTTERANCES] + [row for row in rows if row["split"] == "test"]
    return speakers(corpora / "an4", held_out)


def timit_speakers(corpora: Path) -> Rows:
    folder = corpora / "timit_nltk"
    return speakers(folder, rows_of(folder, "utterances.tsv", "utt speaker path"))


def timit_phones(corpora: Path) -> Rows:
    folder = corpora / "timit_nltk"
    utterances = {row["utt"]: row for row in rows_of(folder, "utterances.tsv", "utt dialect path")}
    parts = {**dict.fromkeys(("dr1", "dr2", "dr3", "dr4", "dr5"), "train"), "dr6": "valid"}
    return [
        {
            "path": folder / utterances[row["utt"]]["path"],
            "label": CLASS_OF.get(row["phone"], row["phone"]),
            "part": parts.get(utterances[row["utt"]]["dialect"], "test"),
            "start": int(row["start_sample"]) / RATE,
            "end": int(row["end_sample"]) / RATE,
        }
        for row in rows_of(folder, "phones.tsv", "utt start_sample end_sample phone")
        if row["phone"] != "q"
    ]


def stretches(turns: list[tuple[float, float]], seconds: float) -> list[tuple[float, float, str]]:
    """The whole recording in stretches with two or more speakers, and with fewer."""
    changes = [(0.0, 0), (seconds, 0)]
    for start, end in turns:
        changes += [(min(start, seconds), 1), (min(end, seconds), -1)]
    found, active, before = [], 0, 0.0
    for time, change in sorted(changes):
        if time > before:
            found.append((before, time, OVERLAP if active > 1 else OTHER))
        active, before = active + change, time
    return found


def ami_overlap(corpora: Path) -> Rows:
    folder = corpora / "ami_diarization_mini"
    recordings = rows_of(folder, "recordings.tsv", "recording split path seconds")
    turns: dict[str, list[tuple[float, float]]] = {}
    for row in rows_of(folder, "segments.tsv", "recording start duration"):
        start = float(row["start"])
        turns.setdefault(row["recording"], []).append((start, start + float(row["duration"])))
    names = {"train": "train", "dev": "valid", "test": "test"}
    return [
        {
            "path": folder / row["path"],
            "label": label,
            "part": names[row["split"]],
            "start": start,
            "end": end,
        }
        for row in recordings
        for start, end, label in stretches(turns.get(row["recording"], []), float(row["seconds"]))
    ]


TASKS: dict[str, tuple[str, Callable[[Path], Rows]]] = {
    "esc10": ("esc10", esc10),
    "an4-speakers": ("an4", an4_speakers),
    "timit-speakers": ("timit_nltk", timit_speakers),
    "timit-phones": ("timit_nltk", timit_phones),
    "ami-overlap": ("ami_diarization_mini", ami_overlap),
}
"""Task -> folder of its corpus, and what makes its table."""


def limited(rows: Rows, count: int) -> Rows:
    """The rows of the first ``count`` recordings of each part, of clips of each part and label."""
    if not count:
        return rows
    kept: dict[tuple, dict[object, None]] = {}
    for row in rows:
        group = (row["part"],) if "start" in row else (row["part"], row["label"])
        own = kept.setdefault(group, {})
        if len(own) < count:
            own[row["path"]] = None
    names = {path for own in kept.values() for path in own}
    return [row for row in rows if row["path"] in names]


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--corpus-dir", type=Path, nargs="+", required=True, help="folders of the corpora")
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="which")
    parser.add_argument(
        "--max-recordings", type=int, default=0, help="of each part, and of clips of each label (0: all)"
    )
    arguments = parser.parse_args(argv)
    for task in arguments.tasks:
        name, make = TASKS[task]
        corpora = next((folder for folder in arguments.corpus_dir if (folder / name).is_dir()), None)
        target = arguments.output / f"{task}.tsv"
        if corpora is None:
            target.unlink(missing_ok=True)
            where = " or ".join(map(str, arguments.corpus_dir))
            logger.warning("no folder %s in %s: %s is not measured", name, where, task)
            continue
        rows = limited(make(corpora.resolve()), arguments.max_recordings)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with atomic_file(target) as file:
            file.write(text.getvalue().encode())


if __name__ == "__main__":
    run(main)
