"""Copies of token shards and Shar archives on a disk of this machine, for as long as a command runs (ours).

Training reads single utterances from everywhere in large files, over and over: what a shared file system does
worst. Here the files are copied once to a disk of the machine (``data.local_dir``, or the folder that Slurm
gives a job, SLURM_TMPDIR), in sequence, and read there. What is read is the same; where copies cannot be had,
a line says why and the files are read from where they are.

    <local_dir>/spear-<user id>/lock         held while somebody looks around
                                <group>/     one for all shards of a store, or all archives of one field
                                  in_use     held, shared, by each process that reads the copies
                                  size.json  bytes of all files
                                  <file>     appears by rename, when its size and its sha256 are right

Processes of one machine share the work and the copies, those of other runs over the same files too. The
last one removes them. The kernel lets go of the lock of a killed process, so the next command finds what
nobody holds and removes it.
"""

import atexit
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple

from spear_lib.runtime.files import atomic_path, read_json, sha256_of, write_json
from spear_lib.runtime.locks import NoLocksError, exclusive, try_lock
from spear_lib.runtime.progress import format_seconds, progress

logger = logging.getLogger(__name__)

SLURM_FOLDER = "SLURM_TMPDIR"
_SPARE = 0.05  # of the disk is left free
_BLOCK = 2**22  # bytes
_NUMBER = re.compile(r"\d+(?=\.\w+$)")


class _Copy(NamedTuple):
    path: str
    size: int


_copies: dict[str, _Copy] = {}
_held: dict[Path, IO] = {}  # folder of a group -> its open in_use


class _Group(NamedTuple):
    """All files of a folder that differ in their number alone."""

    folder: str
    """As it stands in manifests."""
    pattern: str
    files: dict[str, tuple[int, int]]
    """Name -> size in bytes, time of change in ns."""

    @property
    def size(self) -> int:
        return sum(size for size, _ in self.files.values())

    @property
    def key(self) -> str:
        """Another one where a file is replaced."""
        facts = [os.path.realpath(self.folder), sorted(self.files.items())]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()

    def __str__(self) -> str:
        return f"{len(self.files)} files {self.folder}/{self.pattern}"


def local(path: str) -> str:
    """Where to read a file: its copy on this machine as long as that is whole, else the file itself."""
    copy = _copies.get(path)
    if copy is None:
        return path
    try:
        if os.stat(copy.path).st_size == copy.size:
            return copy.path
    except OSError:
        pass
    _copies.pop(path, None)
    logger.warning("%s is gone or changed: %s is read from where it is", copy.path, path)
    return path


def keep_copies(files: Iterable[str], local_dir: str = "") -> None:
    """Copies files, with those of their folders that differ from them in their number alone, for ``local``.
    The copies are removed when the last process that asked for them ends.

    Args:
      files: token shards and Shar archives, as they stand in manifests.
      local_dir: a folder on a disk of this machine, made where there is none; by default SLURM_TMPDIR, and
        nothing happens without it.

    Raises:
      ValueError: a token shard that differs from what its index says.
    """
    place = local_dir or os.environ.get(SLURM_FOLDER, "")
    if not place:
        return
    root = Path(place) / f"spear-{os.getuid()}"
    for group in sorted(_groups(files), key=lambda group: (group.size, group.folder, group.pattern)):
        try:
            folder = _take(group, root)
            if folder is not None:
                _copy_group(group, folder)
        except (OSError, NoLocksError) as error:
            cause = error.__cause__ or error
            reason = getattr(cause, "strerror", None) or cause
            logger.warning(
                "no local copies in %s (%s): %s are read from where they are", place, reason, group
            )


def _groups(files: Iterable[str]) -> list[_Group]:
    patterns = {(os.path.dirname(file), _NUMBER.sub("*", os.path.basename(file))) for file in files}
    groups = []
    for folder, pattern in sorted(patterns):
        found = {}
        # A folder that is gone is an error of those who read it.
        for entry in os.scandir(folder or ".") if os.path.isdir(folder or ".") else ():
            if _NUMBER.sub("*", entry.name) == pattern and entry.is_file():
                status = entry.stat()
                found[entry.name] = status.st_size, status.st_mtime_ns
        groups.append(_Group(folder, pattern, dict(sorted(found.items()))))
    return groups


def _bytes(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.3f} MB"


