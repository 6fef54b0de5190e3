#!/usr/bin/env python3
"""Stage 0: the utterances of CMU AN4 in one table, data/corpus/an4/utterances.tsv, and readable audio.

--corpus-dir takes what the corpus's archives unpack to, or a folder above it:

* the official layout: an4_clstk and an4test_clstk (perhaps below wav/) with SPEAKER/UTTERANCE.raw (16 kHz,
  16 bit, big-endian) or .sph, and etc/an4_train.transcription, etc/an4_test.transcription;
* a folder with utterances.tsv (columns utt, split, speaker, path, text) and the audio it names.

Files without a header (.raw) are rewritten as FLAC, sample by sample; the others stay where they are.
"""

import argparse
import csv
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from spear_lib.bin.common import run
from spear_lib.runtime.files import atomic_file
from spear_lib.runtime.tables import read_table as table_rows

logger = logging.getLogger("prepare_corpus")

SPLITS = {"train": "an4_clstk", "test": "an4test_clstk"}
RAW_RATE = 16000
EXPECTED = (
    "expected an4_clstk/SPEAKER/*.raw (or .sph), an4test_clstk/SPEAKER/* and etc/an4_train.transcription, "
    "etc/an4_test.transcription in it or below it, or utterances.tsv with the audio it names"
)


class Utterance(NamedTuple):
    """A line of the table."""

    utt: str
    split: str
    speaker: str
    path: Path
    text: str


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--mini", choices=("true", "false"), default="false", help="refused: real recordings")
    parser.add_argument("--corpus-dir", default="", help="folder of AN4, or one above it")
    parser.add_argument("--noise-dir", default="", help="refused: this recipe mixes no noise")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="not needed, nothing is drawn")
    parser.add_argument("--num-jobs", type=int, default=1, help="not needed, this takes seconds")
    parser.add_argument("--max-speakers", type=int, default=0, help="of each split, for tests (0: all)")
    return parser.parse_args(argv)


def find_below(folder: Path, name: str) -> Path | None:
    """The file or folder ``name`` in ``folder`` or up to three folders below it; the first by name."""
    for pattern in (name, f"*/{name}", f"*/*/{name}", f"*/*/*/{name}"):
        found = sorted(folder.glob(pattern))
        if found:
            return found[0]
    return None


def read_table(path: Path) -> Iterator[Utterance]:
    """The utterances of utterances.tsv; ValueError with the line for one that cannot be used."""
    columns = ("utt", "split", "speaker", "path", "text")
    for number, row in table_rows(path, columns, quoting=csv.QUOTE_NONE):
        if row["split"] not in SPLITS or not row["text"] or not row["path"]:
            raise ValueError(f"{path}, line {number}: expected split train or test, a path and a text")
        source = path.parent / row["path"]
        yield Utterance(row["utt"], row["split"], row["speaker"], source, row["text"])


def read_official(wav: Path, transcription: Path, split: str) -> Iterator[Utterance]:
    """The utterances of one split: lines as ``<s> YES </s> (an251-fash-b)``."""
    files = {
        path.stem: path
        for path in sorted(wav.glob("*/*"))
        if path.suffix in (".raw", ".sph", ".flac", ".wav")
    }
    for number, line in enumerate(transcription.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        parts = re.fullmatch(r"\s*(?:<s>)?\s*(.*?)\s*(?:</s>)?\s*\(([\w.-]+)\)\s*", line)
        if parts is None or not parts[1]:
            raise ValueError(
                f"{transcription}, line {number} is {line!r}: expected '<s> TEXT </s> (UTTERANCE)'"
            )
        path = files.get(parts[2])
        if path is None:
            raise ValueError(f"{transcription}, line {number}: no audio of {parts[2]} below {wav}")
        yield Utterance(parts[2], split, path.parent.name, path, parts[1].upper())


def find_utterances(corpus_dir: str) -> list[Utterance]:
    """All utterances, train before test; ValueError with the layout that is expected."""
    if not corpus_dir:
        raise ValueError(
            "no corpus: give --corpus-dir DIR, CMU AN4 (http://www.speech.cs.cmu.edu/databases/an4) unpacked"
        )
    folder = Path(corpus_dir)
    if not folder.is_dir():
        raise ValueError(f"--corpus-dir {folder} is not a folder: {EXPECTED}")
    places = {split: find_below(folder, name) for split, name in SPLITS.items()}
    texts = {split: find_below(folder, f"etc/an4_{split}.transcription") for split in SPLITS}
    if all(places.values()) and all(texts.values()):
        return [each for split in SPLITS for each in read_official(places[split], texts[split], split)]
    for table in (folder / "utterances.tsv", folder / "an4" / "utterances.tsv"):
        if table.is_file():
            return sorted(read_table(table), key=lambda each: each.split == "test")
    lacking = [f"etc/an4_{split}.transcription" for split, path in texts.items() if path is None]
    lacking += [SPLITS[split] for split, path in places.items() if path is None]
    raise ValueError(f"--corpus-dir {folder} has no {', '.join(lacking)}: {EXPECTED}")


def readable(utterance: Utterance, output: Path) -> Path:
    """A file that says its rate: the utterance's own, or for .raw the same samples as FLAC."""
    if utterance.path.suffix != ".raw":
        return utterance.path.resolve()
    data = utterance.path.read_bytes()
    if not data or len(data) % 2:
        raise ValueError(
            f"{utterance.path} has {len(data)} bytes, no whole number of 16-bit samples: copy it again"
        )
    target = output / utterance.split / utterance.speaker / f"{utterance.utt}.flac"
    target.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(target, np.frombuffer(data, dtype=">i2").astype(np.int16), RAW_RATE, subtype="PCM_16")
    return target.relative_to(output)


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = parse_arguments(argv)
    if arguments.mini == "true":
        raise ValueError("--mini true: these are real recordings, give --corpus-dir DIR --conf mini instead")
    if arguments.noise_dir:
        raise ValueError("--noise-dir: this recipe mixes no noise, leave it out")
    utterances = find_utterances(arguments.corpus_dir)
    if arguments.max_speakers:
        kept = {
            split: sorted({each.speaker for each in utterances if each.split == split})[
                : arguments.max_speakers
            ]
            for split in SPLITS
        }
        utterances = [each for each in utterances if each.speaker in kept[each.split]]
    output = arguments.output / "an4"
    table = io.StringIO(newline="")
    writer = csv.writer(table, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE)
    writer.writerow(Utterance._fields)
    for each in utterances:
        writer.writerow(each._replace(path=readable(each, output)))
    with atomic_file(output / "utterances.tsv") as file:
        file.write(table.getvalue().encode())
    for split in SPLITS:
        members = [each for each in utterances if each.split == split]
        logger.info(
            "%-6s %4d utterances, %d speakers", split, len(members), len({each.speaker for each in members})
        )


if __name__ == "__main__":
    run(main)
