"""Does pre-training make better features? A cheap probe of the encoder at every validation (ours).

A few hundred cuts of each validation set, chosen once, are divided in two halves. A ridge regression learns
from one half, on mean and deviation over time of every layer side by side, and is tested on the other, then
the other way round: speakers, words and sound events, whatever the cuts carry. There is nothing to tune, so
that only the encoder changes from one validation to the next. The numbers are for comparison with each other
and with log-mel features of the same cuts; the probes of stage 13 (``spear_lib.evaluation.probes``) are the
ones to report.

The batches are the same for any number of processes, which share them out; no random number is drawn from
any state of the run.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from spear_lib.data.audio import AudioError
from spear_lib.encoders.kinds import Encoder
from spear_lib.evaluation.probe_cuts import LabelledCuts, read_cuts
from spear_lib.evaluation.probe_features import batch_features, log_mel_features, num_rounds, probe_batches
from spear_lib.evaluation.probes import frequent_labels, label_targets
from spear_lib.evaluation.ridge import Ridge, mean_average_precision
from spear_lib.runtime import keyed_random
from spear_lib.runtime.world import World

logger = logging.getLogger(__name__)

BATCH_SECONDS = 60.0
"""Padded audio of a batch: much less than a training batch of any run, and independent of it."""
MIN_COUNT = 2
"""Words and events that fewer cuts of either half have, or have not, are left out."""
CUTS_OF_A_SPEAKER = 8
"""Cuts per speaker that are enough: of many speakers some are left out, not each one's second cut."""
STRENGTH = 0.01
"""Ridge strength relative to the summed variance of the features; on both mini corpora good for encoders and
log-mels alike (0.001 to 0.1 differ little)."""


@dataclass(frozen=True)
class ValidationProbeConfig:
    """A cheap look at the features during pre-training."""

    every: int = 1
    """Probe at every n-th validation, before the first step and at the end (0: never)."""
    max_cuts: int = 200
    """Most cuts of each validation set; they are chosen once. 200 cuts of 10 s cost about as much as a
    validation on the same audio."""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"probe.every is {self.every}: 1 is at every validation, 0 never")
        if self.max_cuts < 8:
            raise ValueError(
                f"probe.max_cuts is {self.max_cuts}, expected at least 8 (0 in probe.every: off)"
            )


