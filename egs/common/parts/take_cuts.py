#!/usr/bin/env python3
"""Stages 1 and 2: cuts of another recipe, with paths that hold here.

A recipe may name its audio relative to its own folder. Here that is made absolute: the file is looked for
below every folder above the manifest.
"""

import argparse
from pathlib import Path

from spear_lib.bin.common import run
from spear_lib.data.manifests import Manifest, save_cuts


def folder_of(source: str, manifest: Path) -> Path:
    """What the relative path ``source`` of a recording is relative to; ValueError if no folder fits."""
    for folder in manifest.resolve().parents:
        if (folder / source).exists():
            return folder
    raise ValueError(
        f"{manifest} names the audio {source}, which is in no folder above it: was the data folder moved? "
        "Put it back, or run stage 1 of its own recipe again"
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--cuts", type=Path, required=True, help="manifest of the other recipe")
    parser.add_argument("--output", type=Path, required=True, help="manifest to write")
    arguments = parser.parse_args(argv)
    cuts = Manifest(arguments.cuts)
    first = cuts[0].recording.sources[0]
    if first.type == "file" and not Path(first.source).is_absolute():
        folder = folder_of(first.source, arguments.cuts)
    else:
        folder = Path("/")  # changes no absolute path
    save_cuts((cut.with_recording_path_prefix(folder) for cut in cuts), arguments.output)


if __name__ == "__main__":
    run(main)
