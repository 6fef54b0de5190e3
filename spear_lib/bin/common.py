"""What every command shares: one-line errors, and the measurement of its cost."""

import json
import os
import resource
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from spear_lib.runtime import threads
from spear_lib.runtime.log import setup_logging
from spear_lib.training.health import STATUS_INTERRUPTED


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


def command_line(module: str, argv: list[str] | None) -> str:
    """The command as one types it; ``argv``: what its ``main`` was given, None: the process's own."""
    return shlex.join(["python", "-m", module, *(sys.argv[1:] if argv is None else argv)])


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
