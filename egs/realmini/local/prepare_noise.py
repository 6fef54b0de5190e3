#!/usr/bin/env python3
"""Stage 2 with --noise-dir: cuts of at most 10 s of all recordings in a folder of noises."""

import argparse
from pathlib import Path

from spear_lib.bin.common import run
from spear_lib.corpora.musan import prepare_noise_folder


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--noise-dir", type=Path, required=True, help="noise_rir, or any folder of noises")
    parser.add_argument("--output", type=Path, required=True, help="manifest to write, *.jsonl.gz")
    arguments = parser.parse_args(argv)
    prepare_noise_folder(arguments.noise_dir, arguments.output)


if __name__ == "__main__":
    run(main)
