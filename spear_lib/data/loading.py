"""Batches made ahead of time by worker processes, in order, whatever the number of workers (ours, on torch's
DataLoader).

The work of a batch travels to a worker as plain numbers and comes back as arrays in shared memory, so a
worker needs no state, and 0, 1 or many workers give identical batches. Errors of the data come back as
messages and are raised in the main process in one line; a worker that dies (out of memory, killed) is
reported by the DataLoader's watch and never waited for.
"""

import atexit
import logging
import multiprocessing
import os
import signal
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset, get_worker_info

from spear_lib.data.batch import Batch
from spear_lib.data.parcels import Parcel, Sender, unpack
from spear_lib.data.sampling import Pick

logger = logging.getLogger(__name__)

Work = tuple[int, int, list[Pick], list[Pick]]
"""(epoch, batch index, this rank's cuts, cuts of the global batch)"""


class _Failure:
    """An expected error of a worker: kind and message for the user, the worker's traceback for debugging."""

    def __init__(self, error: Exception) -> None:
        self.kind = type(error) if type(error) in (ValueError, RuntimeError) else RuntimeError
        self.message = str(error) if self.kind is type(error) else f"{type(error).__name__}: {error}"
        self.traceback = traceback.format_exc()

    def reraise(self) -> None:
        logger.debug("in a data worker:\n%s", self.traceback)
        raise self.kind(self.message)


class _Made(Dataset):
    """Batch number i of a sequence of works; a KeyError or the like is a bug and travels with its whole
    traceback."""

    def __init__(self, make: Callable[[Work], Batch], works: Sequence[Work], sender: Sender) -> None:
        self.make, self.works, self.sender = make, works, sender

    def __len__(self) -> int:
        return len(self.works)

    def __getitem__(self, index: int) -> dict[str, Any] | Parcel | _Failure:
        try:
            made = self.make(self.works[index]).to_numpy()
            return self.sender.pack(made) if get_worker_info() is not None else made
        except (ValueError, RuntimeError, OSError, EOFError) as error:
            return _Failure(error)


def _identity(value: Any) -> Any:
    return value


class _Ending:
    """A byte shared with the workers: 1 once the main process wants them gone."""

    alive: "weakref.WeakSet[_Ending]" = weakref.WeakSet()

    def __init__(self) -> None:
        self.flag = multiprocessing.RawValue("b", 0)
        self.alive.add(self)

    @classmethod
    def all_of_them(cls) -> None:
        for ending in cls.alive:
            ending.flag.value = 1


# Runs before multiprocessing's own exit function, which terminates workers and waits for them.
atexit.register(_Ending.all_of_them)


class _StartWorker:
    """Signals to the whole process group (scheduler, timeout, Ctrl-C) are the main process's to handle.

    It saves, then ends its workers; workers that died at once would look like a crash.
    """

    def __init__(self, flag: Any) -> None:
        self.flag = flag

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self.terminate)

    def terminate(self, number: int, frame: Any) -> None:
        if self.flag.value:
            os._exit(0)


def load_ahead(
    make: Callable[[Work], Batch],
    works: Sequence[Work],
    num_workers: int,
    prefetch: int = 4,
    timeout: float = 600.0,
) -> Iterator[Batch]:
    """``make(work)`` for each of ``works``, in order.

    Args:
      make: picklable where processes are spawned rather than forked.
      works: what each batch consists of.
      num_workers: worker processes; 0 makes the batches in this process.
      prefetch: batches that each worker makes ahead.
      timeout: seconds after which a batch that does not come is an error.

    Raises:
      ValueError, RuntimeError: what ``make`` raised; or a worker died or got stuck.
    """
    # A worker has at most ``prefetch`` batches on their way, and we map each before asking for the next.
    made = _Made(make, works, Sender(keep=prefetch + 2))
    if num_workers == 0 or len(works) == 0:
        results: Any = (made[index] for index in range(len(works)))
        yield from (_checked(result) for result in results)
        return
    ending = _Ending()
    loader = DataLoader(
        made,
        batch_size=None,
        shuffle=False,
        num_workers=min(num_workers, len(works)),
        collate_fn=_identity,
        prefetch_factor=prefetch,
        timeout=timeout,
        worker_init_fn=_StartWorker(ending.flag),
    )
    results = iter(loader)
    try:
        for _ in range(len(works)):
            yield _checked(_next(results))
    finally:
        ending.flag.value = 1
        del results  # ends the workers, also when an error's traceback keeps this frame alive


def _next(results: Iterator[Any]) -> dict[str, Any] | _Failure:
    try:
        return unpack(next(results))
    except (RuntimeError, OSError) as error:
        raise RuntimeError(
            f"a data worker ended or got stuck ({str(error).splitlines()[0]}); it may have been killed "
            "for memory: lower num_workers or batch_seconds, or set num_workers to 0 to see the error"
        ) from error


def _checked(result: dict[str, Any] | _Failure) -> Batch:
    if isinstance(result, _Failure):
        result.reraise()
    return Batch.from_numpy(result)
