"""Cuts in, batches out: what the data of pre-training, ASR and tagging share.

All give ``epoch_batches(epoch, start_batch)``: this rank's share of the global batches, made ahead by worker
processes. Everything random is keyed by (seed, epoch, cut id), and partners for mixing come from the
*global* batch, so batches do not depend on the number of processes or workers, nor on where a run was
interrupted.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os.path import exists
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spear_lib.config import MAY_CHANGE
from spear_lib.data.batch import Batch
from spear_lib.data.loading import Work, load_ahead
from spear_lib.data.local_copies import keep_copies
from spear_lib.data.manifests import Manifest
from spear_lib.data.mixing import MixingConfig
from spear_lib.data.sampling import BatchSampler, Pick
from spear_lib.data.selection import BY_HOURS, RepeatedCorpora, Selection, repeat_factors

logger = logging.getLogger(__name__)

_LOGGED = 20  # skipped cuts that are named at once


@dataclass(frozen=True)
class LoadingConfig:
    """Which cuts are read, and how they become batches."""

    train_cuts: list[str] = field(default_factory=list)
    """Manifests of the cuts to train on (.jsonl.gz, or folders of lhotse Shar), with tokens, transcripts or
    labels as the task needs; one for each corpus where they get weights."""
    train_weights: list[float] | str = BY_HOURS
    """Share of each corpus in an epoch's audio: "hours" (the natural one: every cut once), "cuts" (in
    proportion to their number), or a number for each of train_cuts, whatever their sum; an epoch lasts as
    long as all corpora together, so a corpus above its natural share is repeated in it (ours)."""
    train_repeats: list[float] = field(default_factory=list)
    """Instead of weights: how often an epoch takes each of train_cuts, for example [1, 3] or [0.5, 1]; an
    epoch lasts as long as that makes it (ours)."""
    mix_domains: bool = True
    """Speech and audio cuts meet in each batch, in the epoch's proportion (which pads more where their
    durations differ); False: batches by duration alone (ours)."""
    noise_cuts: list[str] = field(default_factory=list)
    """Manifests of noise for noise mixing; none: noise mixing is off."""
    mixing: MixingConfig = field(default_factory=MixingConfig)
    batch_seconds: float = 200.0
    """Padded audio of a batch over ALL processes, s (ours: the mini preset's order of size)."""
    shares: int = 0
    """Shares of a batch, each of which gets a forward and backward pass of its own: at least one for each
    process, which takes several in turn; 0: as many as processes when the run begins. A run goes on exactly
    on any number of processes up to it (docs/elastic.md; ours)."""
    min_duration: float = 0.5
    """Shorter cuts are left out, s (ours: an encoder frame needs 0.085 s, a mask 0.1 s)."""
    max_duration: float = 30.0
    """Longer cuts are left out, s (ours; spec teachers: WavLM embeds at most 30 s)."""
    duration_jitter: float = 0.1
    """Batch mates differ in duration by about this share; larger mixes more and pads more (ours)."""
    max_cuts: int | None = None
    """Most cuts of a global batch; none by default."""
    num_workers: int = field(default=2, metadata=MAY_CHANGE)
    """Worker processes that make batches ahead; 0: made in the training process."""
    prefetch_batches: int = field(default=4, metadata=MAY_CHANGE)
    """Batches that each worker makes ahead (ours)."""
    worker_timeout: float = field(default=600.0, metadata=MAY_CHANGE)
    """A batch that takes longer is an error, s (ours)."""
    local_dir: str = field(default="", metadata=MAY_CHANGE)
    """A folder on a disk of this machine to which token shards and Shar archives are copied, and from which
    they are read; by default the one that Slurm gives a job (SLURM_TMPDIR), where it does (ours)."""
    max_bad_fraction: float = field(default=0.001, metadata=MAY_CHANGE)
    """Share of the cuts that may lack audio or tokens before training stops (ours, augment_and_mask §6)."""


class Corpus(NamedTuple):
    """One manifest of the training data."""

    path: Path
    num_cuts: int
    hours: float


class CutData:
    """Shared part of the data sets: manifest, sampler, workers, counted problems.

    Args:
      manifest: a ``Manifest``, one file per corpus.
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
        self.problems: dict[str, str] = {}
        kept = self._without_unusable(manifest, examples, kept)
        self.cut_numbers = kept
        self.num_cuts = len(kept)
        self.total_seconds = float(durations[kept].sum())
        """Audio of the usable cuts, each counted once, s."""
        self.sampler = BatchSampler(
            durations[kept],
            loading.batch_seconds,
            seed=seed,
            rank=rank,
            world_size=world_size,
            shuffle=training,
            jitter=loading.duration_jitter,
            max_cuts=loading.max_cuts,
            selection=self.make_selection(seed) if training else None,
            groups=np.asarray(manifest.sounds)[kept] if training and loading.mix_domains else None,
            shares=loading.shares if training else 0,
        )
        examples.check(manifest, kept)
        keep_copies(examples.archives(manifest, kept), loading.local_dir)

    def _without_unusable(self, manifest, examples, kept: np.ndarray) -> np.ndarray:
        """The cut numbers that can be used as far as manifests tell: all labels are looked at now, and of a
        validation set also whether its files exist, since the next look at them may be hours away."""
        self._num_checked = len(kept)
        labels = examples.unusable(manifest, kept)
        files = {} if self.training else _missing_files(manifest, kept)
        for found, spare in ((labels, 0), (files, 1)):
            named = {manifest.ids[number]: why for number, why in sorted(found.items())}
            self._add_problems(named, ValueError, spare)
        bad = np.fromiter(labels.keys() | files.keys(), dtype=kept.dtype)
        left = kept[~np.isin(kept, bad)] if len(bad) else kept
        if not len(left):
            shown = _examples_of(self.problems)
            raise ValueError(f"none of the {len(kept)} cuts of {manifest.describe()} can be used: {shown}")
        return left

    def make_selection(self, seed: int) -> Selection | None:
        """Which of ``cut_numbers`` an epoch of training takes; None: all of them once. Here by the corpora's
        weights or repeat factors; tasks that sample otherwise say so themselves."""
        corpora = self.corpora
        hours = [corpus.hours for corpus in corpora]
        counts = [corpus.num_cuts for corpus in corpora]
        repeats = repeat_factors(hours, counts, self.loading.train_weights, self.loading.train_repeats)
        return None if all(factor == 1.0 for factor in repeats) else RepeatedCorpora(counts, repeats, seed)

    @property
    def corpora(self) -> list[Corpus]:
        """What is usable of each manifest."""
        sizes = self.manifest.sizes
        owner = np.repeat(np.arange(len(sizes)), sizes)[self.cut_numbers]
        seconds = np.asarray(self.manifest.durations)[self.cut_numbers]
        counts = np.bincount(owner, minlength=len(sizes)).tolist()
        hours = (np.bincount(owner, seconds, len(sizes)) / 3600).tolist()
        return [Corpus(*each) for each in zip(self.manifest.paths, counts, hours)]

    def facts(self) -> dict[str, str]:
        """Lines of the first screen: the usable audio, and of several corpora each one's share of an
        epoch."""
        corpora, epoch = self.corpora, self.sampler.plan(0).cuts
        ends = np.cumsum([corpus.num_cuts for corpus in corpora])
        owner = np.searchsorted(ends, epoch, side="right")
        taken = np.bincount(owner, self.sampler.durations[epoch], len(corpora)) / 3600
        lines = {"training cuts": f"{self.num_cuts}, {self.total_seconds / 3600:.2f} h of audio"}
        if len(corpora) > 1 or len(epoch) != self.num_cuts:
            for corpus, hours in zip(corpora, taken.tolist()):
                lines[f"corpus {corpus.path.name}"] = (
                    f"{corpus.num_cuts} cuts, {corpus.hours:.2f} h; {hours:.2f} h or "
                    f"{100 * hours / taken.sum():.1f} % of the first epoch's {taken.sum():.2f} h"
                )
        return lines

    def division(self) -> dict[str, int]:
        """How global batches are divided, see ``divide``."""
        return {"shares": self.sampler.num_shares, "planned_for": self.sampler.planned_for}

    def divide(self, shares: int, planned_for: int) -> None:
        """Divides global batches into ``shares``, at least one for each process. ``planned_for``: the shares
        for which each batch has a cut."""
        self.sampler.divide(shares, planned_for)

    def smallest_batch(self, epoch: int) -> int:
        """Cuts of the global batch of an epoch that has the fewest."""
        return self.sampler.smallest(epoch)

    def num_batches(self, epoch: int) -> int:
        """Global batches of an epoch."""
        return self.sampler.num_batches(epoch)

    def batching(self, epoch: int) -> str:
        """Equal where the cuts of an epoch, in their order, are divided into the same batches: more processes
        may need larger ones, because each takes part in all."""
        plan = self.sampler.plan(epoch)
        digest = hashlib.blake2b(np.stack([plan.starts, plan.ends]).tobytes(), digest_size=8)
        return f"{len(plan)} batches, {digest.hexdigest()}"

    def largest_batch(self, epoch: int) -> Batch:
        """This rank's share of the batch of an epoch that needs the most memory, made in this process."""
        works = _EpochWorks(self.sampler, self.cut_numbers, epoch, self.sampler.largest(epoch))
        return self.examples.make(works[0])

    @cached_property
    def fingerprint(self) -> str:
        """Equal where the same options give the same batches: ids, durations and order of all cuts and of
        the noise. What is learnt of them is in ``targets_fingerprint``; audio is not read."""
        parts = [self.manifest, *([self.examples.noise] if self.examples.noise is not None else [])]
        return "-".join(part.fingerprint for part in parts)

    @cached_property
    def targets_fingerprint(self) -> str:
        """Equal where the same cuts have the same targets; here what their supervisions say."""
        return self.manifest.labels_fingerprint

    def epoch_batches(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """This rank's share (or several, one after the other: ``Batch.last_share``) of the global batches
        ``start_batch``, ``start_batch`` + 1, ... of an epoch; one of which no cut is usable is empty.

        Raises:
          ValueError: start_batch lies behind the epoch's end.
          RuntimeError: too many cuts are unusable, or all of an epoch, or a worker died.
        """
        total = self.num_batches(epoch)
        if not 0 <= start_batch <= total:
            raise ValueError(
                f"epoch {epoch} has {total} batches, cannot start at batch {start_batch}: were the manifests "
                "or batch_seconds changed since the checkpoint?"
            )
        works = _EpochWorks(self.sampler, self.cut_numbers, epoch, start_batch)
        loading = self.loading
        batches = load_ahead(
            self.examples.make, works, loading.num_workers, loading.prefetch_batches, loading.worker_timeout
        )
        num_usable = 0
        for number, batch in enumerate(batches, 1):
            batch.last_share = number % self.sampler.turns == 0
            self._add_problems(batch.problems, RuntimeError)
            num_usable += len(batch)
            yield batch
        if self.training and total > start_batch and not num_usable:
            raise RuntimeError(
                f"every cut of batch {start_batch} to {total - 1} of epoch {epoch} is unusable: "
                f"{_examples_of(self.problems)}. Repair or remove these cuts"
            )

    def _add_problems(self, problems: dict[str, str], kind: type[Exception], spare: int = 1) -> None:
        """Counts unusable cuts, each once; an error of this kind when they are too many. The limit is a share
        meant for training sets: in the few cuts of a validation set, ``spare`` ones are always allowed."""
        new = {cut: why for cut, why in problems.items() if cut not in self.problems}
        self.problems.update(new)
        for cut, why in list(new.items())[:_LOGGED]:
            logger.warning("cut %s is skipped: %s", cut, why)
        if len(new) > _LOGGED:
            logger.warning("and %d more cuts are skipped", len(new) - _LOGGED)
        fraction = self.loading.max_bad_fraction
        allowed = int(fraction * self._num_checked)
        if not self.training and fraction > 0:
            allowed = max(spare, allowed)
        if len(self.problems) > allowed:
            raise kind(
                f"{len(self.problems)} of {self._num_checked} cuts cannot be used, more than the {allowed} "
                f"that max_bad_fraction = {fraction} allows. {_examples_of(self.problems)}. Repair or remove "
                "these cuts (validate the manifests again), or raise max_bad_fraction"
            )


class _EpochWorks(Sequence):
    """What each remaining batch of an epoch consists of, computed when asked for (in the worker)."""

    def __init__(self, sampler: BatchSampler, cut_numbers: np.ndarray, epoch: int, start: int) -> None:
        self.sampler, self.cut_numbers, self.epoch, self.start = sampler, cut_numbers, epoch, start
        self.length = (sampler.num_batches(epoch) - start) * sampler.turns

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Work:
        if not 0 <= index < self.length:
            raise IndexError(index)
        index, turn = divmod(index, self.sampler.turns)
        index += self.start
        numbers = self.cut_numbers
        picks = [Pick(int(numbers[cut]), time) for cut, time in self.sampler.picks(self.epoch, index)]
        return self.epoch, index, self.sampler.share(picks, turn), picks


def _missing_files(manifest: Manifest, numbers: np.ndarray) -> dict[int, str]:
    """Cuts whose audio files are not there, number -> why."""
    wanted, missing = set(numbers.tolist()), {}
    for number, fields in enumerate(manifest.fields()):
        sources = (fields.get("recording") or {}).get("sources") or () if number in wanted else ()
        gone = [each["source"] for each in sources if each["type"] == "file" and not exists(each["source"])]
        if gone:
            missing[number] = f"{gone[0]} does not exist"
    return missing


def _examples_of(problems: dict[str, str]) -> str:
    return "; ".join(f"{cut}: {why}" for cut, why in list(problems.items())[:5])


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
