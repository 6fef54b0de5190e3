"""One process at a time: locks that die with their holder (filelock, which asks the kernel for them).

The kernel frees the lock when its holder ends, however it ends, so a killed job never blocks the next one;
the content of the file, ours, only tells who holds it, or who held it and died.
"""

import errno
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

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)


class NoLocksError(RuntimeError):
    """The file system has no locks."""


_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def exclusive(path: str | Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs; it is removed afterwards.

    Args:
      what: what is locked, for messages.
      wait: wait for the holder instead of raising.

    Raises:
      RuntimeError: another process holds the lock (says which), or (NoLocksError) the file system has none.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without locks of the kernel, filelock would go by the file: a killed job would block the next one.
    lock = FileLock(path, timeout=-1 if wait else 0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise RuntimeError(
            f"{what} is being written by {_holder(path) or 'another process'}: wait for it or end it. Was "
            "the same part given to two jobs? (a holder that died does not block)"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise _no_locks(path, error) from error
    try:
        left_by = _holder(path)
        if left_by:
            logger.info("%s: taken over from %s, which ended without finishing", what, left_by)
        _write_holder(path)
        yield
    finally:
        # Removed while it is held: whoever waits for it finds another file at the path and tries again.
        path.unlink(missing_ok=True)
        lock.release()


def _write_holder(path: Path) -> None:
    try:
        path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}))
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {path} ({error.strerror}): free some space, or choose another folder, and run the "
            "same command again",
        ) from error


def try_lock(file: IO, path: str | Path, shared: bool = False) -> bool:
    """Locks an open file as long as it is open; False where another process holds it.

    Args:
      path: of the file, for the message.
      shared: together with others that do the same, but with nobody else.

    Raises:
      NoLocksError: the file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise _no_locks(path, error) from error
    return True


def _no_locks(path: str | Path, error: OSError) -> NoLocksError:
    return NoLocksError(
        f"cannot lock {path} ({error.strerror}): this file system has no locks, so two jobs could write the "
        "same files; use a folder on another one"
    )


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return ""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
    return f"process {holder['pid']} on {holder['host']} (since {since})"
