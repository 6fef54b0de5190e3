"""What the loop needs of data and batches; tasks need more of their own (DESIGN §4; ours)."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch


class TrainingBatch(Protocol):
    """One rank's share of a global batch; its attributes are saved when the loss is not finite."""

    audio_seconds: float
    """Valid audio, s."""
    padded_seconds: float
    """Audio with its padding, s."""
    statistics: dict[str, tuple[float, int]]
    """Name -> (sum, count) of what was done to the data (mixing and the like), reported as ``data/<name>``;
    may be empty."""

    counts: bool
    """False: it only keeps this rank in step with the others; its loss is not learnt from."""

    def __len__(self) -> int:
        """Utterances; an empty batch is passed over, by all ranks alike."""

    def to(self, device: torch.device) -> "TrainingBatch":
        """The same batch with its tensors on ``device``."""


class ValidationData(Protocol):
    """A set that is gone through as a whole; its epoch 0 is used every time."""

    def epoch_batches(self, epoch: int, start_batch: int) -> Iterator[TrainingBatch]:
        """This rank's share of the global batches ``start_batch``, ``start_batch`` + 1, ... of an epoch. The
        same arguments give the same batches."""


class TrainingData(ValidationData, Protocol):
    """What is trained on, epoch after epoch."""

    fingerprint: str | None
    """Equal where the same options give the same batches; None: not known, and not checked on resume."""
    targets_fingerprint: str | None
    """Equal where the same cuts have the same targets (transcripts, labels, tokens); None as above."""

    def num_batches(self, epoch: int) -> int:
        """Global batches of an epoch."""

    def batching(self, epoch: int) -> str:
        """Equal where an epoch is divided into the same batches."""

    def largest_batch(self, epoch: int) -> TrainingBatch:
        """This rank's share of the batch of an epoch that needs the most memory."""


@runtime_checkable
class DivisibleData(Protocol):
    """Training data whose global batches a process can take in several shares, one after the other, so that a
    run can go on with fewer processes exactly (docs/elastic.md). Other data give one share to each."""

    def division(self) -> dict[str, int]:
        """How global batches are divided: arguments of ``divide``."""

    def divide(self, shares: int, planned_for: int) -> None:
        """Divides global batches into ``shares``, at least one for each process; each batch has a cut for
        ``planned_for`` of them."""

    def smallest_batch(self, epoch: int) -> int:
        """Utterances of the global batch of an epoch that has the fewest."""


def ends_batch(batch: TrainingBatch) -> bool:
    """Whether it is the last of the shares of a global batch that this process takes; batches that do not say
    so are."""
    return getattr(batch, "last_share", True)
