"""What every command shares: the header of its log, one-line errors, and the measurement of its cost."""

import json
import logging
import os
import platform
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from spear_lib.runtime import threads
from spear_lib.training.health import STATUS_INTERRUPTED

logger = logging.getLogger(__name__)


def run(main: Callable[[], None]) -> None:
    """Run a command: conditions a user can mend end it with one clear line and status 1.

    SPEAR_DEBUG=1 shows the traceback as well. Wall time and peak memory are appended to the file named by
    SPEAR_STAGE_METRICS, from which the stage runner of egs/common makes the table of the report. A command
    that saved its state on a signal (status 75) makes the file SPEAR_INTERRUPTED_NOTE, because torchrun ends
    with 1 whatever the status of its processes.
    """
    setup_logging()
    started = time.monotonic()
    try:
        threads.use_threads()
        main()
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("SPEAR_DEBUG") == "1":
            traceback.print_exc()
        # "[Errno 28]" says nothing where the text says what, which file and what to do.
        worded = isinstance(error, OSError) and error.strerror and error.filename is None
        message = str(error.strerror if worded else error)
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        raise SystemExit(1) from error
    except SystemExit as stop:
        note = os.environ.get("SPEAR_INTERRUPTED_NOTE")
        if stop.code == STATUS_INTERRUPTED and note:
            Path(note).touch()
        raise
    finally:
        _append_metrics(time.monotonic() - started)


def as_list(value: str | list[str]) -> list[str]:
    """An option that takes one value or several, as a list."""
    return [value] if isinstance(value, str) else list(value)


def setup_logging() -> None:
    """Messages of the library on standard error, one line each, with the time."""
    rank = os.environ.get("RANK")
    prefix = f"[rank {rank}] " if rank and int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s {prefix}%(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    # lhotse and matplotlib have much to say about themselves.
    for name in ("lhotse", "matplotlib", "numba"):
        logging.getLogger(name).setLevel(logging.WARNING)


def peak_memory_mb() -> float:
    """Largest resident memory of this process and of its finished children, in MB."""
    kilobytes = max(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
    )
    return kilobytes / 1024


def _append_metrics(wall_seconds: float) -> None:
    path = os.environ.get("SPEAR_STAGE_METRICS")
    if not path:
        return
    line = {
        "command": " ".join(sys.argv),
        "wall_seconds": round(wall_seconds, 2),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def first_screen(title: str, facts: dict[str, object]) -> None:
    """Log what runs, where and with what, in lines that a newcomer can read.

    Args:
      title: what this command is about to do, in a few words.
      facts: what matters to this run (name -> value), in order.
    """
    lines = {
        "command": " ".join([Path(sys.argv[0]).stem, *sys.argv[1:]]),
        "code": commit(),
        "versions": versions(),
        "device": device_name(),
        "threads": threads.described(),
        **facts,
    }
    width = max(len(name) for name in lines)
    logger.info("%s", title)
    for name, value in lines.items():
        logger.info("  %s  %s", name.ljust(width), value)


def commit() -> str:
    """Commit of the code that runs, with a mark when files differ from it; 'unknown' outside a checkout."""
    folder = Path(__file__).resolve().parent
    try:
        revision = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"
    return f"commit {revision}" + (" with uncommitted changes" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    )
    return result.stdout.strip()


def versions() -> str:
    """Versions of what decides the numbers."""
    import lhotse
    import numpy

    return (
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"lhotse {lhotse.__version__}, numpy {numpy.__version__}"
    )


def device_name() -> str:
    """The device a command computes on, and why."""
    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name()})"
    return "cpu (no CUDA device is visible)"
