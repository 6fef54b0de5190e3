#!/usr/bin/env python3
"""Do the tests notice small wrong changes? Makes those of mutants.yaml in a copy, one by one (ours).

    tools/mutants.py                      all of them
    tools/mutants.py features mixing      those whose file or name holds one of these words
    tools/mutants.py --list true          what there is; nothing runs

A change that no test notices survives, and the command ends with status 1. Each process of tests is forked
from one that has the libraries already, so a change costs little more than the tests it is to fail.
"""

import argparse
import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT = 300.0
"""Seconds of tests after which a change counts as noticed: it made them hang."""


@dataclass(frozen=True)
class Mutant:
    """One small wrong change."""

    file: str
    name: str
    """What is wrong after it."""
    old: str
    new: str
    tests: tuple[str, ...]
    """Files of tests that must notice."""


def read_mutants() -> list[Mutant]:
    """The changes of mutants.yaml."""
    table = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return [
        Mutant(file=file, tests=tuple(f"tests/{name}.py" for name in group["tests"]), **change)
        for file, group in table.items()
        for change in group["changes"]
    ]


def copy_tree(folder: Path) -> None:
    """The tracked files of the repository as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)


def load_libraries() -> None:
    """What every process of tests needs, imported once before they are forked."""
    import lhotse  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import soundfile  # noqa: F401
    import torch

    torch.set_num_threads(1)


def run_tests(folder: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Whether the tests pass in the copy, and the last line that they say; in a forked process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(folder)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        sys.path[:] = [str(folder), *(path for path in sys.path if path != str(REPOSITORY))]
        for name in [name for name in sys.modules if name.split(".")[0] == "spear_lib"]:
            del sys.modules[name]
        import pytest

        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "--no-header", "--tb=no"]
            status = pytest.main([*options, *tests])
        lines = [line for line in said.getvalue().splitlines() if line.strip()]
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        os.write(write, (failed or lines or [""])[-1].encode()[:2000])
        os._exit(int(status))
    os.close(write)
    started = time.monotonic()
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() - started > LIMIT:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return False, f"no end after {LIMIT:g} s"
        time.sleep(0.05)
    with os.fdopen(read, "rb") as pipe:
        return os.waitstatus_to_exitcode(done[1]) == 0, pipe.read().decode(errors="replace")


def change(folder: Path, mutant: Mutant) -> str:
    """Makes the change in the copy; returns the file's text before it."""
    path = folder / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.file} holds {mutant.old!r} {text.count(mutant.old)} times, not once: mend mutants.yaml"
        )
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    return text


def main(argv: list[str] | None = None) -> int:
    """Entry point; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("words", nargs="*", help="of files or names; none: all")
    parser.add_argument("--list", choices=("true", "false"), default="false", help="show the table only")
    arguments = parser.parse_args(argv)
    chosen = [
        mutant
        for mutant in read_mutants()
        if not arguments.words or any(word in f"{mutant.file} {mutant.name}" for word in arguments.words)
    ]
    if not chosen:
        raise SystemExit(f"error: no change is called {' or '.join(arguments.words)}; --list true shows all")
    if arguments.list == "true":
        print("\n".join(f"{mutant.file}: {mutant.name}" for mutant in chosen))
        return 0
    load_libraries()
    survivors = []
    with tempfile.TemporaryDirectory(prefix="spear-mutants-") as name:
        folder = Path(name)
        copy_tree(folder)
        clean: set[tuple[str, ...]] = set()
        for number, mutant in enumerate(chosen, 1):
            if mutant.tests not in clean:
                passed, said = run_tests(folder, mutant.tests)
                if not passed:
                    raise SystemExit(f"error: {mutant.tests} fail without any change: {said}")
                clean.add(mutant.tests)
            before, started = change(folder, mutant), time.monotonic()
            survived, said = run_tests(folder, mutant.tests)
            (folder / mutant.file).write_text(before, encoding="utf-8")
            word = "SURVIVED" if survived else "killed"
            seconds = time.monotonic() - started
            line = f"{number:3d}/{len(chosen)} {word:8} {seconds:5.1f} s  {mutant.file}: {mutant.name}"
            print(f"{line}  ({said})", flush=True)
            if survived:
                survivors.append(mutant)
    print(f"{len(chosen)} changes, {len(chosen) - len(survivors)} killed, {len(survivors)} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main())
