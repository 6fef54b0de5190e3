"""Which cuts an epoch takes, and how often: all of them once, or corpora by stated shares (ours).

A *selection* is a function of the epoch alone, ``selection(epoch) -> (n,) int64 positions``, in which a
position may come several times. Whoever makes one keys its draws by (seed, epoch), so that the plan of any
epoch can be made at once and resuming costs nothing.
"""

from collections.abc import Callable

import numpy as np

from spear_lib.runtime.keyed_random import generator

Selection = Callable[[int], np.ndarray]
"""epoch -> positions of the cuts that it takes, (n,) int64, repeats allowed; a pure function of (seed,
epoch)."""

BY_HOURS, BY_CUTS = "hours", "cuts"


class RepeatedCorpora:
    """Every corpus as often as its repeat factor says.

    A corpus of n cuts with factor r gives each epoch r n cuts (rounded): the next ones of an endless row of
    passes over the corpus, each pass in an order of its own. So r = 1 is every cut once, r = 3 every cut
    three times, r = 0.5 one half in the even epochs and the other half in the odd ones; in the long run all
    cuts of a corpus come equally often.

    Args:
      sizes: number of cuts of each corpus; the cuts of the corpora follow each other.
      repeats: factor of each corpus, 0 or more.
      seed: of the passes' orders.
    """

    def __init__(self, sizes: list[int], repeats: list[float], seed: int = 0) -> None:
        self.sizes, self.seed = sizes, seed
        self.counts = [round(size * factor) for size, factor in zip(sizes, repeats)]
        """Cuts of each corpus in an epoch."""

    def __call__(self, epoch: int) -> np.ndarray:
        parts, start = [], 0
        for corpus, (size, count) in enumerate(zip(self.sizes, self.counts)):
            parts.append(start + self._of_corpus(corpus, size, epoch * count, count))
            start += size
        return np.concatenate(parts)

    def _of_corpus(self, corpus: int, size: int, begin: int, count: int) -> np.ndarray:
        """Cuts ``begin`` .. ``begin + count - 1`` of the endless row, sorted."""
        taken = []
        for number in range(begin // size, -(-(begin + count) // size)):
            first, last = max(begin - number * size, 0), min(begin + count - number * size, size)
            whole = last - first == size
            order = (
                np.arange(size) if whole else generator("pass", self.seed, corpus, number).permutation(size)
            )
            taken.append(order[first:last])
        return np.sort(np.concatenate(taken)) if taken else np.empty(0, dtype=np.int64)


def repeat_factors(
    hours: list[float], num_cuts: list[int], weights: str | list[float], repeats: list[float]
) -> list[float]:
    """How often an epoch takes each corpus.

    Weights are shares of an epoch's *audio*, whatever their sum; the epoch then lasts as long as all corpora
    together, so a corpus above its natural share is repeated and one below it is spread over several epochs.

    Args:
      hours: of each corpus.
      num_cuts: of each corpus.
      weights: "hours" (the natural share: every cut once), "cuts" (in proportion to the number of cuts), or a
        number for each corpus.
      repeats: a factor for each corpus, in place of weights; none: no repeats.

    Raises:
      ValueError: a wrong number of values, values that are no shares, or weights and repeats together.
    """
    if repeats:
        if weights != BY_HOURS:
            raise ValueError(
                f"train_repeats is {repeats} and train_weights is {weights}: both say how much of each "
                "corpus an epoch takes; give one of them"
            )
        _check(repeats, hours, "train_repeats")
        return [float(factor) for factor in repeats]
    if weights == BY_HOURS:
        return [1.0] * len(hours)
    if isinstance(weights, str):
        if weights != BY_CUTS:
            raise ValueError(f"train_weights is {weights!r}: use {BY_HOURS}, {BY_CUTS} or a list of numbers")
        weights = [float(count) for count in num_cuts]
    _check(weights, hours, "train_weights")
    total = sum(hours) / sum(weights)
    return [total * weight / own if weight else 0.0 for weight, own in zip(weights, hours)]


def _check(values: list[float], hours: list[float], option: str) -> None:
    if len(values) != len(hours):
        raise ValueError(
            f"{option} has {len(values)} values for {len(hours)} manifests in train_cuts: give one for each"
        )
    if not all(0.0 <= value < float("inf") for value in values):
        raise ValueError(f"{option} is {values}: expected numbers of 0 or more")
    if sum(values) == 0.0:
        raise ValueError(f"{option} is {values}, which adds up to 0: no corpus would be trained on")
    for number, (value, own) in enumerate(zip(values, hours)):
        if value and not own:
            raise ValueError(
                f"{option} gives {value:g} to manifest {number} of train_cuts, which has no usable cut: see "
                "min_duration and max_duration, or leave it out"
            )


def occurrences(selected: np.ndarray) -> np.ndarray:
    """0 where a position comes for the first time in ``selected`` (n,), 1 for the second time, ...; (n,)
    int64."""
    order = np.argsort(selected, kind="stable")
    grouped = selected[order]
    first = np.flatnonzero(np.concatenate(([True], grouped[1:] != grouped[:-1])))
    sizes = np.diff(np.append(first, len(grouped)))
    numbers = np.empty(len(selected), dtype=np.int64)
    numbers[order] = np.arange(len(selected)) - np.repeat(first, sizes)
    return numbers
