"""Cuts in, batches out: what the data of pre-training, ASR and tagging share.

All give ``epoch_batches(epoch, start_batch)``: this rank's share of the global batches, made ahead by worker
processes. Everything random is keyed by (seed, epoch, cut id), and partners for mixing come from the
*global* batch, so batches do not depend on the number of processes or workers, nor on where a run was
interrupted.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from spear_lib.data.batch import Batch
from spear_lib.data.loading import Work, load_ahead
from spear_lib.data.manifests import Manifest
from spear_lib.data.mixing import MixingConfig
from spear_lib.data.sampling import BatchSampler

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadingConfig:
    """Which cuts are read, and how they become batches."""

    train_cuts: list[str] = field(default_factory=list)
    """Manifests of the cuts to train on (.jsonl.gz), with tokens, transcripts or labels as the task needs."""
    noise_cuts: list[str] = field(default_factory=list)
    """Manifests of noise for noise mixing; none: noise mixing is off."""
    mixing: MixingConfig = field(default_factory=MixingConfig)
    batch_seconds: float = 200.0
    """Padded audio of a batch over ALL processes, s (ours: the mini preset's order of size)."""
    min_duration: float = 0.5
    """Shorter cuts are left out, s (ours: an encoder frame needs 0.085 s, a mask 0.1 s)."""
    max_duration: float = 30.0
    """Longer cuts are left out, s (ours; spec teachers: WavLM embeds at most 30 s)."""
    duration_jitter: float = 0.1
    """Batch mates differ in duration by about this share; larger mixes more and pads more (ours)."""
    max_cuts: int | None = None
    """Most cuts of a global batch; none by default."""
    num_workers: int = 2
    """Worker processes that make batches ahead; 0: made in the training process."""
    prefetch_batches: int = 4
    """Batches that each worker makes ahead (ours)."""
    worker_timeout: float = 600.0
    """A batch that takes longer is an error, s (ours)."""
    max_bad_fraction: float = 0.001
    """Share of the cuts that may lack audio or tokens before training stops (ours, augment_and_mask §6)."""


class CutData:
    """Shared part of the data sets: manifest, sampler, workers, counted problems.

    Args:
      manifest: with ``ids``, ``durations`` and ``[i]``.
      loading: how cuts become batches.
      seed, rank, world_size: of the run, this process, and the number of processes.
      training: False: fixed order, no augmentation, every cut exactly once, masks the same in each epoch.
    """

    def __init__(
        self,
        manifest,
        examples,
        loading: LoadingConfig,
        seed: int,
        rank: int,
        world_size: int,
        training: bool,
    ) -> None:
        self.manifest, self.examples, self.loading = manifest, examples, loading
        self.rank, self.world_size, self.training = rank, world_size, training
        durations = np.asarray(manifest.durations, dtype=np.float64)
        kept = np.flatnonzero((durations >= loading.min_duration) & (durations <= loading.max_duration))
        if not len(kept):
            raise ValueError(
                f"none of {len(durations)} cuts lasts between {loading.min_duration} and "
                f"{loading.max_duration} s (they last {durations.min():.2f} to {durations.max():.2f} s): "
                "change min_duration or max_duration"
                if len(durations)
                else "the manifest has no cuts"
            )
        if len(kept) < len(durations):
            logger.warning(
                "%d of %d cuts are left out: not between %s and %s s",
                len(durations) - len(kept),
                len(durations),
                loading.min_duration,
                loading.max_duration,
            )
        self.cut_numbers = kept
        self.num_cuts = len(kept)
        self.total_seconds = float(durations[kept].sum())
        self.sampler = BatchSampler(
            durations[kept],
            loading.batch_seconds,
            seed=seed,
            rank=rank,
            world_size=world_size,
            shuffle=training,
            jitter=loading.duration_jitter,
            max_cuts=loading.max_cuts,
        )
        self.problems: dict[str, str] = {}
        examples.check(manifest, kept)

    def num_batches(self, epoch: int) -> int:
        """Batches (steps) of an epoch."""
        return self.sampler.num_batches(epoch)

    def epoch_batches(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """This rank's share of the global batches ``start_batch``, ``start_batch`` + 1, ... of an epoch.

        Raises:
          ValueError: start_batch lies behind the epoch's end.
          RuntimeError: too many cuts are unusable, or a worker died.
        """
        total = self.num_batches(epoch)
        if not 0 <= start_batch <= total:
            raise ValueError(
                f"epoch {epoch} has {total} batches, cannot start at batch {start_batch}: were the manifests "
                f"or "
                "batch_seconds changed since the checkpoint?"
            )
        works = _EpochWorks(self.sampler, self.cut_numbers, epoch, start_batch)
        loading = self.loading
        batches = load_ahead(
            self.examples.make, works, loading.num_workers, loading.prefetch_batches, loading.worker_timeout
        )
        for batch in batches:
            self._count(batch)
            yield batch

    def _count(self, batch: Batch) -> None:
        new = {cut: why for cut, why in batch.problems.items() if cut not in self.problems}
        self.problems.update(new)
        for cut, why in new.items():
            logger.warning("cut %s is skipped: %s", cut, why)
        allowed = int(self.loading.max_bad_fraction * self.num_cuts)
        if len(self.problems) > allowed:
            shown = "; ".join(f"{cut}: {why}" for cut, why in list(self.problems.items())[:5])
            raise RuntimeError(
                f"{len(self.problems)} of {self.num_cuts} cuts cannot be used, more than the {allowed} that "
                f"max_bad_fraction = {self.loading.max_bad_fraction} allows. {shown}. Repair or remove these "
                f"cuts "
                "(validate the manifests again), or raise max_bad_fraction"
            )
        if not len(batch):
            raise RuntimeError(
                f"every cut of batch {batch.index} of epoch {batch.epoch} on rank {self.rank} is unusable: "
                f"{batch.problems}. Repair or remove these cuts"
            )


class _EpochWorks(Sequence):
    """What each remaining batch of an epoch consists of, computed when asked for (in the worker)."""

    def __init__(self, sampler: BatchSampler, cut_numbers: np.ndarray, epoch: int, start: int) -> None:
        self.sampler, self.cut_numbers, self.epoch, self.start = sampler, cut_numbers, epoch, start
        self.length = sampler.num_batches(epoch) - start

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Work:
        if not 0 <= index < self.length:
            raise IndexError(index)
        index += self.start
        cuts = self.sampler.global_batch(self.epoch, index)
        numbers = self.cut_numbers
        return (
            self.epoch,
            index,
            [int(numbers[cut]) for cut in self.sampler.share(cuts)],
            [int(numbers[cut]) for cut in cuts],
        )


def _open(paths: list[str], option: str):
    if not paths:
        raise ValueError(f"no manifests given: set {option} to one or more .jsonl.gz files of cuts")
    return Manifest(list(paths))


def open_sources(
    config: LoadingConfig, training: bool, cuts: list[str] | None
) -> tuple[Manifest, Manifest | None, MixingConfig]:
    """Cuts, noise where it is mixed in, and the mixing, which validation has none of."""
    manifest = _open(cuts if cuts is not None else config.train_cuts, "train_cuts")
    mixing = config.mixing if training else dataclasses.replace(config.mixing, enabled=False)
    noise = _open(config.noise_cuts, "noise_cuts") if config.noise_cuts and mixing.enabled else None
    return manifest, noise, mixing
