"""Where every cut of a manifest lies: built in one pass, kept beside large files, read without holding lines
(ours).

A manifest of millions of cuts does not fit in the memory of every process, and reading it takes minutes. Its
index does not and does: the offset of every line, and per cut what planning needs (id, duration, which audio
it is). The index of a large manifest is a folder of flat arrays in ``.index`` beside it, memory-mapped by all
processes; that of a small one is made in memory. A .gz cannot be read from the middle, so the index of a
large one holds its lines too. A lhotse Shar folder counts as one manifest (``shar_index``).

Legend: n cuts.
"""

import atexit
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from spear_lib.data.domains import is_audio
from spear_lib.data.manifest_fields import parse_cut
from spear_lib.data.shar_index import is_shar, shar_identity, shar_lines, shar_size
from spear_lib.runtime.locks import NoLocksError, exclusive
from spear_lib.runtime.text_files import raw_lines

logger = logging.getLogger(__name__)

FORMAT = 3
MEMORY_LIMIT = 2**20
"""Bytes of the manifest's file up to which its index is made in memory at every start."""

_ARRAYS = {
    "begins": np.int64,
    "ends": np.int64,
    "durations": np.float64,
    "sounds": np.uint8,
    "id_ends": np.int64,
    "audio_keys": np.uint64,
    "recording_keys": np.uint64,
    "label_keys": np.uint64,
    "id_hashes": np.uint64,
    "id_order": np.int64,
}
_ROWS = 65536  # lines between two writes


def hash64(text: str) -> int:
    """A stable 64-bit hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def audio_key(recording: str, channel: object, start: float, duration: float) -> int:
    """64 bits that stand for a stretch of audio, whatever its cut is called: the recording's id, the
    channel(s), start and duration (s, to the millisecond)."""
    return hash64(f"{recording}\x1f{channel}\x1f{start:.3f}\x1f{duration:.3f}")


def label_key(fields: dict[str, Any]) -> int:
    """64 bits that stand for what is said of a cut's audio: times, text and labels of its supervisions."""
    said = [[s.get(name) for name in _SAID] for s in fields.get("supervisions") or ()]
    return hash64(json.dumps(said, sort_keys=True))


_SAID = ("start", "duration", "text", "speaker", "custom")


def recording_of(fields: dict[str, Any]) -> str:
    """Id of the recording of a cut's JSON fields; its own id for a cut without a recording."""
    recording = fields.get("recording") or {}
    return str(recording.get("id", fields["id"]))


class ManifestIndex:
    """The index of one file.

    Attributes:
      begins, ends: (n,) bytes of each cut's line.
      durations: (n,) s.
      sounds: (n,) uint8, 1 where the cut's domain is audio rather than speech.
      audio_keys: (n,) uint64, ``audio_key`` of each cut.
      recording_keys: (n,) uint64, hash of the recording's id.
      label_keys: (n,) uint64, ``label_key`` of each cut.
      id_hashes, id_order: (n,) hashes of the ids, sorted, and the positions they belong to.
    """

    def __init__(self, path: Path, arrays: dict[str, np.ndarray], ids: "_Bytes", lines: "_Bytes"):
        self.path, self._ids, self._lines = path, ids, lines
        self.begins, self.ends, self.durations = arrays["begins"], arrays["ends"], arrays["durations"]
        self.sounds = arrays["sounds"]
        self.audio_keys, self.recording_keys = arrays["audio_keys"], arrays["recording_keys"]
        self.label_keys = arrays["label_keys"]
        self.id_hashes, self.id_order, self._id_ends = (
            arrays["id_hashes"],
            arrays["id_order"],
            arrays["id_ends"],
        )

    def __len__(self) -> int:
        return len(self.durations)

    def __reduce__(self):
        # A spawned process opens the files itself; an index in memory travels whole.
        if isinstance(self._ids, _FileBytes):
            return open_index, (self.path,)
        return super().__reduce__()

    def line(self, position: int) -> bytes:
        """The JSON text of a cut."""
        return self._lines.read(int(self.begins[position]), int(self.ends[position]))

    def ids(self, begin: int, end: int) -> list[str]:
        """Ids of the cuts ``begin``..``end`` - 1."""
        if begin >= end:
            return []
        first = int(self._id_ends[begin - 1]) if begin else 0
        text = self._ids.read(first, int(self._id_ends[end - 1]))
        ends = (np.asarray(self._id_ends[begin:end]) - first).tolist()
        return [text[a:b].decode() for a, b in zip([0, *ends[:-1]], ends)]

    def find(self, name: str) -> int | None:
        """Position of the cut with this id."""
        wanted = np.uint64(hash64(name))
        row = int(np.searchsorted(self.id_hashes, wanted))
        while row < len(self) and self.id_hashes[row] == wanted:
            position = int(self.id_order[row])
            if self.ids(position, position + 1) == [name]:
                return position
            row += 1
        return None

    def first_duplicate(self) -> str | None:
        """An id that is there twice."""
        hashes = np.asarray(self.id_hashes)
        for row in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist():
            one, two = int(self.id_order[row]), int(self.id_order[row + 1])
            if self.ids(one, one + 1) == self.ids(two, two + 1):
                return self.ids(one, one + 1)[0]
        return None


