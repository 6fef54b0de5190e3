"""Bad input: counted, named and skipped up to a limit, an error above it (ours)."""

import logging

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 5
MIN_SEEN = 200
"""Below this many items a stream is judged only at its end: the first few say little about the fraction."""


class Problems:
    """Counts what is skipped and why.

    Every item is either good (``good()``) or bad (``bad(kind, name)``). When more than ``max_bad_fraction``
    of them are bad, a ValueError says how many of which kind, names some, and says what to do.

    Args:
      total: how many items there are in all, where that is known: the limit is then a number of items,
        whatever was seen so far.
    """

    def __init__(self, max_bad_fraction: float = 0.01, what: str = "recordings", total: int | None = None):
        if not 0.0 <= max_bad_fraction <= 1.0:
            raise ValueError(f"max_bad_fraction is {max_bad_fraction}, it must be between 0 and 1")
        self.max_bad_fraction = max_bad_fraction
        self.what, self.total = what, total
        self.num_good = 0
        self.notes: dict[str, int] = {}
        """Things worth telling that are not a reason to skip, e.g. {"resampled": 3}."""
        self._bad: dict[str, list[str]] = {}

    @property
    def num_bad(self) -> int:
        """How many items were skipped."""
        return sum(len(names) for names in self._bad.values())

    @property
    def num_seen(self) -> int:
        """How many items there were."""
        return self.num_good + self.num_bad

    def names(self, kind: str) -> list[str]:
        """The items that were skipped for the reason ``kind``."""
        return list(self._bad.get(kind, []))

    def good(self, count: int = 1) -> None:
        """Counts items that are used."""
        self.num_good += count

    def note(self, kind: str, count: int = 1) -> None:
        """Counts something worth telling about good items."""
        self.notes[kind] = self.notes.get(kind, 0) + count

    def bad(self, kind: str, name: str) -> None:
        """Counts an item that is skipped, for the reason ``kind``; ValueError when there are too many."""
        self._bad.setdefault(kind, []).append(name)
        if self.total is not None or self.num_seen >= MIN_SEEN:
            self.check()

    def check(self) -> None:
        """ValueError if more than ``max_bad_fraction`` of the items are bad."""
        total = self.num_seen if self.total is None else self.total
        if self.num_bad > self.max_bad_fraction * total:
            raise ValueError(
                f"{self.num_bad} of {total} {self.what} cannot be used, the limit is "
                f"{100 * self.max_bad_fraction:g} %: {self.describe()}. Repair or remove them, or raise "
                "max_bad_fraction to skip them"
            )

    def describe(self) -> str:
        """One line: the number and some names for each kind of problem; "none" if there is none."""
        parts = []
        for kind, names in sorted(self._bad.items()):
            more = f" and {len(names) - NUM_EXAMPLES} more" if len(names) > NUM_EXAMPLES else ""
            parts.append(f"{len(names)} {kind} ({', '.join(names[:NUM_EXAMPLES])}{more})")
        return "; ".join(parts) or "none"

    def log(self) -> None:
        """Logs what was skipped or noted, if anything."""
        if self._bad:
            logger.warning("skipped %d of %d %s: %s", self.num_bad, self.num_seen, self.what, self.describe())
        for kind, count in sorted(self.notes.items()):
            logger.info("%d of %d %s: %s", count, self.num_seen, self.what, kind)

    def to_dict(self) -> dict:
        """Counts and examples for a statistics file."""
        return {
            "seen": self.num_seen,
            "skipped": self.num_bad,
            "limit": self.max_bad_fraction,
            "kinds": {kind: len(names) for kind, names in sorted(self._bad.items())},
            "examples": {kind: names[:NUM_EXAMPLES] for kind, names in sorted(self._bad.items())},
            "notes": dict(sorted(self.notes.items())),
        }
