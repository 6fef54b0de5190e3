"""Ridge regression on one vector per utterance, and the measures of probes: closed form, exactly repeatable.

Legend: U utterances, D dimensions, K labels or classes.
"""

import numpy as np

from spear_lib.runtime import keyed_random

STRENGTHS = tuple(10.0**power for power in range(-4, 3))
"""Ridge strengths to choose from, relative to the mean variance of the features."""


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
        self.x = self._standardise(features)
        # Of the two Gram matrices the smaller one: few cuts of many features are the rule in training.
        self.dual = len(self.x) < self.x.shape[1]
        gram = self.x @ self.x.T if self.dual else self.x.T @ self.x
        self.values, self.vectors = np.linalg.eigh(gram / len(self.x))
        centred = targets - self.bias
        self.projected = self.vectors.T @ ((centred if self.dual else self.x.T @ centred) / len(self.x))

    def _standardise(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) / self.scale

    def predict(self, features: np.ndarray, strength: float) -> np.ndarray:
        """Scores (U, K) with ridge ``strength`` (in units of the variance of a standardised feature)."""
        weights = self.vectors @ (self.projected / (np.maximum(self.values, 0.0) + strength)[:, None])
        weights = self.x.T @ weights if self.dual else weights
        return self._standardise(features) @ weights + self.bias


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Percent; mean over the labels that at least one cut has and one has not.

    Args:
      scores: (U, K), targets: (U, K) of 0 and 1.

    Raises:
      ValueError: every label is had by all or by none.
    """
    from sklearn.metrics import average_precision_score

    usable = (targets.sum(0) > 0) & (targets.sum(0) < len(targets))
    if not usable.any():
        raise ValueError(
            "no probed word or event class both occurs and is absent in the evaluated cuts; use more cuts"
        )
    values = [average_precision_score(targets[:, k], scores[:, k]) for k in np.flatnonzero(usable)]
    return 100.0 * float(np.mean(values))


def split_by_speaker(speakers: list[str], sessions: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training and of the test half: every speaker's sessions are divided at random.

    Raises:
      ValueError: fewer than two speakers with two sessions each.
    """
    random = keyed_random.generator("probe_speaker", seed)
    train, test = [], []
    for who in sorted(set(speakers)):
        rows = [index for index, name in enumerate(speakers) if name == who]
        own = random.permutation(sorted({sessions[row] for row in rows})).tolist()
        if len(own) >= 2:
            first = set(own[: (len(own) + 1) // 2])
            train += [row for row in rows if sessions[row] in first]
            test += [row for row in rows if sessions[row] not in first]
    if len({speakers[row] for row in train}) < 2:
        raise ValueError(
            "the speaker probe needs at least two speakers with two recording sessions (or, where the cuts "
            f"do not tell these, two utterances) each; these {len(speakers)} utterances have "
            f"{len(set(speakers))} speakers in {len(set(sessions))} sessions. Use more cuts"
        )
    return np.array(sorted(train)), np.array(sorted(test))


def speaker_accuracy(
    features: np.ndarray, speakers: list[str], sessions: list[str], seed: int
) -> list[float]:
    """Accuracy in percent for every strength in STRENGTHS, features (U, D)."""
    names = sorted(set(speakers))
    labels = np.array([names.index(who) for who in speakers])
    train, test = split_by_speaker(speakers, sessions, seed)
    ridge = Ridge(features[train], np.eye(len(names))[labels[train]])
    return [
        100.0 * float(np.mean(ridge.predict(features[test], strength).argmax(1) == labels[test]))
        for strength in STRENGTHS
    ]
