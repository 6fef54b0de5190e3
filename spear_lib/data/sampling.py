"""Which cuts form which batch: global batches of similar durations, the same for any number of processes
(ours). docs/elastic.md says what follows from it for runs that go on with another number.

A plan of an epoch is a pure function of (durations, selection, batch_seconds, seed, epoch), computed at once
from the durations of an indexed manifest. So a position in the data is two integers (epoch, batch index),
resuming costs no replay of batches, and one process and many processes train on the same global batches: a
rank merely takes its share.
"""

import logging
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from spear_lib.data.selection import Selection, occurrences
from spear_lib.runtime.keyed_random import generator

logger = logging.getLogger(__name__)


class Pick(NamedTuple):
    """A cut in a batch."""

    cut: int
    """Its number."""
    occurrence: int = 0
    """How often the epoch's selection named it before; its random draws differ between them."""


@dataclass(frozen=True)
class EpochPlan:
    """Batches of one epoch: batch i holds the cuts ``cuts[starts[i]:ends[i]]``, each for the time that
    ``occurrences`` says (None: no cut comes twice)."""

    cuts: np.ndarray
    occurrences: np.ndarray | None
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, index: int) -> list[Pick]:
        part = slice(self.starts[index], self.ends[index])
        cuts = self.cuts[part].tolist()
        times = [0] * len(cuts) if self.occurrences is None else self.occurrences[part].tolist()
        return [Pick(*pair) for pair in zip(cuts, times)]


