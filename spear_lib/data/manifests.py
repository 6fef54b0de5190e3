"""Cuts in files: written in one piece and with the same bytes each time, read by index (ours, on lhotse)."""

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from spear_lib.data.manifest_index import ManifestIndex, open_index
from spear_lib.runtime.files import atomic_file

_ID_BLOCK = 65536


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
                line = json.dumps(cut.to_dict(), ensure_ascii=False)
                # A file's name that is no UTF-8 comes back the same from its escapes.
                out.write(line.encode("utf-8", "backslashreplace") + b"\n")
                count += 1
    return count


class Ids(Sequence):
    """The ids of a manifest's cuts, in order; read from its index when asked for."""

    def __init__(self, indexes: list[ManifestIndex], starts: np.ndarray):
        self._indexes, self._starts = indexes, starts

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, position):
        if isinstance(position, slice):
            begin, end, step = position.indices(len(self))
            if step != 1:
                return [self[each] for each in range(begin, end, step)]
            return list(self._between(begin, end))
        if not -len(self) <= position < len(self):
            raise IndexError(f"no cut {position}: there are {len(self)}")
        position = int(position) % len(self)
        part = int(np.searchsorted(self._starts, position, side="right")) - 1
        inside = position - int(self._starts[part])
        return self._indexes[part].ids(inside, inside + 1)[0]

    def __iter__(self) -> Iterator[str]:
        for begin in range(0, len(self), _ID_BLOCK):
            yield from self._between(begin, min(begin + _ID_BLOCK, len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other))

    __hash__ = None

    def _between(self, begin: int, end: int) -> Iterator[str]:
        for index, start in zip(self._indexes, self._starts.tolist()):
            yield from index.ids(max(0, begin - start), min(len(index), end - start))


class Manifest:
    """Cuts of one or several files (.jsonl or .jsonl.gz), by position.

    A cut is read and made when it is asked for; what is kept is the index (``manifest_index``), which the
    processes of a machine share.

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
        self._indexes = [open_index(path) for path in self.paths]
        self._starts = np.cumsum([0, *map(len, self._indexes)])
        self.ids = Ids(self._indexes, self._starts)
        if not len(self) and not allow_empty:
            raise ValueError(f"{self.describe()} holds no cuts: make it again (prepare.sh stage 1)")
        self.durations: np.ndarray = self._joined("durations")
        """Seconds of each cut, (number of cuts,)."""
        twice = self._first_duplicate()
        if twice is not None:
            raise ValueError(
                f"{self.describe()} holds the cut id {twice!r} more than once: ids must be unique, because "
                "random draws and tokens belong to them. Is a manifest given twice?"
            )

    def _joined(self, name: str) -> np.ndarray:
        arrays = [getattr(index, name) for index in self._indexes]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def _first_duplicate(self) -> str | None:
        for index in self._indexes:
            twice = index.first_duplicate()
            if twice is not None:
                return twice
        for number, index in enumerate(self._indexes):
            for other in self._indexes[number + 1 :]:
                common, _, rows = np.intersect1d(index.id_hashes, other.id_hashes, return_indices=True)
                for row in rows.tolist() if len(common) else []:
                    position = int(other.id_order[row])
                    name = other.ids(position, position + 1)[0]
                    if index.find(name) is not None:
                        return name
        return None

    @property
    def sizes(self) -> list[int]:
        """Number of cuts of each file."""
        return [len(index) for index in self._indexes]

    @property
    def sounds(self) -> np.ndarray:
        """(number of cuts,) uint8: 1 where a cut's domain is audio, 0 where it is speech."""
        return self._joined("sounds")

    @property
    def audio_keys(self) -> np.ndarray:
        """(number of cuts,) uint64: equal for cuts of the same stretch of audio, whatever they are called."""
        return self._joined("audio_keys")

    @property
    def recording_keys(self) -> np.ndarray:
        """(number of cuts,) uint64: equal for cuts of the same recording."""
        return self._joined("recording_keys")

    @property
    def fingerprint(self) -> str:
        """Of the ids, durations and order of all cuts; not of the paths."""
        return self._digest("id_hashes", "id_order", "durations")

    @property
    def labels_fingerprint(self) -> str:
        """Of what the supervisions of all cuts say: times, texts, labels."""
        return self._digest("label_keys")

    def _digest(self, *names: str) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for index in self._indexes:
            for name in names:
                digest.update(np.ascontiguousarray(getattr(index, name)).data)
        return digest.hexdigest()

    def describe(self) -> str:
        """The files, for messages."""
        return ", ".join(str(path) for path in self.paths)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, position: int) -> Cut:
        if not -len(self) <= position < len(self):
            raise IndexError(f"{self.describe()} has no cut {position}: it holds {len(self)}")
        position = int(position) % len(self)
        part = int(np.searchsorted(self._starts, position, side="right")) - 1
        line = self._indexes[part].line(position - int(self._starts[part]))
        try:
            return deserialize_item(json.loads(line))
        except Exception as error:  # whatever lhotse makes of fields that are not a cut's
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{self.paths[part]}: cut {self.ids[position]} cannot be made of its fields ({reason}): mend "
                "its line, or make the manifest again"
            ) from error

    def fields(self) -> Iterator[dict[str, Any]]:
        """The JSON fields of every cut, in order: several times quicker than the cuts, for a look at all of
        them."""
        return (json.loads(index.line(row)) for index in self._indexes for row in range(len(index)))

    def __iter__(self) -> Iterator[Cut]:
        return (self[position] for position in range(len(self)))

    def __contains__(self, name: str) -> bool:
        return any(index.find(name) is not None for index in self._indexes)

    def position(self, name: str) -> int:
        """Position of the cut with this id; ValueError if there is none."""
        for index, start in zip(self._indexes, self._starts.tolist()):
            position = index.find(name)
            if position is not None:
                return start + position
        raise ValueError(f"{self.describe()} has no cut {name!r}: is it a manifest of another corpus?")

    @property
    def hours(self) -> float:
        """Length of all cuts together."""
        return float(self.durations.sum() / 3600)


def set_name(path: str) -> str:
    """``data/cuts/librispeech_cuts_dev.jsonl.gz`` -> ``dev``; other names without their endings."""
    name = re.sub(r"\.jsonl(\.gz)?$", "", Path(path).name)
    return name.split("_cuts_", 1)[-1]


def named_sets(cuts: list[str]) -> dict[str, Path]:
    """Set name -> manifest.

    Raises:
      ValueError: no set, or two sets of one name.
    """
    sets: dict[str, Path] = {}
    for item in cuts:
        name, separator, path = item.partition("=")
        if not separator or Path(item).exists():
            path, name = item, set_name(item)
        if name in sets:
            raise ValueError(f"two sets are called {name!r}: {sets[name]} and {path}; write name=manifest")
        sets[name] = Path(path)
    if not sets:
        raise ValueError("no set to recognise: give cuts one or more manifests")
    return sets
