#!/usr/bin/env python3
"""Stage 2: cuts of at most 10 s of MUSAN's noise, music and speech, to be mixed into the training audio."""

import argparse
from pathlib import Path

from spear_lib.bin.common import run
from spear_lib.data.musan import prepare_noise


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--corpus-dir", type=Path, required=True, help="folder that holds musan (stage 0)")
    parser.add_argument("--output", type=Path, required=True, help="manifest to write, *.jsonl.gz")
    parser.add_argument(
        "--max-bad-fraction", type=float, default=0.01, help="of the recordings, to be skipped"
    )
    arguments = parser.parse_args()
    prepare_noise(arguments.corpus_dir / "musan", arguments.output, arguments.max_bad_fraction)


if __name__ == "__main__":
    run(main)
