#!/usr/bin/env python3
"""Stage 0: data/corpus/LibriSpeech and data/corpus/musan, synthesised (--mini true) or linked to real ones.

LibriSpeech: https://www.openslr.org/12, MUSAN (optional): https://www.openslr.org/17.
"""

import shlex
from pathlib import Path

from spear_lib.bin.common import run
from spear_lib.corpora.corpus_folders import prepare_corpus, stage_0_parser

SPEECH = "LibriSpeech"

# What tools/synthesize_corpus.py is asked for; "tiny" is for tests.
SIZES = {
    "default": {"speech": [], "noise": []},
    "tiny": {
        "speech": shlex.split(
            "--train-minutes 4 --labelled-minutes 2 --num-train-voices 6 --labelled-speakers 2 "
            "--dev-minutes 0.6 --test-minutes 0.6 --num-test-voices 2"
        ),
        "noise": ["--minutes", "1"],
    },
}


def find_librispeech(corpus_dir: str) -> Path:
    """The folder with the parts of LibriSpeech; ValueError with the expected layout if it is none."""
    expected = (
        "expected DIR/train-clean-100/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac with "
        "<speaker>-<chapter>.trans.txt beside it, and DIR/dev-clean, DIR/test-clean, ... likewise"
    )
    if not corpus_dir:
        raise ValueError(
            "no corpus: give --mini true to synthesise a small one, or --corpus-dir DIR for a real one "
            "(download train-clean-100, dev-clean, test-clean and test-other from openslr.org/12, or "
            "run `lhotse download librispeech --full DIR`)"
        )
    folder = Path(corpus_dir)
    if not folder.is_dir():
        raise ValueError(f"--corpus-dir {folder} is not a folder: {expected}")
    if (folder / SPEECH).is_dir():
        folder = folder / SPEECH
    for pattern in ("train-*", "dev-*"):
        parts = [path for path in folder.glob(pattern) if path.is_dir()]
        if not parts:
            raise ValueError(f"{folder} has no part {pattern}: {expected}")
        for part in parts:
            if next(part.glob("*/*/*.trans.txt"), None) is None:
                raise ValueError(f"{part} holds no transcripts: {expected}")
    return folder


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = stage_0_parser(__doc__, "real LibriSpeech folder (holds train-clean-100 etc.)", SIZES)
    parser.add_argument("--vocabulary", choices=("small", "large"), default="small", help="of the synthesis")
    arguments = parser.parse_args(argv)
    size = SIZES[arguments.size]
    options = [*size["speech"], "--vocabulary", arguments.vocabulary]
    prepare_corpus(arguments, SPEECH, "speech", "synthetic_speech", options, size["noise"], find_librispeech)


if __name__ == "__main__":
    run(main)
