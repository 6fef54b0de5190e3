"""Cuts of CMU AN4 (its own division: 74 speakers to train, 10 others to test), for runs on real recordings.

    python tools/studies/an4_cuts.py --corpus-dir CORPORA/an4 --output DATA/manifests

CORPORA/an4 holds ``utterances.tsv`` (utt, split, speaker, sex, kind, path, seconds, text) and the FLAC files.
"""

import argparse
import csv
from pathlib import Path

from lhotse import MonoCut, Recording, SupervisionSegment

from spear_lib.data.manifests import save_cuts

MIN_SECONDS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus-dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    table = arguments.corpus_dir / "utterances.tsv"
    if not table.is_file():
        raise SystemExit(f"error: there is no {table}: give the folder of AN4 as --corpus-dir")
    sets: dict[str, list[MonoCut]] = {}
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            recording = Recording.from_file(arguments.corpus_dir / row["path"], recording_id=row["utt"])
            if recording.duration < MIN_SECONDS:
                continue
            supervision = SupervisionSegment(
                row["utt"], row["utt"], 0.0, recording.duration, speaker=row["speaker"], text=row["text"]
            )
            cut = MonoCut(row["utt"], 0.0, recording.duration, 0, [supervision], recording=recording)
            sets.setdefault(row["split"], []).append(cut)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, cuts in sorted(sets.items()):
        path = arguments.output / f"an4_cuts_{name}.jsonl.gz"
        save_cuts(cuts, path)
        print(f"{path}: {len(cuts)} cuts, {sum(cut.duration for cut in cuts) / 60:.1f} min")


if __name__ == "__main__":
    main()