class _Bytes:
    """Bytes in memory, read by range."""

    def __init__(self, data: bytes):
        self.data = data

    def read(self, begin: int, end: int) -> bytes:
        return self.data[begin:end]


class _FileBytes(_Bytes):
    """Bytes of a file that stays open; ranges are read without moving a position, so threads and forks may
    share."""

    def __init__(self, path: Path):
        self.file = open(path, "rb")  # noqa: SIM115 - as long as the index

    def read(self, begin: int, end: int) -> bytes:
        return os.pread(self.file.fileno(), end - begin, begin)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


def open_index(path: str | Path) -> ManifestIndex:
    """The index of a manifest or of a Shar folder; made first where there is none or they were replaced.

    Raises:
      ValueError: the file is missing, truncated or no manifest of cuts.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(
            f"manifest {path} does not exist: run the stage that makes it first "
            "(prepare.sh stage 1 makes data/manifests, stage 6 data/cuts)"
        )
    if (shar_size(path) if is_shar(path) else path.stat().st_size) <= MEMORY_LIMIT:
        sinks = {name: BytesIO() for name in (*_ARRAYS, "ids", "lines")}
        _build(path, sinks.__getitem__, copy_lines=True)
        content = {name: sink.getvalue() for name, sink in sinks.items()}
        arrays = {name: np.frombuffer(content[name], dtype) for name, dtype in _ARRAYS.items()}
        return ManifestIndex(path, arrays, _Bytes(content["ids"]), _Bytes(content["lines"]))
    folder = _made_folder(path)
    arrays = {}
    for name, dtype in _ARRAYS.items():
        file = folder / name
        arrays[name] = np.memmap(file, dtype, mode="r") if file.stat().st_size else np.empty(0, dtype)
    lines = folder / "lines" if _keeps_lines(path) else path
    return ManifestIndex(path, arrays, _FileBytes(folder / "ids"), _FileBytes(lines))


def _made_folder(path: Path) -> Path:
    """The folder of the index, made by one process of all; where the file system of the manifest has no
    locks, in the temporary folder, and where that has none either, for this process alone."""
    identity = _identity(path)
    places = dict.fromkeys((_folder(path), _temporary_folder(path)))
    for folder in places:
        if _is_current(folder, identity):
            return folder
    for folder in places:
        try:
            with exclusive(folder.with_name(folder.name + ".lock"), f"the index of {path}", wait=True):
                if not _is_current(folder, identity):
                    _build_folder(path, folder, identity)
            return folder
        except NoLocksError as error:
            logger.debug("%s", error)
    folder = _temporary_folder(path).with_name(f"{path.name}-{os.getpid()}")
    _build_folder(path, folder, identity)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _keeps_lines(path: Path) -> bool:
    """Whether the index holds the lines too: a .gz cannot be read from the middle, those of Shar are made."""
    return path.suffix == ".gz" or is_shar(path)


def _folder(path: Path) -> Path:
    """Beside the manifest; in the machine's temporary folder where that is not writable."""
    path = path.resolve()
    if os.access(path.parent, os.W_OK):
        return path.parent / ".index" / path.name
    return _temporary_folder(path)


