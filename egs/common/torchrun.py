"""torchrun for the recipes: training is told to stop by the signals that torchrun does not survive (ours).

    python torchrun.py NOTE python -m torch.distributed.run ... -m spear_lib.bin.pretrain ...

SIGUSR1 and SIGTERM go to the processes that torchrun started, as SIGUSR1: they save their state and end with
status 75. torchrun itself would die of the first, and give them 30 seconds after the second. Afterwards it
ends with status 1 whatever theirs was; the file NOTE, which they leave (spear_lib.bin.common), tells 75 from
a failure. Called by stages.sh only.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

INTERRUPTED = 75
AGAIN_SECONDS = 2.0
"""A process that does not listen yet (it imports torch, say) ignores the signal: it is repeated."""


def children(parent: int) -> list[int]:
    """Processes that ``parent`` started."""
    # In a session of its own: signals for the group of this process would end ps too.
    table = subprocess.run(
        ["ps", "-A", "-o", "pid=", "-o", "ppid="], capture_output=True, text=True, start_new_session=True
    )
    pairs = (line.split() for line in table.stdout.splitlines())
    return [int(pid) for pid, its_parent in pairs if int(its_parent) == parent]


def main(argv: list[str] | None = None) -> int:
    """The status of the training."""
    note, *command = sys.argv[1:] if argv is None else argv
    told = False

    def stop(_number: int, _frame: Any) -> None:
        nonlocal told
        told = True

    # Ignored by torchrun and by its processes until they have handlers of their own; noted from now on here.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # Signals for the group of this process must not reach torchrun as well.
    launcher = subprocess.Popen(
        command, env={**os.environ, "SPEAR_INTERRUPTED_NOTE": note}, start_new_session=True
    )
    signal.signal(signal.SIGUSR1, stop)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, lambda number, _frame: launcher.send_signal(number))
    while True:
        try:
            status = launcher.wait(timeout=AGAIN_SECONDS)
            break
        except subprocess.TimeoutExpired:
            if told:
                for child in children(launcher.pid):
                    with suppress(ProcessLookupError):  # it has just ended
                        os.kill(child, signal.SIGUSR1)
    if status != 0 and Path(note).exists():
        return INTERRUPTED
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
