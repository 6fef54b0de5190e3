"""Linear probes of frozen features: which words or sound events a cut holds, and who speaks.

A cut is one vector: mean and standard deviation of its frames. The classifier is ridge regression (closed
form, hence exactly reproducible); its strength and the encoder's layer are chosen on dev. What is asked
follows from the labels of the cuts.

* ``words``: is word w spoken in this utterance, for every frequent word w at once (multi-label). Needs no
  alignment. Trained on training speakers, tested on speakers that neither the encoder nor the probe has
  heard. Measure: average precision of ranking the utterances by the score of w, averaged over words.
* ``events``: the same for the sound event classes of labelled clips (mean average precision, as AudioSet's).
* ``speaker``: who of the test speakers is it. All of them are new to the encoder; half of each one's
  recording sessions (chapters of LibriSpeech) train the probe, the others test it: in one session the room
  and the microphone alone would tell. Measure: accuracy.

All choices here are ours; the idea is that of SUPERB's frozen upstreams (spec evaluation §9, §11).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spear_lib.evaluation.probe_cuts import LabelledCuts
from spear_lib.evaluation.ridge import (
    STRENGTHS,
    Ridge,
    mean_average_precision,
    speaker_accuracy,
)
from spear_lib.runtime import keyed_random

logger = logging.getLogger(__name__)

MULTI_LABEL, SPEAKER = ("words", "events"), "speaker"
"""Kinds of labels of which a cut has several, and of which it has one."""


def frequent_labels(labels: Sequence[Sequence[str]], min_count: int) -> list[str]:
    """Labels that at least ``min_count`` cuts have and at least as many have not.

    Args:
      labels: the different labels of each cut.
    """
    counts: dict[str, int] = {}
    for of_cut in labels:
        for label in of_cut:
            counts[label] = counts.get(label, 0) + 1
    return sorted(label for label, count in counts.items() if min_count <= count <= len(labels) - min_count)


def label_targets(labels: Sequence[Sequence[str]], chosen: list[str]) -> np.ndarray:
    """(U, K) 1.0 where the cut has the label, else 0.0."""
    return np.array([[float(label in of_cut) for label in chosen] for of_cut in map(set, labels)])


@dataclass
class ProbeResult:
    """Result of one probe on one kind of features."""

    values: list[float]
    """Test result per seed, percent."""
    dev: float
    """Dev result that chose layer and strength, percent."""
    layer: int
    """Chosen layer, from 1; the last one is the encoder's output."""
    num_layers: int
    """How many there were."""
    strength: float
    """Chosen ridge strength."""
    metric: str
    """Name of the measure."""

    def to_json(self) -> dict:
        """What probes.json holds and the report reads."""
        layer = f"{self.layer} of {self.num_layers}" if self.num_layers > 1 else "–"
        if self.layer == self.num_layers > 1:
            layer += " (output)"
        return {
            "mean": round(float(np.mean(self.values)), 2),
            "std": round(float(np.std(self.values)), 2),
            "values": [round(value, 2) for value in self.values],
            "dev": round(self.dev, 2),
            "metric": self.metric,
            "layer": layer,
            "ridge": self.strength,
        }


def probe_labels(
    train: list[np.ndarray],
    dev: list[np.ndarray],
    test: list[np.ndarray],
    targets: tuple[np.ndarray, np.ndarray, np.ndarray],
    num_seeds: int,
    kind: str = "words",
) -> ProbeResult:
    """Probe of words or events. ``train``, ``dev``, ``test`` are lists over layers of (U, D); ``targets``
    their (U, K).

    Layer and strength are chosen on dev with all training cuts; each seed then trains on a random 80 %.
    """
    best = (-1.0, 0, STRENGTHS[0])
    for layer in range(len(train)):
        ridge = Ridge(train[layer], targets[0])
        for strength in STRENGTHS:
            value = mean_average_precision(ridge.predict(dev[layer], strength), targets[1])
            best = max(best, (value, layer, strength))
    value, layer, strength = best
    results = []
    for seed in range(num_seeds):
        random = keyed_random.generator(f"probe_{kind}", seed)
        rows = np.sort(random.permutation(len(targets[0]))[: max(2, round(0.8 * len(targets[0])))])
        scores = Ridge(train[layer][rows], targets[0][rows]).predict(test[layer], strength)
        results.append(mean_average_precision(scores, targets[2]))
    return ProbeResult(results, value, layer + 1, len(train), strength, "mean average precision")


