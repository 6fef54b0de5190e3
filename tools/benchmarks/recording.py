"""What a benchmark found as a record of docs/results, of which tools/results.py makes RESULTS.md (ours)."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
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
            "commit": commit(),
            "corpus": f"{self.corpus}. {machine()}",
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path