class BatchSampler:
    """Global batches by duration and each rank's balanced share of them.

    Cuts are sorted by their duration times a random factor in [1 - jitter, 1 + jitter] drawn anew each epoch
    (buckets without edges: batch mates are of similar duration and differ between epochs) and cut into runs
    whose *padded* duration, longest cut times number of cuts, fits ``batch_seconds``. Every cut comes as
    often as the epoch's selection names it.

    With ``groups``, the cuts are sorted by their rank among the cuts of their own group instead: each batch
    then holds cuts of every group, in the epoch's proportion, the short ones of one with the short ones of
    another.

    Args:
      durations: seconds of each cut.
      batch_seconds: padded audio seconds of a batch over ALL ranks.
      seed: of the shuffling.
      rank, world_size: this process and the number of processes.
      shares: into how many shares a batch is divided, at least one for each process; 0: one for each. A
        batch has a cut for each share.
      shuffle: False for validation: longest batches last, the same in every epoch, each cut exactly once.
      jitter: relative range of the random factor.
      max_cuts: most cuts in a global batch, None for no limit.
      selection: which cuts an epoch takes; None: every cut once. Without shuffle only epoch 0 is asked for.
      groups: (number of cuts,) group of each cut, for example its domain, where batches shall mix them.

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
        selection: Selection | None = None,
        groups: np.ndarray | None = None,
        shares: int = 0,
    ) -> None:
        self.durations = np.asarray(durations, dtype=np.float64)
        self.batch_seconds = float(batch_seconds)
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.num_shares = self.planned_for = shares or world_size
        self.shuffle, self.jitter, self.max_cuts = shuffle, jitter, max_cuts
        self.selection = selection
        self.groups = groups if groups is not None and len(np.unique(groups)) > 1 else None
        self._check()
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
        if self.num_shares < self.world_size:
            raise ValueError(
                f"data.shares divides batches into {self.num_shares} shares, which {self.world_size} "
                f"processes cannot have: use at most {self.num_shares} processes, or begin a run with "
                f"data.shares 0 (one for each process) or at least {self.world_size}"
            )
        if not 0.0 <= self.jitter < 1.0:
            raise ValueError(f"jitter is {self.jitter}, expected a share between 0 and 1")
        if self.max_cuts is not None and self.max_cuts < self.world_size:
            raise ValueError(
                f"max_cuts is {self.max_cuts}: {self.world_size} processes need at least one cut each"
            )
        if self.durations.size < self.planned_for:
            raise ValueError(
                f"{self.durations.size} cuts cannot be shared by {self.planned_for} processes: use fewer "
                f"processes"
            )

    def _warn_of_small_batches(self) -> None:
        longest = float(self.durations.max())
        if longest * self.planned_for > self.batch_seconds:
            logger.warning(
                "batch_seconds %.1f (over all %d processes) is less than one longest cut (%.1f s) per "
                "process: batches "
                "of long cuts will exceed it; raise batch_seconds or lower max_duration",
                self.batch_seconds,
                self.planned_for,
                longest,
            )

    def divide(self, num_shares: int, planned_for: int) -> None:
        """Divides batches as a run does that was begun otherwise.

        Args:
          num_shares: shares of a batch, at least one for each process.
          planned_for: each batch has that many cuts; fewer than shares leave some of these empty.
        """
        if planned_for != self.planned_for:
            self._plan = None
        self.num_shares, self.planned_for = num_shares, planned_for

    def plan(self, epoch: int) -> EpochPlan:
        """The global batches of an epoch (the last one asked for is kept)."""
        kept_epoch = epoch if self.shuffle else 0
        if self._plan is None or self._plan[0] != kept_epoch:
            self._plan = (kept_epoch, self._make_plan(kept_epoch))
        return self._plan[1]

    def _make_plan(self, epoch: int) -> EpochPlan:
        selected, times = self._select(epoch)
        durations = self.durations[selected]
        if self.shuffle:
            random = generator("batches", self.seed, epoch)
            factor = 1.0 + self.jitter * random.uniform(-1.0, 1.0, size=len(selected))
            # permutation first: cuts of exactly the same duration must not stay neighbours when jitter is 0
            order = random.permutation(len(selected))
            order = order[np.argsort((durations * factor)[order], kind="stable")]
            if self.groups is not None:
                order = self._interleave(order, self.groups[selected])
        else:
            order = np.argsort(durations, kind="stable")
        ends = self._cut(durations[order])
        starts = np.concatenate(([0], ends[:-1]))
        if self.shuffle:
            batches = random.permutation(len(ends))
            starts, ends = starts[batches], ends[batches]
        return EpochPlan(selected[order], None if times is None else times[order], starts, ends)

    def _select(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The epoch's cuts, repeats allowed, and the occurrence of each."""
        if self.selection is None:
            return np.arange(self.durations.size), None
        selected = np.asarray(self.selection(epoch), dtype=np.int64)
        if len(selected) < self.planned_for:
            raise ValueError(
                f"epoch {epoch} takes {len(selected)} cuts, which {self.planned_for} processes cannot share: "
                "raise the weights or the number of samples per epoch, or use fewer processes"
            )
        times = occurrences(selected)
        return selected, times if times.any() else None

    @staticmethod
    def _interleave(order: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """``order`` (n,), sorted by length, as one row of all ``groups`` (n,), sorted by the rank in the own
        one."""
        rank = np.empty(len(order))
        of_order = groups[order]
        for group in np.unique(groups):
            rows = np.flatnonzero(of_order == group)
            rank[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
        return order[np.argsort(rank, kind="stable")]

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
            count = max(fitting, self.planned_for)
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
        if small and half < middle and last - half >= self.planned_for:
            costs = (half - first) * durations[first:half].max(), (last - half) * durations[half:last].max()
            if max(costs) <= self.batch_seconds:
                return [*ends[:-2], half, last]
        # A cut for every share: taken from the batch before, and so on.
        for number in range(len(ends) - 1, 0, -1):
            ends[number - 1] = min(ends[number - 1], ends[number] - self.planned_for)
        return ends if ends[0] >= self.planned_for else ends[1:]

    def num_batches(self, epoch: int) -> int:
        """Global batches of an epoch, which is also the number of steps of every rank."""
        return len(self.plan(epoch))

    def largest(self, epoch: int) -> int:
        """The batch of an epoch that needs the most memory: of those whose padded share of a process is
        within 10 % of the largest one, that of the longest cut (attention grows with the square of it)."""
        plan = self.plan(epoch)
        by_start = np.argsort(plan.starts)
        longest = np.empty(len(plan))
        longest[by_start] = np.maximum.reduceat(self.durations[plan.cuts], plan.starts[by_start])
        padded = longest * -(-(plan.ends - plan.starts) // self.num_shares)
        return int(np.where(padded >= 0.9 * padded.max(), longest, 0.0).argmax())

    def picks(self, epoch: int, index: int) -> list[Pick]:
        """What a batch holds over all ranks, longest first."""
        picks = self.plan(epoch).batch(index)
        return sorted(picks, key=lambda pick: (-self.durations[pick.cut], *pick))

    def global_batch(self, epoch: int, index: int) -> list[int]:
        """Cuts of a batch over all ranks, longest first."""
        return [pick.cut for pick in self.picks(epoch, index)]

    def smallest(self, epoch: int) -> int:
        """Cuts of the batch of an epoch that has the fewest."""
        plan = self.plan(epoch)
        return int((plan.ends - plan.starts).min())

    @property
    def turns(self) -> int:
        """How many shares of each batch this process takes, one after the other."""
        return len(range(self.rank, self.num_shares, self.world_size))

    def share(self, global_batch: list, turn: int = 0) -> list:
        """This rank's part of a global batch in its turn number ``turn``: of the length-sorted batch every
        num_shares-th cut. Never empty where the batch was planned for as many shares."""
        return global_batch[self.rank + turn * self.world_size :: self.num_shares]
