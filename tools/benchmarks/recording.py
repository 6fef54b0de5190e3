"""What a benchmark found as a record of docs/results, of which tools/results.py makes RESULTS.md (ours)."""

import contextlib
import functools
import io
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDS = REPOSITORY / "docs" / "results"
BUSY = 0.25
"""Other processes than this one, per core, from which a machine counts as loaded."""


def machine() -> str:
    """What the figures were measured on, and whether others used it: kind, cores, torch, load."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    cores = os.cpu_count() or 1
    # This process is one of those that run.
    load = max(0.0, os.getloadavg()[0] - 1.0)
    loaded = f"LOADED by other work ({load:.1f} more running)" if load > BUSY * cores else "otherwise idle"
    kind = gpu or f"{_processor()}, {cores} cores"
    return f"{kind}, torch {torch.__version__}, {loaded}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within: of the library's log nothing below an error; a table is what a benchmark prints."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")


def commit() -> str:
    """The commit of this checkout, with "+changes" where files differ from it."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=12", "--dirty=+changes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no git"


_STARTED_AT = commit()  # what was measured is what was imported, whatever changes meanwhile


@dataclass(frozen=True)
class Record:
    """A table of a benchmark.

    Attributes:
      name: of the file, docs/results/<name>.json.
      columns: heads of the table.
      rows: cells.
      corpus: what the benchmark ran on.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    corpus: str

    def save(self, folder: Path = RECORDS, arguments: Sequence[str] | None = None) -> Path:
        """Writes the record; ``tools/results.py write`` puts it on the page.

        Raises:
          ValueError: a name that is no plain file name, or rows that do not fit the columns.
        """
        if not self.name or self.name != Path(self.name).name:
            raise ValueError(f"record is {self.name!r}: use a plain name, it becomes {folder}/<name>.json")
        if bad := [row for row in self.rows if len(row) != len(self.columns)]:
            raise ValueError(f"a row of {len(bad[0])} cells for {len(self.columns)} columns: {bad[0]}")
        command = ["python", *(sys.argv if arguments is None else arguments)]
        record = {
            "claim": "speed",
            "command": shlex.join(command),
            "commit": _STARTED_AT,
            "corpus": f"{self.corpus}. {machine()}",
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


class _Tee(io.StringIO):
    """Keeps what is printed, and shows it."""

    def __init__(self, shown: io.TextIOBase) -> None:
        super().__init__()
        self.shown = shown

    def write(self, text: str) -> int:
        self.shown.write(text)
        return super().write(text)

    def flush(self) -> None:
        self.shown.flush()


def tables(printed: str) -> list[list[list[str]]]:
    """The markdown tables of what was printed, as rows of cells, heads first; without any, its lines."""
    found: list[list[list[str]]] = []
    inside = False
    lines = printed.splitlines()
    for line in lines:
        row = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif not inside:
            found.append([row])
            inside = True
        elif not all(set(cell) <= set("-: ") for cell in row):
            found[-1].append(row)
    return found or [[["printed"], *([line.strip()] for line in lines if line.strip())]]


def recorded(corpus: str) -> Callable:
    """Gives the ``main(argv)`` of a benchmark the option ``--record NAME``: its tables, or its lines where it
    prints none, become records NAME, NAME-2 and so on.

    Args:
      corpus: what it runs on.
    """

    def wrapper(main: Callable) -> Callable:
        @functools.wraps(main)
        def with_record(argv: Sequence[str] | None = None) -> int | None:
            left = list(sys.argv[1:] if argv is None else argv)
            if "--record" not in left:
                return main(argv)
            at = left.index("--record")
            if at + 1 == len(left):
                raise ValueError("--record needs the name of the record, for example --record encoder")
            _, name = left[at : at + 2]
            command = [sys.argv[0], *left]
            del left[at : at + 2]
            tee = _Tee(sys.stdout)
            with contextlib.redirect_stdout(tee):
                status = main(left)
            if not status:
                for number, (columns, *rows) in enumerate(tables(tee.getvalue()), 1):
                    record = Record(name if number == 1 else f"{name}-{number}", columns, rows, corpus)
                    record.save(arguments=command)
            return status

        return with_record

    return wrapper
