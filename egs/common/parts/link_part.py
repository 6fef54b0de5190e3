#!/usr/bin/env python3
"""Stage 0 without --mini: data/<part> is the finished data folder of another recipe; of a part without a
recipe (-), data/<part>/corpus is the corpus itself."""

import argparse
from pathlib import Path

from spear_lib.bin.common import run
from spear_lib.corpora.corpus_folders import link

NEEDED = {1: "manifests", 2: "noise"}


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--folder", required=True, help="data folder of the other recipe; empty: an error")
    parser.add_argument("--part", required=True, help="name of the part")
    parser.add_argument("--recipe", required=True, help="name of the other recipe")
    parser.add_argument("--output", type=Path, required=True, help="link to make")
    arguments = parser.parse_args(argv)
    option, script = f"--{arguments.part}-data", f"../{arguments.recipe}/prepare.sh"
    published = arguments.recipe == "-"
    if not arguments.folder and published:
        raise ValueError(
            f"no {arguments.part} corpus: give {option} DIR, the folder of the corpus as published"
        )
    if not arguments.folder:
        raise ValueError(
            f"no {arguments.part} corpus: give {option} DIR, a data folder that {script} filled, or "
            "--mini true to synthesise all parts"
        )
    folder = Path(arguments.folder)
    if published:
        if not folder.is_dir():
            raise ValueError(f"{option} {folder} is not a folder: expected the corpus as published")
        link(arguments.output / "corpus", folder)
        return
    if not folder.is_dir():
        raise ValueError(
            f"{option} {folder} is not a folder: expected a data folder that {script} filled (stages 0 to 2 "
            "at least)"
        )
    for number, name in NEEDED.items():
        marker = folder / ".done" / f"stage-{number}.json"
        if not marker.is_file():
            raise ValueError(
                f"{option} {folder} has no finished stage {number} ({name}; no {marker}): run first "
                f"{script} --stop-stage {number} (with that --data-dir)"
            )
    link(arguments.output, folder)


if __name__ == "__main__":
    run(main)
