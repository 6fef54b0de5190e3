"""Cuts in files: written in one piece and with the same bytes each time, read by index (ours, on lhotse)."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from spear_lib.files import atomic_file


def save_cuts(cuts: Iterable[Cut], path: str | Path) -> int:
    """Writes cuts to ``path`` (.jsonl or .jsonl.gz) and returns how many; same cuts, same bytes."""
    count = 0
    with atomic_file(path) as file:
        # Neither the time nor the file's name goes into the header of gzip.
        compressed = str(path).endswith(".gz")
        opened = (
            gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) if compressed else nullcontext(file)
        )
        with opened as out:
            for cut in cuts:
                out.write(json.dumps(cut.to_dict(), ensure_ascii=False).encode() + b"\n")
                count += 1
    return count


class Manifest:
    """Cuts of one or several files (.jsonl or .jsonl.gz), by position.

    The lines are kept as text, and a cut is made when it is asked for. So a worker process that is forked
    shares the memory, and opening costs one pass over the file.

    Args:
      paths: one path or several; the cuts of the files follow each other.
      allow_empty: whether no cut at all is fine.

    Raises:
      ValueError: a file is missing, truncated or no manifest of cuts, an id is there twice, or no cut.
    """

    def __init__(self, paths: str | Path | Iterable[str | Path], allow_empty: bool = False):
        self.paths = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
        if not self.paths:
            raise ValueError("no manifest is given: name at least one *.jsonl.gz file of cuts")
        chunks, ends, ids, durations = [], [0], [], []
        for path in self.paths:
            for number, line in enumerate(_read_lines(path), start=1):
                fields = _parse(path, number, line)
                ids.append(fields["id"])
                durations.append(fields["duration"])
                chunks.append(line)
                ends.append(ends[-1] + len(line))
        if not ids and not allow_empty:
            raise ValueError(f"{self.describe()} holds no cuts: make it again (prepare.sh stage 1)")
        self.ids: list[str] = ids
        self.durations: np.ndarray = np.array(durations, dtype=np.float64)
        """Seconds of each cut, (number of cuts,)."""
        self._ends = np.array(ends, dtype=np.int64)
        self._data = b"".join(chunks)
        self._positions = {name: position for position, name in enumerate(ids)}
        if len(self._positions) != len(ids):
            twice = _first_duplicate(ids)
            raise ValueError(
                f"{self.describe()} holds the cut id {twice!r} more than once: ids must be unique, because "
                "random draws and tokens belong to them. Is a manifest given twice?"
            )

    def describe(self) -> str:
        """The files, for messages."""
        return ", ".join(str(path) for path in self.paths)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> Cut:
        if not -len(self) <= position < len(self):
            raise IndexError(f"{self.describe()} has no cut {position}: it holds {len(self)}")
        position %= len(self)
        line = self._data[self._ends[position] : self._ends[position + 1]]
        return deserialize_item(json.loads(line))

    def __iter__(self) -> Iterator[Cut]:
        return (self[position] for position in range(len(self)))

    def __contains__(self, name: str) -> bool:
        return name in self._positions

    def position(self, name: str) -> int:
        """Position of the cut with this id; ValueError if there is none."""
        if name not in self._positions:
            raise ValueError(f"{self.describe()} has no cut {name!r}: is it a manifest of another corpus?")
        return self._positions[name]

    @property
    def hours(self) -> float:
        """Length of all cuts together."""
        return float(self.durations.sum() / 3600)


def _read_lines(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        raise ValueError(
            f"manifest {path} does not exist: run the stage that makes it first "
            "(prepare.sh stage 1 makes data/manifests, stage 6 data/cuts)"
        )
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for line in file:
                if line.strip():
                    yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"manifest {path} is truncated or not gzip ({error}): make it again") from error


def _parse(path: Path, number: int, line: bytes) -> dict:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {number}, is not JSON ({error.msg}): make the manifest again"
        ) from error
    if not isinstance(fields, dict) or not {"id", "duration", "type"} <= fields.keys():
        kind = f"it has the fields {', '.join(fields)}" if isinstance(fields, dict) else "it is not an object"
        raise ValueError(
            f"{path}, line {number}, is not a cut ({kind}): expected a manifest of cuts, e.g. "
            "data/manifests/<corpus>_cuts_<set>.jsonl.gz, not of recordings or supervisions"
        )
    return fields


def _first_duplicate(ids: list[str]) -> str:
    seen: set[str] = set()
    return next(name for name in ids if name in seen or seen.add(name))
