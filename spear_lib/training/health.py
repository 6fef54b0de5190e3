"""Signs that a run went wrong, found before they reach the weights or the night is over (ours)."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

STATUS_INTERRUPTED = 75
"""Exit status after SIGTERM or SIGUSR1: all is saved, and the same command goes on from it (EX_TEMPFAIL
of sysexits.h). A batch system can requeue on it. torchrun reports it in its table and itself ends with 1."""


_NAMED = 20  # cuts of a bad batch that its message names


class LossGuard:
    """Finds a non-finite loss before the optimiser step, without making a GPU wait.

    ``watch`` starts a copy of the loss to the host behind the forward; ``check`` is called after backward was
    queued, when that copy is long done, so the device always has work in front of it.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self._pending: list[tuple[Tensor, Any, Any]] = []

    def watch(self, loss: Tensor, batch: Any) -> None:
        loss = loss.detach()
        event = None
        if loss.is_cuda:
            host = torch.empty((), dtype=loss.dtype, pin_memory=True)
            host.copy_(loss, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            loss = host
        self._pending.append((loss, event, batch))

    def check(self, step: int) -> None:
        """Raises RuntimeError, after saving the batch, if a watched loss is not finite."""
        pending, self._pending = self._pending, []
        for loss, event, batch in pending:
            if event is not None:
                event.synchronize()
            if not torch.isfinite(loss):
                path = self.folder / f"bad-batch-step-{step:08d}-rank-{self.rank}.pt"
                torch.save(_plain(batch), path)
                raise RuntimeError(
                    f"the loss is {loss.item()} at step {step}, before the optimiser step; no weight was "
                    f"changed. Its cuts are {_some_ids(batch)}; the batch is saved in {path} (torch.load "
                    "reads it). Look at those cuts for damaged audio; if they are sound, lower the learning "
                    "rate or use a wider number format, and run again: it goes on from the last checkpoint"
                )


def _some_ids(batch: Any) -> str:
    ids = batch.get("ids", []) if isinstance(batch, dict) else getattr(batch, "ids", [])
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(map(str, ids[:_NAMED])) + more


def _plain(batch: Any) -> dict[str, Any]:
    """Fields of a batch as plain values and host tensors, readable with weights_only=True."""
    fields = batch if isinstance(batch, dict) else vars(batch)
    plain = {}
    for name, value in fields.items():
        if isinstance(value, Tensor):
            plain[name] = value.detach().cpu()
        elif isinstance(value, dict):
            plain[name] = {k: v.detach().cpu() if isinstance(v, Tensor) else v for k, v in value.items()}
        elif isinstance(value, (int, float, str, bool, list, tuple)) or value is None:
            plain[name] = value
        else:
            plain[name] = repr(value)
    return plain


class SkippedSteps:
    """Counts the steps that the optimiser refused for non-finite gradients, and ends a hopeless run."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._before = 0
        self._in_a_row = 0

    def update(self, total: int, steps: int, step: int) -> None:
        """Called when logging: ``total`` skipped since the start of this process, ``steps`` since the last
        call."""
        new = total - self._before
        self._before = total
        self._in_a_row = self._in_a_row + new if new >= steps > 0 else 0
        if new:
            logger.warning(
                "%d of the last %d steps were skipped: their gradients were not finite", new, steps
            )
        if self._in_a_row >= self.limit:
            raise RuntimeError(
                f"{self._in_a_row} steps in a row were skipped for non-finite gradients up to step {step} "
                f"(limit max_skipped_steps = {self.limit}): lower the learning rate or use precision fp32"
            )


class Stopped(Exception):
    """A signal came while something was measured that can be begun again; nothing is to be saved."""


class StopRequest:
    """Whether this process was asked to stop by a signal."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def exit(self, step: int) -> NoReturn:
        """Ends the process, with everything saved at ``step``."""
        name = self.signal_name or "a signal to another process"
        logger.info("%s: saved step %d, exit status %d", name, step, STATUS_INTERRUPTED)
        raise SystemExit(STATUS_INTERRUPTED)


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """While inside, SIGTERM and SIGUSR1 are noted instead of ending the process; the loop then saves and
    exits."""
    request = StopRequest()

    def note(number: int, _frame: Any) -> None:
        request.signal_name = signal.Signals(number).name

    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = {}
    try:
        for number in numbers:
            before[number] = signal.signal(number, note)
    except ValueError:  # signal handlers can be set in the main thread only; a caller elsewhere has its own
        before = {}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
