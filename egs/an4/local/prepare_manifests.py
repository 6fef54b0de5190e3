#!/usr/bin/env python3
"""Stage 1: lhotse cuts of every set, validated.

test      AN4's own test set: other speakers
dev       ESPnet's development set: the first 100 training utterances, sorted by speaker and then by name.
          They are all the utterances of eight speakers, so nobody is in dev and in labelled
labelled  the other training utterances: what fine-tuning reads
train     all training utterances, for pre-training, which reads no transcript, and with --more any other
          speech
"""

import argparse
import csv
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from lhotse import Recording, SupervisionSegment
from lhotse.cut import Cut

from spear_lib.bin.common import run
from spear_lib.corpora.validation import validate_cuts
from spear_lib.data.manifests import save_cuts
from spear_lib.runtime.files import atomic_file
from spear_lib.runtime.tables import read_table

logger = logging.getLogger("prepare_manifests")

CORPUS = "an4"
DEV_UTTERANCES = 100
AUDIO = (".wav", ".flac", ".sph", ".ogg", ".mp3")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--corpus-dir", type=Path, required=True, help="folder that holds an4 (stage 0)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the manifests")
    parser.add_argument("--num-jobs", type=int, default=2, help="files read at the same time")
    parser.add_argument(
        "--more", type=Path, action="append", default=[], metavar="DIR", help="audio below it joins train"
    )
    return parser.parse_args(argv)


def read_cut(folder: Path, row: dict[str, str]) -> Cut:
    """The cut of one line of utterances.tsv."""
    recording = Recording.from_file(folder / row["path"], recording_id=row["utt"])
    cut = recording.to_cut()
    cut.id = row["utt"]
    cut.supervisions = [
        SupervisionSegment(
            id=row["utt"],
            recording_id=row["utt"],
            start=0.0,
            duration=recording.duration,
            text=row["text"],
            speaker=row["speaker"],
        )
    ]
    return cut


def more_cuts(folder: Path) -> Iterator[Cut]:
    """Cuts of at most 20 s of all audio below a folder; ids name the folder, too."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO)
    if not files:
        raise ValueError(f"--more {folder} holds no audio ({', '.join(AUDIO)})")
    for path in files:
        name = f"{folder.name}-{path.relative_to(folder).with_suffix('')}".replace("/", "-")
        cut = Recording.from_file(path, recording_id=name).to_cut()
        windows = list(cut.cut_into_windows(20.0)) if cut.duration > 20.0 else [cut]
        for number, window in enumerate(windows):
            window.id = f"{name}-{number}"
            if window.duration >= 0.5:
                yield window


def sets_of(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Set name -> its lines of the table."""
    train = sorted(
        (row for row in rows if row["split"] == "train"), key=lambda row: (row["speaker"], row["utt"])
    )
    if len(train) <= DEV_UTTERANCES:
        raise ValueError(f"{len(train)} training utterances: more than {DEV_UTTERANCES} are needed for dev")
    return {
        "train": train,
        "labelled": train[DEV_UTTERANCES:],
        "dev": train[:DEV_UTTERANCES],
        "test": [row for row in rows if row["split"] == "test"],
    }


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = parse_arguments(argv)
    folder = arguments.corpus_dir / CORPUS
    table = folder / "utterances.tsv"
    if not table.is_file():
        raise ValueError(f"{table} does not exist: run stage 0 first")
    rows = [
        row
        for _, row in read_table(table, ("utt", "split", "speaker", "path", "text"), quoting=csv.QUOTE_NONE)
    ]
    statistics = {}
    for name, members in sets_of(rows).items():
        cuts, problems = validate_cuts(
            [read_cut(folder, row) for row in members], num_jobs=arguments.num_jobs
        )
        if name == "train":
            for more in arguments.more:
                added, problems = validate_cuts(
                    list(more_cuts(more)), problems, need_text=False, num_jobs=arguments.num_jobs
                )
                cuts = [*cuts, *added]
        problems.log()
        save_cuts(cuts, arguments.output / f"{CORPUS}_cuts_{name}.jsonl.gz")
        seconds = sum(cut.duration for cut in cuts)
        statistics[name] = {
            "cuts": len(cuts),
            "hours": round(seconds / 3600, 4),
            "speakers": len({row["speaker"] for row in members}),
            "words": sum(len(row["text"].split()) for row in members),
        }
        logger.info("%-10s %5d cuts %6.1f minutes", name, len(cuts), seconds / 60)
    with atomic_file(arguments.output / f"{CORPUS}_statistics.json") as file:
        file.write((json.dumps(statistics, indent=1) + "\n").encode())


if __name__ == "__main__":
    run(main)
