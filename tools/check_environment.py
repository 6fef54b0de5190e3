#!/usr/bin/env python3
"""Is this a Python that the repository can run on, and is there room? Prints one line per problem.

Runs with the standard library alone, before anything is installed: tools/quickstart.sh and tools/check.sh
call it with the Python they found. ``--packages`` also compares what is installed with requirements.txt.
"""

import argparse
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

SUPPORTED = ((3, 11), (3, 12), (3, 13))
MINIMUM_DISK_GB = 4.0


def python_problem(version: tuple[int, int]) -> str | None:
    """Why ``version`` of Python cannot be used; None when it can."""
    if version in SUPPORTED:
        return None
    return (
        f"Python {version[0]}.{version[1]} is not supported: install Python 3.11, 3.12 or 3.13 and run this "
        "again (or name one: PYTHON=/path/to/python3.12 tools/quickstart.sh)"
    )


def disk_problem(free_bytes: int, folder: Path) -> str | None:
    """Why the disk under ``folder`` is too small; None when it is not."""
    free_gb = free_bytes / 1e9
    if free_gb >= MINIMUM_DISK_GB:
        return None
    return (
        f"{folder} has {free_gb:.1f} GB free and {MINIMUM_DISK_GB:.0f} GB are needed (2 for the environment, "
        "2 for data): free some space, or clone the repository to another disk"
    )


def package_problems(requirements: str) -> list[str]:
    """Packages of ``requirements`` (text of requirements.txt) that are absent or of another version."""
    problems = []
    for line in requirements.splitlines():
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?==([^\s#]+)", line)
        if match is None:
            continue
        name, wanted = match.groups()
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            problems.append(f"{name} is not installed: python -m pip install -r requirements.txt")
            continue
        # A build tag such as +cpu does not make another version.
        if found.split("+")[0] != wanted:
            problems.append(
                f"{name} is {found}, tested is {wanted}: python -m pip install -r requirements.txt"
            )
    return problems


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("."), help="where the data would be written")
    parser.add_argument("--no-disk", action="store_true", help="do not ask for free space")
    parser.add_argument("--packages", action="store_true", help="compare with requirements.txt")
    arguments = parser.parse_args(argv)
    problems = [python_problem(sys.version_info[:2])]
    if not arguments.no_disk:
        problems.append(disk_problem(shutil.disk_usage(arguments.folder).free, arguments.folder.resolve()))
    if arguments.packages:
        path = Path(__file__).resolve().parent.parent / "requirements.txt"
        problems += package_problems(path.read_text(encoding="utf-8"))
    found = [problem for problem in problems if problem]
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