class _ProbedSet:
    """The chosen cuts of one validation set, their halves and what log-mel features reach."""

    def __init__(self, cuts: LabelledCuts) -> None:
        self.cuts = cuts
        self.questions: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for question in (self._speakers(), self._labels("words"), self._labels("events")):
            self.questions |= question
        self.log_mel: dict[str, float] | None = None

    def _speakers(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        rows = np.array(self.cuts.rows("speaker"), dtype=int)
        names = sorted(set(self.cuts.speakers))
        halves: tuple[list[int], list[int]] = ([], [])
        for name in names:
            own = [row for row in rows.tolist() if self.cuts.labels[row].speaker == name]
            for half, part in zip(halves, _halves_of_sessions(self.cuts, own)):
                half += part
        if len({self.cuts.labels[row].speaker for row in halves[1]}) < 2:
            return {}
        targets = np.zeros((len(self.cuts), len(names)))
        targets[rows, [names.index(who) for who in self.cuts.speakers]] = 1.0
        return {"speaker_accuracy": (np.array(sorted(halves[0])), np.array(sorted(halves[1])), targets)}

    def _labels(self, kind: str) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        one, other = (np.array(half, dtype=int) for half in _halves(self.cuts, self.cuts.rows(kind)))
        labels = [getattr(labels, kind) for labels in self.cuts.labels]
        frequent = [frequent_labels([labels[row] for row in half], MIN_COUNT) for half in (one, other)]
        chosen = [label for label in frequent[0] if label in frequent[1]]
        if not chosen:
            return {}
        return {f"{kind}_average_precision": (one, other, label_targets(labels, chosen))}

    def answer(self, features: np.ndarray) -> dict[str, float]:
        """Percent of every question from features (U, D), mean of both directions."""
        values = {}
        for name, (one, other, targets) in self.questions.items():
            both = []
            for learn, test in ((one, other), (other, one)):
                ridge = Ridge(features[learn], targets[learn])
                scores = ridge.predict(features[test], STRENGTH * features.shape[1])
                if name == "speaker_accuracy":
                    both.append(100.0 * float(np.mean(scores.argmax(1) == targets[test].argmax(1))))
                else:
                    both.append(mean_average_precision(scores, targets[test]))
            values[name] = float(np.mean(both))
        return values


def _halves(cuts: LabelledCuts, rows: list[int]) -> tuple[list[int], list[int]]:
    """Two halves of rows, by the keys of the ids; the first gets the odd one."""
    ordered = sorted(rows, key=lambda row: keyed_random.key("probe halves", cuts.ids[row]))
    half = (len(ordered) + 1) // 2
    return sorted(ordered[:half]), sorted(ordered[half:])


def _halves_of_sessions(cuts: LabelledCuts, rows: list[int]) -> tuple[list[int], list[int]]:
    """The same for rows of one speaker, whose recording sessions are divided; empty if there is one alone."""
    session_of = dict(zip(cuts.rows("speaker"), cuts.sessions))
    sessions = sorted({session_of[row] for row in rows}, key=lambda name: keyed_random.key("halves", name))
    if len(sessions) < 2:
        return [], []
    first = set(sessions[: (len(sessions) + 1) // 2])
    return [row for row in rows if session_of[row] in first], [
        row for row in rows if session_of[row] not in first
    ]


class ValidationProbe:
    """Measures an encoder on cuts of the validation sets.

    Args:
      encoder: the one that is trained.
      paths: validation set -> manifest.
      config: how many cuts; ``every`` is for the caller.
      world: this process among all; all of them call ``measure`` together.
      durations: shortest and longest cut in seconds that are probed.
    """

    def __init__(
        self,
        encoder: Encoder,
        paths: Mapping[str, str],
        config: ValidationProbeConfig,
        world: World,
        durations: tuple[float, float] = (0.1, 30.0),
    ) -> None:
        self.encoder, self.every, self.world = encoder, config.every, world
        self.sets: dict[str, _ProbedSet] = {}
        low, high = durations

        def fits(seconds: np.ndarray) -> np.ndarray:
            return (seconds >= low) & (seconds <= high)

        for name, path in paths.items() if config.every else ():
            probed = _ProbedSet(read_cuts([path], config.max_cuts, 0, CUTS_OF_A_SPEAKER, fits))
            if probed.questions:
                self.sets[name] = probed
        if config.every and paths and not self.sets and world.is_main:
            logger.info("no probe of the features: no validation set has enough speakers, words or events")

    def __bool__(self) -> bool:
        return bool(self.sets)

    def facts(self) -> dict[str, str]:
        """Lines of the first screen."""
        return {
            f"probe on {name}": f"{len(probed.cuts)} cuts, {', '.join(probed.questions)}"
            for name, probed in self.sets.items()
        }

    def measure(self, between_batches: Callable[[], None] = lambda: None) -> dict[str, dict[str, float]]:
        """Set -> percent of every question, of the encoder and (``log_mel/...``) of log-mel features.

        Empty on all processes but the main one; without a set of which a cut cannot be read.

        Args:
          between_batches: called before every batch; what it raises ends the measurement on all processes.
        """
        self.encoder.eval()
        results = {}
        for name, probed in self.sets.items():
            features = self._features(probed.cuts, between_batches)
            if not self.world.is_main:
                continue
            if not np.isfinite(features).all():
                logger.warning(
                    "no probe on %s: a cut cannot be read, or features of the encoder are not finite", name
                )
                continue
            if probed.log_mel is None:
                (log_mel,) = log_mel_features(probed.cuts.manifests, BATCH_SECONDS)
                probed.log_mel = probed.answer(log_mel)
            beside = {f"log_mel/{question}": value for question, value in probed.log_mel.items()}
            results[name] = probed.answer(features) | beside
        return results

    @torch.no_grad()
    def _features(self, cuts: LabelledCuts, between_batches: Callable[[], None] = lambda: None) -> np.ndarray:
        """Statistics of all layers side by side, (U, D), on every process, which share the batches."""
        device = next(self.encoder.parameters()).device
        features: np.ndarray | None = None
        world, unreadable = self.world, False
        batches = probe_batches(cuts.manifests, BATCH_SECONDS, world.rank, world.world_size)
        for _ in range(num_rounds(cuts.manifests, BATCH_SECONDS, world.world_size)):
            between_batches()
            try:
                rows, waveforms, lengths = next(batches, (None, None, None))
            except AudioError as error:
                logger.warning("%s", error)
                unreadable = True  # and the rest of this share is not read
                continue
            if rows is None:
                continue
            found = np.concatenate(batch_features(self.encoder, waveforms, lengths, device), axis=1)
            if features is None:
                features = np.zeros((len(cuts), found.shape[1]))
            features[rows] = found
        width = 0 if features is None else features.shape[1]
        if self.world.world_size > 1:
            widths = self.world.union({f"{self.world.rank}": width})
            width = max(widths.values())
        features = np.zeros((len(cuts), width)) if features is None else features
        if unreadable:
            features[:] = np.nan  # and so is the sum over the processes
        return self.world.sum(torch.from_numpy(features)).numpy()

    def describe(self, values: dict[str, float]) -> str:
        """``speaker accuracy 61.0 % (log-mel 48.5 %), ...``"""
        return ", ".join(
            f"{name.replace('_', ' ')} {value:.1f} % (log-mel {values[f'log_mel/{name}']:.1f} %)"
            for name, value in values.items()
            if f"log_mel/{name}" in values
        )
