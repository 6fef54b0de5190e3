#!/usr/bin/env python3
"""Stage 1: lhotse cuts of every set of strings.csv, validated; labelled is the marked part of train.

Of several channels the mean is read, everywhere (docs/troubleshooting.md); utterances without any sound are
left out and counted.
"""

import argparse
import json
import logging
from pathlib import Path

from lhotse import Recording, SupervisionSegment
from lhotse.cut import Cut

from spear_lib.bin.common import run
from spear_lib.corpora.validation import validate_cuts
from spear_lib.data.audio import cut_of
from spear_lib.data.manifests import atomic_file, save_cuts
from spear_lib.runtime.tables import read_table

logger = logging.getLogger("prepare_manifests")

CORPUS = "digits"
COLUMNS = ("set", "file", "speaker", "labelled", "text")  # of strings.csv, read here


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--corpus-dir", type=Path, required=True, help="folder that holds digits (stage 0)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the manifests")
    parser.add_argument("--num-jobs", type=int, default=2, help="files read at the same time")
    return parser.parse_args(argv)


def read_cut(folder: Path, row: dict[str, str]) -> Cut:
    """The cut of one line of strings.csv."""
    recording = Recording.from_file(folder / row["file"])
    segment = SupervisionSegment(
        id=recording.id,
        recording_id=recording.id,
        start=0.0,
        duration=recording.duration,
        text=row["text"],
        speaker=row["speaker"],
    )
    return cut_of(recording, supervision=segment)


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = parse_arguments(argv)
    folder = arguments.corpus_dir / "digits"
    if not (folder / "strings.csv").is_file():
        raise ValueError(f"{folder / 'strings.csv'} does not exist: run stage 0 first")
    rows = [row for _, row in read_table(folder / "strings.csv", COLUMNS)]
    sets = {name: [row for row in rows if row["set"] == name] for name in {row["set"]: None for row in rows}}
    sets["labelled"] = [row for row in sets["train"] if row["labelled"] == "true"]
    statistics = {}
    for name, members in sets.items():
        cuts, problems = validate_cuts(
            [read_cut(folder, row) for row in members], num_jobs=arguments.num_jobs
        )
        problems.log()
        save_cuts(cuts, arguments.output / f"{CORPUS}_cuts_{name}.jsonl.gz")
        seconds = sum(cut.duration for cut in cuts)
        statistics[name] = {
            "cuts": len(cuts),
            "hours": round(seconds / 3600, 4),
            "speakers": len({row["speaker"] for row in members}),
            "words": sum(len(row["text"].split()) for row in members),
        }
        logger.info("%-14s %5d cuts %6.1f minutes", name, len(cuts), seconds / 60)
    with atomic_file(arguments.output / f"{CORPUS}_statistics.json") as file:
        file.write((json.dumps(statistics, indent=1) + "\n").encode())


if __name__ == "__main__":
    run(main)
