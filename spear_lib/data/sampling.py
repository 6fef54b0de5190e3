"""Which cuts form which batch: global batches of similar durations, the same for any number of processes
(ours).

A plan of an epoch is a pure function of (durations, batch_seconds, seed, epoch), computed at once from the
durations of an indexed manifest. So a position in the data is two integers (epoch, batch index), resuming
costs no replay of batches, and one process and many processes train on the same global batches: a rank
merely takes its share.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spear_lib.keyed_random import generator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochPlan:
    """Batches of one epoch: batch i holds the cuts ``order[starts[i]:ends[i]]``."""

    order: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, index: int) -> list[int]:
        return self.order[self.starts[index] : self.ends[index]].tolist()


class BatchSampler:
    """Global batches by duration and each rank's balanced share of them.

    Cuts are sorted by their duration times a random factor in [1 - jitter, 1 + jitter] drawn anew each epoch
    (buckets without edges: batch mates are of similar duration and differ between epochs) and cut into runs
    whose *padded* duration, longest cut times number of cuts, fits ``batch_seconds``. No cut is dropped or
    repeated.

    Args:
      durations: seconds of each cut.
      batch_seconds: padded audio seconds of a batch over ALL ranks.
      seed: of the shuffling.
      rank, world_size: this process and the number of processes.
      shuffle: False for validation: longest batches last, the same in every epoch, each cut exactly once.
      jitter: relative range of the random factor.
      max_cuts: most cuts in a global batch, None for no limit.

    Raises:
      ValueError: no cuts, fewer cuts than processes, or values that make no sense.
    """

    def __init__(
        self,
        durations: np.ndarray,
        batch_seconds: float,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        jitter: float = 0.1,
        max_cuts: int | None = None,
    ) -> None:
        self.durations = np.asarray(durations, dtype=np.float64)
        self.batch_seconds = float(batch_seconds)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.shuffle, self.jitter, self.max_cuts = shuffle, jitter, max_cuts
        self._check()
        self.epoch = 0
        self.index = 0
        self._plan: tuple[int, EpochPlan] | None = None
        self._warn_of_small_batches()

    def _check(self) -> None:
        if self.durations.ndim != 1 or self.durations.size == 0:
            raise ValueError(
                "no cuts to form batches of: the manifest is empty or all cuts were filtered out"
            )
        if not np.all(np.isfinite(self.durations)) or self.durations.min() <= 0.0:
            bad = int(np.argmin(np.where(np.isfinite(self.durations), self.durations, -1.0)))
            raise ValueError(
                f"cut number {bad} has a duration of {self.durations[bad]} s; durations must be positive"
            )
        if not self.batch_seconds > 0.0:
            raise ValueError(f"batch_seconds is {self.batch_seconds}, expected a positive number of seconds")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} does not exist among {self.world_size} processes")
        if not 0.0 <= self.jitter < 1.0:
            raise ValueError(f"jitter is {self.jitter}, expected a share between 0 and 1")
        if self.max_cuts is not None and self.max_cuts < self.world_size:
            raise ValueError(
                f"max_cuts is {self.max_cuts}: {self.world_size} processes need at least one cut each"
            )
        if self.durations.size < self.world_size:
            raise ValueError(
                f"{self.durations.size} cuts cannot be shared by {self.world_size} processes: use fewer "
                f"processes"
            )

    def _warn_of_small_batches(self) -> None:
        longest = float(self.durations.max())
        if longest * self.world_size > self.batch_seconds:
            logger.warning(
                "batch_seconds %.1f (over all %d processes) is less than one longest cut (%.1f s) per "
                "process: batches "
                "of long cuts will exceed it; raise batch_seconds or lower max_duration",
                self.batch_seconds,
                self.world_size,
                longest,
            )

    def plan(self, epoch: int) -> EpochPlan:
        """The global batches of an epoch (the last one asked for is kept)."""
        kept_epoch = epoch if self.shuffle else 0
        if self._plan is None or self._plan[0] != kept_epoch:
            self._plan = (kept_epoch, self._make_plan(kept_epoch))
        return self._plan[1]

    def _make_plan(self, epoch: int) -> EpochPlan:
        if self.shuffle:
            random = generator("batches", self.seed, epoch)
            factor = 1.0 + self.jitter * random.uniform(-1.0, 1.0, size=self.durations.size)
            # permutation first: cuts of exactly the same duration must not stay neighbours when jitter is 0
            order = random.permutation(self.durations.size)
            order = order[np.argsort((self.durations * factor)[order], kind="stable")]
        else:
            order = np.argsort(self.durations, kind="stable")
        ends = self._cut(self.durations[order])
        starts = np.concatenate(([0], ends[:-1]))
        if self.shuffle:
            batches = random.permutation(len(ends))
            starts, ends = starts[batches], ends[batches]
        return EpochPlan(order, starts, ends)

    def _cut(self, durations: np.ndarray) -> np.ndarray:
        """Ends of the batches along cuts in their order."""
        total = len(durations)
        ends: list[int] = []
        start = 0
        guess = 64
        while start < total:
            window = durations[start : start + guess]
            cost = np.maximum.accumulate(window) * np.arange(1, len(window) + 1)
            fitting = int(np.searchsorted(cost, self.batch_seconds, side="right"))  # cost is increasing
            if (
                fitting == guess
                and start + guess < total
                and (self.max_cuts is None or fitting < self.max_cuts)
            ):
                guess *= 2
                continue
            count = max(fitting, self.world_size)
            if self.max_cuts is not None:
                count = min(count, self.max_cuts)
            start = min(start + count, total)
            ends.append(start)
            guess = max(16, 2 * count)
        return np.asarray(self._balance_end(durations, ends), dtype=np.int64)

    def _balance_end(self, durations: np.ndarray, ends: list[int]) -> list[int]:
        """Evens out a small last batch with the one before it, so that no step is taken on a handful of
        cuts."""
        if len(ends) < 2:
            return ends
        first = ends[-3] if len(ends) > 2 else 0
        middle, last = ends[-2], ends[-1]
        small = (last - middle) * durations[middle:last].max() < 0.5 * self.batch_seconds
        half = first + (last - first + 1) // 2
        if small and half < middle:
            costs = (half - first) * durations[first:half].max(), (last - half) * durations[half:last].max()
            if max(costs) <= self.batch_seconds:
                return [*ends[:-2], half, last]
        if last - middle < self.world_size:
            return [*ends[:-2], last]
        return ends

    def num_batches(self, epoch: int) -> int:
        """Global batches of an epoch, which is also the number of steps of every rank."""
        return len(self.plan(epoch))

    def global_batch(self, epoch: int, index: int) -> list[int]:
        """Cuts of a batch over all ranks, longest first."""
        cuts = self.plan(epoch).batch(index)
        return sorted(cuts, key=lambda cut: (-self.durations[cut], cut))

    def share(self, global_batch: list[int]) -> list[int]:
        """This rank's cuts of a global batch: every world_size-th of the length-sorted batch; never empty."""
        return global_batch[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's shares of the remaining batches of the current epoch; then moves on to the next
        epoch."""
        for index in range(self.index, self.num_batches(self.epoch)):
            cuts = self.share(self.global_batch(self.epoch, index))
            self.index = index + 1
            yield cuts
        self.epoch, self.index = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is: {"epoch", "batch"}; valid for every rank and any number of processes."""
        return {"epoch": self.epoch, "batch": self.index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues at a position; costs one plan, whatever the number of batches seen."""
        missing = {"epoch", "batch"} - state.keys()
        if missing:
            raise ValueError(
                f"sampler state lacks {sorted(missing)}, got {sorted(state)}: not a sampler's state_dict"
            )
        self.epoch, self.index = int(state["epoch"]), int(state["batch"])
