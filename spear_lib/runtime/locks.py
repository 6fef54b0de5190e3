"""One process at a time: locks that die with their holder (ours, on flock).

The kernel frees the lock when its holder ends, however it ends, so a killed job never blocks the next one;
the file only tells who holds it, or who held it and died.
"""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)


@contextmanager
def exclusive(path: str | Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs; it is removed afterwards.

    Args:
      what: what is locked, for messages.
      wait: wait for the holder instead of raising.

    Raises:
      RuntimeError: another process holds the lock (says which), or the file system has no locks.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _locked(path, what, wait)
    try:
        left_by = _holder(file)
        if left_by:
            logger.info("%s: taken over from %s, which ended without finishing", what, left_by)
        file.seek(0)
        file.truncate()
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}))
        file.flush()
        yield
    finally:
        # Removed while it is held: whoever waits for it finds another file at the path and tries again.
        path.unlink(missing_ok=True)
        file.close()


def _locked(path: Path, what: str, wait: bool) -> IO[str]:
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held until the lock is given back
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(file) or "another process"
            file.close()
            raise RuntimeError(
                f"{what} is being written by {holder}: wait for it or end it. Was the same part given to two "
                "jobs? (a holder that died does not block)"
            ) from error
        except OSError as error:
            file.close()
            raise RuntimeError(
                f"cannot lock {path} ({error.strerror}): this file system has no locks, so two jobs could "
                "write the same files; use a folder on another one"
            ) from error
        if _is_at(file, path):
            return file
        file.close()


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether the path still means this file: its last holder may have removed it meanwhile."""
    try:
        return os.fstat(file.fileno()).st_ino == os.stat(path).st_ino
    except FileNotFoundError:
        return False


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
    except json.JSONDecodeError:
        return ""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
    return f"process {holder['pid']} on {holder['host']} (since {since})"
