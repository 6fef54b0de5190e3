"""Linear probes of frozen features: which words an utterance holds, and who speaks.

An utterance is one vector: the mean of its frames. The classifier is ridge regression (closed form, hence
exactly reproducible); its strength and the encoder's layer are chosen on dev.

* ``words``: is word w spoken in this utterance, for every frequent word w at once (multi-label). Needs no
  alignment. Trained on training speakers, tested on speakers that neither the encoder nor the probe has
  heard. Measure: average precision of ranking the utterances by the score of w, averaged over words.
* ``speaker``: who of the test speakers is it. All of them are new to the encoder; half of each one's
  utterances train the probe, the other half test it. Measure: accuracy.

All choices here are ours; the idea is that of SUPERB's frozen upstreams (spec evaluation §9, §11).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spear_lib import keyed_random
from spear_lib.data.features import FbankExtractor
from spear_lib.data.manifests import Manifest
from spear_lib.evaluation.decoding import waveform_batches
from spear_lib.evaluation.references import speaker, transcript
from spear_lib.pretrained.kinds import Encoder
from spear_lib.training.progress import progress

STRENGTHS = tuple(10.0**power for power in range(-4, 3))
"""Ridge strengths that dev chooses from, relative to the mean variance of the features."""


@dataclass
class Utterances:
    """The labels of a set of cuts."""

    ids: list[str]
    """Cut ids."""
    texts: list[str]
    """Transcripts."""
    speakers: list[str]
    """Speakers."""
    manifests: list[tuple[Manifest, list[int]]]
    """Where the audio is: manifest and positions, in the order of ``ids``."""


def read_utterances(paths: Sequence[str], max_cuts: int, seed: int) -> Utterances:
    """Cuts of several manifests, at most ``max_cuts`` of all (0: all), chosen by the key of their ids.

    The choice is per speaker in turn, so that few speakers do not crowd out the others.
    """
    result = Utterances([], [], [], [])
    candidates = []
    for number, path in enumerate(paths):
        manifest = Manifest(path)
        result.manifests.append((manifest, []))
        for row in range(len(manifest)):
            cut = manifest[row]
            order = keyed_random.key("probe", seed, cut.id)
            candidates.append((order, number, row, cut.id, transcript(cut), speaker(cut)))
    turns: dict[str, int] = {}
    ranked = []
    for item in sorted(candidates):
        turns[item[5]] = turns.get(item[5], -1) + 1
        ranked.append((turns[item[5]], item))
    chosen = [item for _, item in sorted(ranked)[: max_cuts or None]]
    for _, number, row, id, text, who in sorted(chosen, key=lambda item: (item[1], item[2])):
        result.manifests[number][1].append(row)
        result.ids.append(id)
        result.texts.append(text)
        result.speakers.append(who)
    return result


def log_mel_features(utterances: Utterances, batch_seconds: float) -> list[np.ndarray]:
    """Mean and standard deviation of each mel bin over the utterance: one "layer" (U, 256)."""
    extractor = FbankExtractor()
    rows = []
    for manifest, positions in utterances.manifests:
        if not positions:
            continue
        found: dict[int, np.ndarray] = {}
        for batch, waveforms, lengths in waveform_batches(manifest, batch_seconds, positions):
            fbank, num_frames = extractor(waveforms, lengths)
            for row, frames, count in zip(batch, fbank, num_frames.tolist()):
                frames = frames[:count].double()
                found[row] = torch.cat([frames.mean(0), frames.std(0, correction=0)]).numpy()
        rows += [found[position] for position in positions]
    return [np.stack(rows)]


@torch.no_grad()
def encoder_features(
    encoder: Encoder,
    utterances: Utterances,
    batch_seconds: float,
    device: torch.device | str = "cpu",
    description: str = "features",
) -> list[np.ndarray]:
    """Mean over the valid frames of every layer: a list of (U, D) arrays, the encoder's output last."""
    encoder = encoder.to(device).eval()
    rows: list[list[np.ndarray]] = []
    for manifest, positions in utterances.manifests:
        if not positions:
            continue
        found: dict[int, list[np.ndarray]] = {}
        batches = waveform_batches(manifest, batch_seconds, positions)
        for batch, waveforms, lengths in progress(batches, None, description, "batches"):
            output = encoder.extract(waveforms.to(device), lengths.to(device))
            frames = [encoder.hidden_length(length) for length in lengths.tolist()]
            at_50_hz = torch.tensor(frames, device=device)
            means = [masked_mean(hidden, at_50_hz) for hidden in output.hidden_states]
            means.append(masked_mean(output.encoder_out, output.lengths))
            arrays = [mean.double().cpu().numpy() for mean in means]
            for index, row in enumerate(batch):
                found[row] = [array[index] for array in arrays]
        rows += [found[position] for position in positions]
    return [np.stack(layer) for layer in zip(*rows)]


def masked_mean(frames: Tensor, lengths: Tensor) -> Tensor:
    """Mean over time of the valid frames: (B, T, D), (B,) -> (B, D)."""
    valid = (torch.arange(frames.shape[1], device=frames.device) < lengths.unsqueeze(1)).unsqueeze(2)
    return torch.where(valid, frames.float(), 0.0).sum(1) / lengths.clamp(min=1).unsqueeze(1)


