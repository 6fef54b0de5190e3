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
from spear_lib.runtime.log import printable_output, setup_logging
from spear_lib.training.health import STATUS_INTERRUPTED

STATUS_KEYBOARD = 130
"""Exit status after Ctrl-C, as of a shell."""


def run(main: Callable[[], None]) -> None:
    """Run a command: whatever goes wrong ends it with one clear line and status 1, never with a traceback.

    SPEAR_DEBUG=1 shows the traceback as well. Wall time and peak memory are appended to the file named by
    SPEAR_STAGE_METRICS, from which the stage runner of egs/common makes the table of the report. A command
    that saved its state on a signal (status 75) makes the file SPEAR_INTERRUPTED_NOTE, because torchrun ends
    with 1 whatever the status of its processes.
    """
    setup_logging()
    printable_output()
    started = time.monotonic()
    try:
        threads.use_threads()
        main()
        sys.stdout.flush()
    except BrokenPipeError as error:
        # The reader had enough (| head). Python would complain again when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from error
    except KeyboardInterrupt as stop:
        print("error: stopped by the keyboard (Ctrl-C)", file=sys.stderr)
        raise SystemExit(STATUS_KEYBOARD) from stop
    except Exception as error:
        if os.environ.get("SPEAR_DEBUG") == "1":
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from error
    except SystemExit as stop:
        note = os.environ.get("SPEAR_INTERRUPTED_NOTE")
        if stop.code == STATUS_INTERRUPTED and note:
            Path(note).touch()
        raise
    finally:
        _append_metrics(time.monotonic() - started)


def one_line(error: Exception) -> str:
    """What a user reads of an error.

    ValueError, RuntimeError and OSError are written for users here and say what to do. Anything else was not
    foreseen: the line then says what it is and where it arose, which is what a report of it needs.
    """
    if isinstance(error, MemoryError):
        return "out of memory: give the command more, or lower its batch_seconds or num_workers"
    if isinstance(error, ValueError | RuntimeError | OSError) and not isinstance(error, RecursionError):
        text = str(error)
        if isinstance(error, OSError) and error.strerror:  # "[Errno 28]" says nothing to a user
            text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    else:
        frame = (traceback.extract_tb(error.__traceback__) or [None])[-1]
        place = f" in {Path(frame.filename).name}, line {frame.lineno}" if frame else ""
        text = (
            f"unexpected {type(error).__name__}{place}: {error}. Look at the input named last above; "
            "SPEAR_DEBUG=1 shows the whole trace for a report"
        )
    return " ".join(text.split()) or type(error).__name__


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
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:  # the work is done, or its own error was said
        print(f"the cost of the command is not noted in {path} ({error.strerror})", file=sys.stderr)