def probe_speakers(
    dev: list[np.ndarray],
    test: list[np.ndarray],
    dev_speakers: tuple[list[str], list[str]],
    test_speakers: tuple[list[str], list[str]],
    num_seeds: int,
) -> ProbeResult:
    """Speaker probe: layer and strength from the speakers of dev, result from those of test.

    ``dev`` and ``test`` are lists over layers of (U, D); of each cut the speaker and the session.
    """
    best = (-1.0, 0, 0)
    for layer, features in enumerate(dev):
        runs = [speaker_accuracy(features, *dev_speakers, seed) for seed in range(num_seeds)]
        for index, value in enumerate(np.mean(runs, axis=0)):
            best = max(best, (float(value), layer, index))
    value, layer, index = best
    results = [speaker_accuracy(test[layer], *test_speakers, seed)[index] for seed in range(num_seeds)]
    return ProbeResult(results, value, layer + 1, len(dev), STRENGTHS[index], "accuracy")


@dataclass
class Probes:
    """What can be asked of three sets of cuts, and the answers of any features.

    Args:
      sets: training, dev and test cuts.
      min_counts: ``words`` and ``events`` -> labels that fewer training cuts have are not probed.
      num_seeds: probes per kind of features, each on another part of the data.

    Raises:
      ValueError: nothing can be asked, or the words or events that the sets share are all too rare.
    """

    sets: tuple[LabelledCuts, LabelledCuts, LabelledCuts]
    min_counts: dict[str, int]
    num_seeds: int

    def __post_init__(self) -> None:
        self.kinds = [kind for kind in MULTI_LABEL if all(part.rows(kind) for part in self.sets)]
        if all(len(part.speakers_recorded_twice()) > 1 for part in self.sets[1:]):
            self.kinds.append(SPEAKER)
        elif all(part.speakers for part in self.sets[1:]):
            logger.info(
                "no probe of speakers: dev_cuts and test_cuts need two with two recording sessions each"
            )
        if not self.kinds:
            names = ("train_cuts", "dev_cuts", "test_cuts")
            carried = "; ".join(f"{name} {part.describe()}" for name, part in zip(names, self.sets))
            raise ValueError(
                f"these cuts carry nothing that can be probed: {carried}. Words or sound events are needed "
                "in all three sets, or two speakers of two recording sessions each in dev_cuts and test_cuts"
            )
        self.chosen = {kind: self._frequent(kind) for kind in self.kinds if kind in MULTI_LABEL}

    def _frequent(self, kind: str) -> list[str]:
        rows, minimum = self.sets[0].rows(kind), self.min_counts[kind]
        found = frequent_labels([getattr(self.sets[0].labels[row], kind) for row in rows], minimum)
        if not found:
            raise ValueError(
                f"no {kind.removesuffix('s')} occurs in at least {minimum} of {len(rows)} training cuts: "
                f"raise max_train_cuts or lower min_{kind.removesuffix('s')}_count"
            )
        return found

    def targets(self, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(U, K) of the cuts of each set that carry labels of this kind."""
        train, dev, test = (
            label_targets([getattr(part.labels[row], kind) for row in part.rows(kind)], self.chosen[kind])
            for part in self.sets
        )
        return train, dev, test

    def run(self, kind: str, features: Sequence[list[np.ndarray]]) -> ProbeResult:
        """One probe. ``features``: of each set the layers (U, D), of all its cuts."""
        parts = [[layer[part.rows(kind)] for layer in layers] for part, layers in zip(self.sets, features)]
        if kind == SPEAKER:
            _, dev, test = self.sets
            known = [(part.speakers, part.sessions) for part in (dev, test)]
            return probe_speakers(*parts[1:], *known, self.num_seeds)
        return probe_labels(*parts, self.targets(kind), self.num_seeds, kind)

    def describe(self, kind: str) -> str:
        """What the numbers of a probe mean, with its chance level."""
        if kind == SPEAKER:
            speakers = self.sets[2].speakers
            most_common = max(speakers.count(who) for who in set(speakers)) / len(speakers)
            return _SPEAKER.format(count=len(set(speakers)), chance=100 * most_common)
        chance = 100 * float(self.targets(kind)[2].mean())
        return _LABELS[kind].format(count=len(self.chosen[kind]), chance=chance)


_LABELS = {
    "words": "which of {count} frequent words does the utterance hold; learnt from training "
    "speakers, tested on unseen ones; chance is the share of utterances with a word, {chance:.1f} %",
    "events": "which of {count} sound event classes does the clip hold; chance is "
    "the share of clips with a class, {chance:.1f} %",
}
_SPEAKER = (
    "which of {count} speakers, new to the encoder, is it; half of each one's recording sessions train the "
    "probe, the others test it; chance is about {chance:.1f} %"
)
