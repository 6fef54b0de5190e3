"""Stage 1: cuts of every set named in texts.csv, and labelled: those of the speaker "labelled"."""

import argparse
import csv
from pathlib import Path

from lhotse import Recording, SupervisionSegment
from lhotse.cut import MonoCut

from spear_lib.bin.common import run
from spear_lib.corpora.validation import validate_cuts
from spear_lib.data.manifests import save_cuts


def read_cut(folder: Path, row: dict[str, str]) -> MonoCut:
    recording = Recording.from_file(folder / row["file"])
    segment = SupervisionSegment(
        id=recording.id,
        recording_id=recording.id,
        start=0.0,
        duration=recording.duration,
        text=row["text"],
        speaker=row["speaker"],
    )
    return MonoCut(
        id=recording.id,
        start=0.0,
        duration=recording.duration,
        channel=0,
        recording=recording,
        supervisions=[segment],
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--num-jobs", default="")
    options = parser.parse_args(argv)
    folder = options.corpus_dir / "flat"
    with (folder / "texts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sets = {name: [row for row in rows if row["set"] == name] for name in ("train", "dev", "exam")}
    sets["labelled"] = [row for row in sets["train"] if row["speaker"] == "labelled"]
    for name, members in sets.items():
        cuts, _ = validate_cuts([read_cut(folder, row) for row in members])
        save_cuts(cuts, options.output / f"flat_cuts_{name}.jsonl.gz")


if __name__ == "__main__":
    run(main)
