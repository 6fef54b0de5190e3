"""SV (s3prl: ASV): are two utterances of one speaker; x-vector, margin softmax, equal error rate.

After s3prl's SuperbASV, but: crops are taken from frozen states, not from audio; silence is not cut out (sox
does it there); the step is chosen on validation pairs (s3prl keeps the last one).
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.evaluation.clip_sets import Clip
from spear_lib.evaluation.downstream.heads import MarginSoftmax, XVector
from spear_lib.evaluation.downstream.training import Features, Recipe
from spear_lib.runtime import keyed_random

LONGEST_CROP = 400  # frames, 8 s
MAX_PAIRS = 200_000
Trial = tuple[bool, str, str]
"""One speaker or two, names of the clips."""


def equal_error_rate(scores: np.ndarray, same: np.ndarray) -> float:
    """Where the shares of false acceptances and false rejections are equal, 0..1.

    Between two thresholds both shares are interpolated linearly, as s3prl does (roc_curve and brentq).

    Args:
      scores: (N,) higher is more alike. same: (N,) bool.

    Raises:
      ValueError: no pair of one kind.
    """
    same = np.asarray(same, dtype=bool)
    if same.all() or not same.any():
        raise ValueError(
            f"{int(same.sum())} of {len(same)} trials are of one speaker: an error rate needs both kinds"
        )
    order = np.argsort(-np.asarray(scores), kind="stable")
    ordered, hits = np.asarray(scores)[order], same[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    accepted = np.append(0.0, np.cumsum(~hits)[ends] / (~same).sum())
    rejected = np.append(1.0, 1.0 - np.cumsum(hits)[ends] / same.sum())
    after = int(np.argmax(accepted >= rejected))
    gap_before, gap_after = rejected[after - 1] - accepted[after - 1], accepted[after] - rejected[after]
    share = gap_before / (gap_before + gap_after) if gap_before + gap_after > 0 else 1.0
    return float(accepted[after - 1] + share * (accepted[after] - accepted[after - 1]))


def read_trials(path: str | Path, names: Iterable[str]) -> list[Trial]:
    """Lines "1 a b" (one speaker) and "0 a b", as VoxCeleb publishes them; a and b are names of clips, or
    paths whose parts joined by "-" end in one.

    Raises:
      ValueError: a line of another form, or a name that no clip has.
    """
    known = set(names)
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 3 or words[0] not in ("0", "1"):
            raise ValueError(f"{path}, line {number}: {line[:60]!r}, expected '1 enrolled tested' or '0 ...'")
        pair = []
        for word in words[1:]:
            joined = "-".join(Path(word).with_suffix("").parts)
            name = next((one for one in (word, joined) if one in known), None)
            if name is None:
                raise ValueError(f"{path}, line {number}: no test clip is called {word!r} or {joined!r}")
            pair.append(name)
        found.append((words[0] == "1", *pair))
    if not found:
        raise ValueError(f"{path} holds no trials")
    return found


def all_pairs(clips: Sequence[Clip], seed: int = 0) -> list[Trial]:
    """Every pair of clips; above MAX_PAIRS all pairs of one speaker, up to half of it, and a sample of those
    of two."""
    if len(clips) * (len(clips) - 1) // 2 <= MAX_PAIRS:
        return [(a.labels == b.labels, a.name, b.name) for a, b in itertools.combinations(clips, 2)]
    random = keyed_random.generator("trials", seed)
    of_speaker: dict[tuple[str, ...], list[str]] = {}
    for clip in clips:
        of_speaker.setdefault(clip.labels, []).append(clip.name)
    same = [(True, *pair) for own in of_speaker.values() for pair in itertools.combinations(own, 2)]
    if len(same) > MAX_PAIRS // 2:
        same = [same[index] for index in np.sort(random.choice(len(same), MAX_PAIRS // 2, replace=False))]
    other: dict[tuple[int, int], Trial] = {}
    while len(of_speaker) > 1 and len(other) < MAX_PAIRS - len(same):
        one, two = sorted(random.integers(0, len(clips), 2).tolist())
        if clips[one].labels != clips[two].labels:
            other[one, two] = (False, clips[one].name, clips[two].name)
    return same + list(other.values())


class _Speakers(nn.Module):
    """Embedding and, for training, its classes."""

    def __init__(self, dim: int, num_speakers: int, hidden: int) -> None:
        super().__init__()
        self.embed = XVector(dim, hidden, wide=round(hidden * 1500 / 512))
        self.classes = MarginSoftmax(hidden, num_speakers)


@dataclass
class Verification:
    """The task, for ``training.train_head``."""

    train: Sequence[Clip]
    trials: list[Trial] | None = None
    """Of the test clips; all pairs by default, and always of validation."""
    recipe: Recipe = Recipe(200_000, 10_000, 10, 5, clipping=1e3, adamw=True)
    metric: str = "EER (%)"
    better: str = "lower"

    def __post_init__(self) -> None:
        several = next((clip for clip in self.train if len(clip.labels) != 1), None)
        if several is not None:
            raise ValueError(f"{several.name} has the labels {several.labels}: one speaker is wanted")
        self.speakers = {
            label: index for index, label in enumerate(sorted({c.labels[0] for c in self.train}))
        }
        if len(self.speakers) < 2:
            raise ValueError(
                f"all training clips are of {next(iter(self.speakers))}: two speakers are needed"
            )

    def head(self, dim: int, hidden: int) -> nn.Module:
        return _Speakers(dim, len(self.speakers), hidden)

    def crop(self, clip: Clip, states: Tensor, random: np.random.Generator) -> tuple[Tensor, int]:
        first = int(random.integers(0, max(1, states.shape[1] - LONGEST_CROP + 1)))
        return states[:, first : first + LONGEST_CROP], self.speakers[clip.labels[0]]

    def loss(self, head: nn.Module, features: Tensor, lengths: Tensor, targets: list[int]) -> Tensor:
        labels = torch.tensor(targets, device=features.device)
        return head.classes(head.embed(features, lengths), labels)

    def scores(
        self, head: nn.Module, features: Features, clips: Sequence[Clip], chosen: Any
    ) -> tuple[dict[str, float], Any]:
        vectors = {clip.name: F.normalize(head.embed(*features(clip)))[0].cpu() for clip in clips}
        # Validation has chosen nothing yet; its pairs are all there are.
        trials = self.trials if chosen and self.trials else all_pairs(clips)
        values = np.array([float(vectors[a] @ vectors[b]) for _, a, b in trials])
        rate = equal_error_rate(values, np.array([same for same, _, _ in trials]))
        return {self.metric: 100.0 * rate}, "trials"
