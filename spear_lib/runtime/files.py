"""Files that are whole or not there at all: written aside, flushed to disk, renamed (ours).

Every result of the product is written through this module, so that a killed command never leaves half a file
under a final name, and a full disk ends a command with one line that names the file.
"""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
# What safetensors, torch and numpy make of them.
_DISK_MESSAGES = re.compile(
    r"No space left|Disk quota exceeded|File too large|PytorchStreamWriter failed|unexpected pos|"
    r"requested and \d+ written"
)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A path to write to; the file appears at ``path`` only when all of it is written.

    Raises:
      OSError: naming the file, when the disk is full or the folder cannot be made. An older file at ``path``
      is untouched.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A killed run of another user may have left it: only its owner could set its mode.
        unfinished.unlink(missing_ok=True)
        unfinished.touch()
        mode = unfinished.stat().st_mode
    except OSError as error:
        raise _write_error(path, error) from error
    try:
        yield unfinished
        with open(unfinished, "rb") as file:
            # Writers of their own (safetensors: 0600) may not decide who can read it; the umask does.
            if os.fstat(file.fileno()).st_mode != mode:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        # The caller's own errors, of what it reads for example, go through as they are.
        disk = isinstance(error, OSError) and error.errno in _DISK_ERRORS
        if disk or (isinstance(error, Exception) and _DISK_MESSAGES.search(str(error))):
            raise _write_error(path, error) from error
        raise


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """As ``atomic_path``, with the binary file already open."""
    with atomic_path(path) as unfinished, open(unfinished, "wb") as file:
        yield file


def _write_error(path: Path, error: Exception) -> OSError:
    reason = getattr(error, "strerror", None) or error
    advice = "free some space, or choose another folder, and run the same command again"
    return OSError(getattr(error, "errno", errno.EIO), f"cannot write {path} ({reason}): {advice}")


def sha256_of(file: IO[bytes]) -> bytes:
    """SHA-256 of a binary file from where it stands to its end (hashlib.file_digest: Python 3.11)."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.digest()


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file in one piece; bytes of file names that are no UTF-8 become escapes, as in JSON."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, value: object, compact: bool = False) -> None:
    """Write indented JSON with the order of keys kept and a final newline; compact: one line of sorted
    keys."""
    if compact:
        write_text(path, json.dumps(value, sort_keys=True))
    else:
        write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      ValueError: not JSON, or something else than an object.
    """
    advice = "delete it and run its stage again, or get it again from where it came"
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): {advice}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not the settings expected there: {advice}")
    return value