class Ridge:
    """Ridge regression for many strengths at the cost of one.

    Features are standardised with those of the training vectors; the bias is the mean of the targets.

    Args:
      features: (U, D) training vectors.
      targets: (U, K).
    """

    def __init__(self, features: np.ndarray, targets: np.ndarray) -> None:
        self.mean, self.scale = features.mean(0), features.std(0)
        self.scale = np.where(self.scale > 1e-12, self.scale, 1.0)
        self.bias = targets.mean(0)
        x = self._standardise(features)
        self.values, self.vectors = np.linalg.eigh(x.T @ x / len(x))
        self.projected = self.vectors.T @ (x.T @ (targets - self.bias) / len(x))

    def _standardise(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) / self.scale

    def predict(self, features: np.ndarray, strength: float) -> np.ndarray:
        """Scores (U, K) with ridge ``strength`` (in units of the variance of a standardised feature)."""
        weights = self.vectors @ (self.projected / (np.maximum(self.values, 0.0) + strength)[:, None])
        return self._standardise(features) @ weights + self.bias


def frequent_words(texts: list[str], min_count: int) -> list[str]:
    """Words that occur in at least ``min_count`` utterances and are absent from at least as many."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in set(text.split()):
            counts[word] = counts.get(word, 0) + 1
    return sorted(word for word, count in counts.items() if min_count <= count <= len(texts) - min_count)


def word_targets(texts: list[str], words: list[str]) -> np.ndarray:
    """(U, K) 1.0 where the utterance holds the word, else 0.0."""
    return np.array([[float(word in spoken) for word in words] for spoken in (set(t.split()) for t in texts)])


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Percent; mean over the words that at least one utterance holds and one does not."""
    from sklearn.metrics import average_precision_score

    usable = (targets.sum(0) > 0) & (targets.sum(0) < len(targets))
    if not usable.any():
        raise ValueError(
            "no probed word both occurs and is absent in the evaluated utterances; use more cuts"
        )
    values = [average_precision_score(targets[:, k], scores[:, k]) for k in np.flatnonzero(usable)]
    return 100.0 * float(np.mean(values))


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


def probe_words(
    train: list[np.ndarray],
    dev: list[np.ndarray],
    test: list[np.ndarray],
    targets: tuple[np.ndarray, np.ndarray, np.ndarray],
    num_seeds: int,
) -> ProbeResult:
    """Word probe. ``train``, ``dev``, ``test`` are lists over layers of (U, D); ``targets`` their (U, K).

    Layer and strength are chosen on dev with all training utterances; each seed then trains on a random 80 %.
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
        random = keyed_random.generator("probe_words", seed)
        rows = np.sort(random.permutation(len(targets[0]))[: max(2, round(0.8 * len(targets[0])))])
        scores = Ridge(train[layer][rows], targets[0][rows]).predict(test[layer], strength)
        results.append(mean_average_precision(scores, targets[2]))
    return ProbeResult(results, value, layer + 1, len(train), strength, "mean average precision")


def split_by_speaker(speakers: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training and of the test half: every speaker's utterances are divided at random.

    Raises:
      ValueError: fewer than two speakers with two utterances each.
    """
    random = keyed_random.generator("probe_speaker", seed)
    train, test = [], []
    for who in sorted(set(speakers)):
        rows = random.permutation([index for index, name in enumerate(speakers) if name == who])
        if len(rows) >= 2:
            half = (len(rows) + 1) // 2
            train += rows[:half].tolist()
            test += rows[half:].tolist()
    if len({speakers[row] for row in train}) < 2:
        raise ValueError(
            "the speaker probe needs at least two speakers with two utterances each; "
            f"these {len(speakers)} utterances have {len(set(speakers))} speakers. Use more cuts"
        )
    return np.array(sorted(train)), np.array(sorted(test))


def speaker_accuracy(features: np.ndarray, speakers: list[str], seed: int) -> list[float]:
    """Accuracy in percent for every strength in STRENGTHS, features (U, D)."""
    names = sorted(set(speakers))
    labels = np.array([names.index(who) for who in speakers])
    train, test = split_by_speaker(speakers, seed)
    ridge = Ridge(features[train], np.eye(len(names))[labels[train]])
    return [
        100.0 * float(np.mean(ridge.predict(features[test], strength).argmax(1) == labels[test]))
        for strength in STRENGTHS
    ]


def probe_speakers(
    dev: list[np.ndarray],
    test: list[np.ndarray],
    dev_speakers: list[str],
    test_speakers: list[str],
    num_seeds: int,
) -> ProbeResult:
    """Speaker probe: layer and strength from the speakers of dev, result from those of test.

    ``dev`` and ``test`` are lists over layers of (U, D).
    """
    best = (-1.0, 0, 0)
    for layer, features in enumerate(dev):
        runs = [speaker_accuracy(features, dev_speakers, seed) for seed in range(num_seeds)]
        for index, value in enumerate(np.mean(runs, axis=0)):
            best = max(best, (float(value), layer, index))
    value, layer, index = best
    results = [speaker_accuracy(test[layer], test_speakers, seed)[index] for seed in range(num_seeds)]
    return ProbeResult(results, value, layer + 1, len(dev), STRENGTHS[index], "accuracy")
