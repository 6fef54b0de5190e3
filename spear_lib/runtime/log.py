"""What a command says first: the format of its messages, and what runs, where and with what (ours)."""

import logging
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from spear_lib.runtime import threads

logger = logging.getLogger(__name__)


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
    for name in ("lhotse", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)


def printable_output() -> None:
    """From here on standard output and error write what the terminal's encoding lacks as escapes (\\u65e5),
    so that a file's name cannot end a command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


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
