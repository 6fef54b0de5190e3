#!/usr/bin/env python3
"""Stage 0: data/corpus/LibriSpeech and data/corpus/musan, synthesised (--mini true) or linked to real ones.

LibriSpeech: https://www.openslr.org/12, MUSAN (optional): https://www.openslr.org/17.
"""

import argparse
import logging
import shlex
from pathlib import Path

from spear_lib.bin.common import run
from spear_lib.data.corpus_folders import link, synthesise
from spear_lib.data.musan import find_musan

logger = logging.getLogger("prepare_corpus")

SPEECH, NOISE = "LibriSpeech", "musan"

# What tools/synthesize_corpus.py is asked for; "tiny" is for tests.
SIZES = {
    "default": {"speech": [], "noise": []},
    "tiny": {
        "speech": shlex.split(
            "--train-minutes 4 --labelled-minutes 2 --num-train-voices 6 --labelled-speakers 2 "
            "--dev-minutes 0.4 --test-minutes 0.4 --num-test-voices 2"
        ),
        "noise": ["--minutes", "1"],
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
    parser.add_argument(
        "--corpus-dir", default="", help="real LibriSpeech folder (holds train-clean-100 etc.)"
    )
    parser.add_argument("--noise-dir", default="", help="real MUSAN folder (holds music, noise, speech)")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of the synthesis")
    parser.add_argument("--num-jobs", type=int, default=2, help="processes of the synthesis")
    parser.add_argument("--size", choices=list(SIZES), default="default", help="of the synthesised corpus")
    parser.add_argument("--vocabulary", choices=("small", "large"), default="small", help="of the synthesis")
    return parser.parse_args(argv)


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


def main() -> None:
    """Entry point."""
    arguments = parse_arguments()
    output, mini = arguments.output, arguments.mini == "true"
    if mini and arguments.corpus_dir:
        raise ValueError(
            "--mini true synthesises the corpus, --corpus-dir names a real one: give one of them"
        )
    common = ["--seed", str(arguments.seed), "--num-processes", str(arguments.num_jobs)]
    size = SIZES[arguments.size]
    if mini:
        options = [*common, *size["speech"], "--vocabulary", arguments.vocabulary]
        synthesise("speech", output / "synthetic_speech", options)
        link(output / SPEECH, output / "synthetic_speech" / SPEECH)
    else:
        link(output / SPEECH, find_librispeech(arguments.corpus_dir))
    if arguments.noise_dir:
        link(output / NOISE, find_musan(arguments.noise_dir))
    elif mini:
        synthesise("noise", output / "synthetic_noise", [*common, *size["noise"]])
        link(output / NOISE, output / "synthetic_noise" / NOISE)
    else:
        logger.info("no --noise-dir: the recipe will run without noise augmentation")
    logger.info("corpus: %s is %s", output / SPEECH, (output / SPEECH).resolve())


if __name__ == "__main__":
    run(main)
