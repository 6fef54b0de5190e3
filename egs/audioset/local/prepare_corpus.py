#!/usr/bin/env python3
"""Stage 0: data/corpus/AudioSet and data/corpus/musan, synthesised (--mini true) or linked to real ones.

AudioSet: https://research.google.com/audioset/download.html has the tables; everybody downloads the clips.
MUSAN (optional): https://www.openslr.org/17.
"""

import argparse
import logging
import shlex
from pathlib import Path

from spear_lib.bin.common import run
from spear_lib.data.clip_tables import AUDIOSET_PARTS, LAYOUTS
from spear_lib.data.corpus_folders import link, synthesise
from spear_lib.data.musan import find_musan

logger = logging.getLogger("prepare_corpus")

SOUNDS, NOISE = "AudioSet", "musan"

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


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--mini", choices=("true", "false"), default="false", help="synthesise a small corpus"
    )
    parser.add_argument("--corpus-dir", default="", help="real AudioSet folder (tables and clips)")
    parser.add_argument("--noise-dir", default="", help="real MUSAN folder (holds music, noise, speech)")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of the synthesis")
    parser.add_argument("--num-jobs", type=int, default=2, help="processes of the synthesis")
    parser.add_argument("--size", choices=list(SIZES), default="default", help="of the synthesised corpus")
    return parser.parse_args(argv)


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
    arguments = parse_arguments(argv)
    output, mini = arguments.output, arguments.mini == "true"
    if mini and arguments.corpus_dir:
        raise ValueError(
            "--mini true synthesises the corpus, --corpus-dir names a real one: give one of them"
        )
    common = ["--seed", str(arguments.seed), "--num-processes", str(arguments.num_jobs)]
    size = SIZES[arguments.size]
    if mini:
        synthesise("events", output / "synthetic_sounds", [*common, *size["events"]])
        link(output / SOUNDS, output / "synthetic_sounds" / SOUNDS)
    else:
        link(output / SOUNDS, find_audioset(arguments.corpus_dir))
    if arguments.noise_dir:
        link(output / NOISE, find_musan(arguments.noise_dir))
    elif mini:
        synthesise("noise", output / "synthetic_noise", [*common, *size["noise"]])
        link(output / NOISE, output / "synthetic_noise" / NOISE)
    else:
        logger.info("no --noise-dir: the recipe will run without noise augmentation")
    logger.info("corpus: %s is %s", output / SOUNDS, (output / SOUNDS).resolve())


if __name__ == "__main__":
    run(main)