def _temporary_folder(path: Path) -> Path:
    path = path.resolve()
    return Path(tempfile.gettempdir()) / f"spear_lib-{os.getuid()}" / f"{hash64(str(path)):016x}" / path.name


def _identity(path: Path) -> dict[str, Any]:
    if is_shar(path):
        return {"format": FORMAT, "files": shar_identity(path)}
    status = path.stat()
    return {"format": FORMAT, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}


def _is_current(folder: Path, identity: dict[str, int]) -> bool:
    try:
        return json.loads((folder / "identity.json").read_text()) == identity
    except (OSError, json.JSONDecodeError):
        return False


def _build_folder(path: Path, folder: Path, identity: dict[str, int]) -> None:
    logger.info("making the index of %s (once)", path)
    aside = folder.with_name(folder.name + ".tmp")
    for old in (aside, folder):
        shutil.rmtree(old, ignore_errors=True)
    aside.mkdir(parents=True)
    opened: dict[str, IO[bytes]] = {}
    try:
        for name in (*_ARRAYS, "ids", "lines"):
            opened[name] = open(aside / name, "wb+")  # noqa: SIM115 - closed below
        _build(path, opened.__getitem__, copy_lines=_keeps_lines(path))
        for file in opened.values():
            file.close()
        (aside / "identity.json").write_text(json.dumps(identity))
        os.rename(aside, folder)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {folder} ({error.strerror}): free some space and run the command again",
        ) from error
    finally:
        for file in opened.values():
            file.close()
        shutil.rmtree(aside, ignore_errors=True)


def _build(path: Path, sink: Callable[[str], IO[bytes]], copy_lines: bool) -> None:
    """One pass over the file; everything goes to the sinks, ``_ROWS`` lines at a time."""
    rows: dict[str, list] = {name: [] for name in _ARRAYS if name not in ("id_hashes", "id_order")}
    hashes: list[np.ndarray] = []
    some_hashes: list[int] = []
    at = id_end = 0

    def flush() -> None:
        for name, values in rows.items():
            sink(name).write(np.array(values, dtype=_ARRAYS[name]).tobytes())
            values.clear()
        hashes.append(np.array(some_hashes, dtype=np.uint64))
        some_hashes.clear()

    for number, line, offset in _read_lines(path):
        fields = parse_cut(path, number, line)
        name = str(fields["id"]).encode()
        recording, duration = recording_of(fields), float(fields["duration"])
        start, channel = float(fields.get("start", 0.0)), fields.get("channel", 0)
        begin = at if copy_lines else offset
        at += len(line)
        id_end += len(name)
        for key, value in (
            ("begins", begin),
            ("ends", begin + len(line)),
            ("durations", duration),
            ("sounds", is_audio(fields.get("custom"))),
            ("id_ends", id_end),
            ("audio_keys", audio_key(recording, channel, start, duration)),
            ("recording_keys", hash64(recording)),
            ("label_keys", label_key(fields)),
        ):
            rows[key].append(value)
        some_hashes.append(hash64(fields["id"]))
        sink("ids").write(name)
        if copy_lines:
            sink("lines").write(line)
        if len(some_hashes) == _ROWS:
            flush()
    flush()
    all_hashes = np.concatenate(hashes)
    order = np.argsort(all_hashes, kind="stable")
    sink("id_hashes").write(all_hashes[order].tobytes())
    sink("id_order").write(order.astype(np.int64).tobytes())


def _read_lines(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """Number, bytes and offset in the (decompressed) file of each line that is not blank."""
    if is_shar(path):
        yield from ((number, line, 0) for number, line in enumerate(shar_lines(path), 1))
        return
    offset = 0
    for number, line in raw_lines(path):
        if line.strip():
            yield number, line, offset
        offset += len(line)