def _take(group: _Group, root: Path) -> Path | None:
    """The folder for the copies of a group, held by this process; None where they do not fit."""
    folder = root / group.key
    if folder in _held:
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with exclusive(root / "lock", f"the copies in {root}", wait=True):
        _remove_dead(root)
        if not folder.is_dir():
            usage = shutil.disk_usage(root)
            free = usage.free - _SPARE * usage.total - _promised(root)
            if group.size > free:
                logger.warning(
                    "%s: %s do not fit in %s, which has room for %s: they are read from where they are",
                    group,
                    _bytes(group.size),
                    root,
                    _bytes(max(0.0, free)),
                )
                return None
            folder.mkdir()
            write_json(folder / "size.json", {"bytes": group.size, "of": str(group)})
        file = open(folder / "in_use", "a")  # noqa: SIM115 - held until this process ends
        try_lock(file, folder / "in_use", shared=True)
        _held[folder] = file
    return folder


def _remove_dead(root: Path) -> None:
    """What no process holds: left by a job that was killed."""
    for folder in sorted(root.iterdir()):
        if not folder.is_dir() or folder in _held:
            continue
        with open(folder / "in_use", "a") as file:
            if try_lock(file, folder / "in_use"):
                logger.info("removing %s, which a job that ended left", folder)
                shutil.rmtree(folder, ignore_errors=True)


def _promised(root: Path) -> int:
    """Bytes that others are still going to write."""
    promised = 0
    for size_file in root.glob("*/size.json"):
        there = sum(path.stat().st_size for path in size_file.parent.iterdir() if path.is_file())
        promised += max(0, read_json(size_file)["bytes"] - there)
    return promised


def _copy_group(group: _Group, folder: Path) -> None:
    """Copies what is not there yet, at the same time as other processes; ends when all of it is there."""
    began, copied = time.monotonic(), 0
    for wait in (False, True):  # what others are at is left to them, until nothing else is left
        names = [name for name in group.files if not (folder / name).exists()]
        for name in progress(names, description=f"copying {group} to {folder}", unit="files"):
            try:
                with exclusive(folder / f"{name}.lock", f"the copy of {name}", wait=wait):
                    if not (folder / name).exists():
                        _copy(Path(group.folder) / name, folder / name, group.files[name][0])
                        copied += 1
            except NoLocksError:
                raise
            except RuntimeError:
                continue  # another process is at it
    for name, (size, _) in group.files.items():
        _copies[os.path.join(group.folder, name)] = _Copy(str(folder / name), size)
    logger.info(
        "%s, %s, are read from their copies in %s (%d copied here in %s, sizes and sha256 checked)",
        group,
        _bytes(group.size),
        folder,
        copied,
        format_seconds(time.monotonic() - began),
    )


def _copy(source: Path, target: Path, size: int) -> None:
    """One file, checked against what its store says of it, or else against what was read.

    Raises:
      ValueError: the file itself is not what its store says.
      OSError: the copy cannot be written, or reads back differently.
    """
    digest = hashlib.sha256()
    with atomic_path(target) as aside:
        with open(source, "rb") as file, open(aside, "wb") as out:
            while block := file.read(_BLOCK):
                digest.update(block)
                out.write(block)
            written = out.tell()
        index = source.with_suffix(".json")
        if index.is_file():  # of a token shard
            said = read_json(index)
            if (written, digest.hexdigest()) != (said["num_bytes"], said["sha256"]):
                raise ValueError(
                    f"{source} changed since it was written (its size or its sha256 differs); delete it and "
                    "run stage 5 (dump_tokens) again"
                )
        elif written != size:
            raise ValueError(
                f"{source} has {written} bytes and had {size} a moment ago: is it being written?"
            )
        with open(aside, "rb") as file:
            # From the disk, not from memory.
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if sha256_of(file) != digest.digest():
                raise OSError(f"{target} reads back differently from what was written: check the disk")


def release() -> None:
    """Lets go of all copies, and removes those that no other process reads."""
    _copies.clear()
    while _held:
        folder, file = _held.popitem()
        try:
            with exclusive(folder.parent / "lock", f"the copies in {folder.parent}", wait=True):
                file.close()
                with open(folder / "in_use") as mine:
                    if try_lock(mine, folder / "in_use"):
                        shutil.rmtree(folder, ignore_errors=True)
        except (OSError, RuntimeError) as error:
            logger.warning("the copies in %s are left there (%s)", folder, error)


def _not_in_children() -> None:
    """A data worker reads the copies, but does not hold them: one that outlives its command by a moment must
    not keep them from being removed."""
    for file in _held.values():
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_not_in_children)
atexit.register(release)
