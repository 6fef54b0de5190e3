#!/usr/bin/env python3
"""Stage 0: data/corpus/AudioSet and data/corpus/musan, synthesised (--mini true) or linked to real ones.

AudioSet: https://research.google.com/audioset/download.html has the tables; everybody downloads the clips.
MUSAN (optional): https://www.openslr.org/17.
"""

import shlex
from pathlib import Path

from spear_lib.bin.common import run
from spear_lib.corpora.clip_tables import AUDIOSET_PARTS, LAYOUTS
from spear_lib.corpora.corpus_folders import prepare_corpus, stage_0_parser

SOUNDS = "AudioSet"

# What tools/synthesize_corpus.py is asked for; "tiny" is for tests.
SIZES = {
    "default": {"events": [], "noise": []},
    "tiny": {
        "events": shlex.split(
            "--balanced-minutes 2.5 --unbalanced-minutes 3.5 --eval-minutes 0.7 --num-classes 20 "
            "--missing-share 0.05"
        ),
        "noise": ["--minutes", "0.5"],
    },
}


def find_audioset(corpus_dir: str) -> Path:
    """The folder with AudioSet's tables; ValueError with the expected layout if it is none."""
    expected = f"expected {LAYOUTS['audioset'].expected}"
    if not corpus_dir:
        raise ValueError(
            "no corpus: give --mini true to synthesise a small one, or --corpus-dir DIR for a real one (the "
            f"tables are at research.google.com/audioset, the clips are your own download; {expected})"
        )
    folder = Path(corpus_dir)
    if not folder.is_dir():
        raise ValueError(f"--corpus-dir {folder} is not a folder: {expected}")
    if (folder / SOUNDS).is_dir():
        folder = folder / SOUNDS
    for part in ("balanced_train", "eval"):
        if not (folder / AUDIOSET_PARTS[part]).is_file():
            raise ValueError(f"{folder} has no {AUDIOSET_PARTS[part]}: {expected}")
    return folder


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = stage_0_parser(__doc__, "real AudioSet folder (tables and clips)", SIZES)
    arguments = parser.parse_args(argv)
    size = SIZES[arguments.size]
    prepare_corpus(
        arguments, SOUNDS, "events", "synthetic_sounds", size["events"], size["noise"], find_audioset
    )


if __name__ == "__main__":
    run(main)
