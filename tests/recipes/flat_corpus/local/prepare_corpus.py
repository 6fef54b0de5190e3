"""Stage 0: links the folder of the corpus."""

import argparse
from pathlib import Path

from spear_lib.bin.common import run


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("mini", "corpus-dir", "noise-dir", "seed", "num-jobs"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    folder = Path(options.corpus_dir)
    if not (folder / "texts.csv").is_file():
        raise ValueError(f"--corpus-dir {folder} has no texts.csv")
    options.output.mkdir(parents=True, exist_ok=True)
    link = options.output / "flat"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.resolve())


if __name__ == "__main__":
    run(main)
