"""SD: who speaks when, several activities per frame, permutations free (after s3prl's SuperbSD).

DER, by this rule: frames of 20 ms; a segment is active from round(start / 20 ms) to before
round(end / 20 ms). Speakers of a recording are matched one to one with the outputs so that most frames agree.
DER is missed, false and confused speaker time over all recordings, divided by the speaker time of the
reference. Overlap counts; ``collar`` seconds on both sides of every border of the reference do not (default
0, as SUPERB). Threshold and median filter are chosen on validation (s3prl reports the best on test).

Legend: B recordings, T frames, S outputs, R speakers of the reference.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lhotse.cut import Cut
from scipy.ndimage import median_filter
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from spear_lib.evaluation.clip_sets import Clip
from spear_lib.evaluation.downstream.heads import FrameTagger, frames_mask
from spear_lib.evaluation.downstream.training import Features, Recipe

FRAMES_PER_SECOND = 50
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
MEDIANS = (1, 11)


def activity(cut: Cut, num_frames: int) -> np.ndarray:
    """(T, R) bool, speakers in alphabetical order.

    Raises:
      ValueError: a supervision without a speaker.
    """
    speakers = sorted({str(one.speaker) for one in cut.supervisions})
    nameless = next((one.id for one in cut.supervisions if one.speaker is None), None)
    if nameless is not None:
        raise ValueError(
            f"supervision {nameless} of cut {cut.id} has no speaker: SD needs one of each segment"
        )
    found = np.zeros((num_frames, len(speakers)), dtype=bool)
    for one in cut.supervisions:
        first, last = (round(max(0.0, time) * FRAMES_PER_SECOND) for time in (one.start, one.end))
        found[first:last, speakers.index(str(one.speaker))] = True
    return found


@dataclass
class DiarizationErrors:
    """Speaker time in frames; they add up over recordings."""

    missed: int = 0
    false_alarm: int = 0
    confused: int = 0
    speech: int = 0
    """Speaker time of the reference."""

    def __add__(self, other: "DiarizationErrors") -> "DiarizationErrors":
        return DiarizationErrors(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))

    @property
    def rate(self) -> float:
        """DER, 0..; infinite without any speech but with false alarms."""
        wrong = self.missed + self.false_alarm + self.confused
        return wrong / self.speech if self.speech else (float("inf") if wrong else 0.0)


def diarization_errors(
    predicted: np.ndarray, reference: np.ndarray, collar: float = 0.0
) -> DiarizationErrors:
    """Of one recording.

    Args:
      predicted: (T, S) bool. reference: (T, R) bool.
      collar: s on both sides of every border of the reference that are not scored.
    """
    if collar:
        width = round(collar * FRAMES_PER_SECOND)
        padded = np.pad(reference, ((1, 1), (0, 0)))
        borders = np.flatnonzero((padded[1:] != padded[:-1]).any(1))
        scored = np.ones(len(reference), dtype=bool)
        for border in borders:
            scored[max(0, border - width) : border + width] = False
        predicted, reference = predicted[scored], reference[scored]
    together = predicted.astype(np.int64).T @ reference.astype(np.int64)
    matched = int(together[linear_sum_assignment(-together)].sum())
    ours, theirs = predicted.sum(1), reference.sum(1)
    return DiarizationErrors(
        missed=int(np.maximum(theirs - ours, 0).sum()),
        false_alarm=int(np.maximum(ours - theirs, 0).sum()),
        confused=int(np.minimum(ours, theirs).sum()) - matched,
        speech=int(theirs.sum()),
    )


def permutation_free_loss(logits: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Binary cross entropy per frame and output, of the best permutation of each recording.

    Args:
      logits, targets: (B, T, S). lengths: (B,) frames.
    """
    mask = frames_mask(lengths, logits.shape[1]).unsqueeze(2)
    by_order = []
    for order in itertools.permutations(range(targets.shape[2])):
        each = F.binary_cross_entropy_with_logits(logits, targets[:, :, list(order)], reduction="none")
        by_order.append((each * mask).mean(2).sum(1))
    return torch.stack(by_order).min(0).values.sum() / lengths.sum()


@dataclass
class Diarization:
    """The task, for ``training.train_head``."""

    clips: Sequence[Clip]
    """All of them: the most speakers of one decide the outputs."""
    collar: float = 0.0
    chunk_frames: int = 2000
    """Longest training example (s3prl: 2000, 40 s)."""
    recipe: Recipe = Recipe(30000, 500, 8, 4)
    metric: str = "DER (%)"
    better: str = "lower"
    targets: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.num_speakers = max(len({one.speaker for one in clip.cut().supervisions}) for clip in self.clips)
        if self.num_speakers > 6:
            raise ValueError(
                f"{self.num_speakers} speakers in one cut: the loss tries every order of them, use cuts of "
                "6 or fewer (cut recordings into shorter windows)"
            )

    def target(self, clip: Clip, num_frames: int) -> np.ndarray:
        """(T, R) bool of a clip."""
        if clip.name not in self.targets:
            self.targets[clip.name] = activity(clip.cut(), num_frames)
        return self.targets[clip.name]

    def head(self, dim: int, hidden: int) -> nn.Module:
        return FrameTagger(dim, self.num_speakers, hidden)

    def crop(self, clip: Clip, states: Tensor, random: np.random.Generator) -> tuple[Tensor, np.ndarray]:
        total = states.shape[1]
        first = int(random.integers(0, max(1, total - self.chunk_frames + 1)))
        chunk = slice(first, first + self.chunk_frames)
        return states[:, chunk], self.target(clip, total)[chunk]

    def loss(self, head: nn.Module, features: Tensor, lengths: Tensor, targets: list[np.ndarray]) -> Tensor:
        padded = torch.zeros(len(targets), features.shape[1], self.num_speakers, device=features.device)
        for row, target in enumerate(targets):
            padded[row, : len(target), : target.shape[1]] = torch.from_numpy(target)
        return permutation_free_loss(head(features, lengths), padded, lengths)

    def scores(
        self, head: nn.Module, features: Features, clips: Sequence[Clip], chosen: Any
    ) -> tuple[dict[str, float], Any]:
        settings = [chosen] if chosen else [[t, m] for t in THRESHOLDS for m in MEDIANS]
        sums = [DiarizationErrors() for _ in settings]
        for clip in clips:
            likely = head(*features(clip))[0].sigmoid().cpu().numpy()
            reference = self.target(clip, len(likely))
            for index, (threshold, median) in enumerate(settings):
                predicted = likely > threshold
                if median > 1:
                    predicted = median_filter(predicted, (median, 1), mode="constant")
                sums[index] += diarization_errors(predicted, reference, self.collar)
        best = min(range(len(settings)), key=lambda index: sums[index].rate)
        found = sums[best]
        return {
            self.metric: 100.0 * found.rate,
            "missed (%)": 100.0 * found.missed / max(1, found.speech),
            "false alarm (%)": 100.0 * found.false_alarm / max(1, found.speech),
            "confused (%)": 100.0 * found.confused / max(1, found.speech),
        }, settings[best]
