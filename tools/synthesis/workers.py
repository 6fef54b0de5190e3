"""Work in fresh processes, a few at a time, with progress (ours)."""

import ctypes
import logging
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from pathlib import Path

from spear_lib.runtime.progress import progress

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1


def _call(function: Callable, job, error_path: str) -> None:
    if sys.platform.startswith("linux"):
        # If the parent is killed, this process must not go on writing beside the next attempt.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        function(job)
    except BaseException:
        Path(error_path).write_text(traceback.format_exc())
        raise SystemExit(1) from None


def run_fresh(
    function: Callable, jobs: Sequence, num_processes: int, folder: Path, description: str, unit: str
) -> None:
    """Calls ``function(job)`` for every job, each in a process of its own.

    Args:
      function: module-level function; what it makes, it writes to files.
      num_processes: how many run at the same time; results must not depend on it.
      folder: an existing folder for the error text of a failed process.
      description, unit: for the progress line.

    Raises:
      RuntimeError: a process failed; the others are stopped.
    """
    for _ in progress(_finished(function, jobs, num_processes, folder), len(jobs), description, unit):
        pass


def _finished(function: Callable, jobs: Sequence, num_processes: int, folder: Path) -> Iterator[int]:
    # A fork of this single-threaded process starts in milliseconds. macOS does not survive forks well.
    context = multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")
    waiting = list(enumerate(jobs))[::-1]
    running: dict[int, tuple[int, multiprocessing.process.BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < max(1, num_processes):
                index, job = waiting.pop()
                error_path = str(folder / f"error-{index}.txt")
                process = context.Process(target=_call, args=(function, job, error_path), daemon=True)
                process.start()
                running[process.sentinel] = (index, process)
            for sentinel in connection.wait(list(running)):
                index, process = running.pop(sentinel)
                process.join()
                if process.exitcode != 0:
                    raise RuntimeError(_failure(index, len(jobs), process.exitcode, folder))
                yield index
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()


def _failure(index: int, count: int, code: int, folder: Path) -> str:
    path = folder / f"error-{index}.txt"
    if path.exists():
        text = path.read_text().strip()
        logger.error("%s", text)
        return f"job {index + 1} of {count} failed: {text.splitlines()[-1]}"
    return (
        f"the process of job {index + 1} of {count} ended with code {code}: it was killed, or memory ran out"
    )
