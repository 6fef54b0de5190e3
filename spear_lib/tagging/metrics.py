"""How well sounds are tagged: average precision, area under the ROC curve, d-prime (spec evaluation §6).

Everything is computed from counts: clips of equal score form a group, and a class is the list of its groups
with the number of clips that have the label (positives) and that do not (negatives). Groups of one score
each give the exact values; groups of a range of scores (``ScoreCounts``) can be added up over batches and
processes.

Legend: N clips, K classes, G groups of equal score, in ascending order of the score.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor


def average_precision(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Area under the steps of precision over recall, AP = sum_n (R_n - R_{n-1}) P_n, no interpolation.

    Args:
      positives, negatives: (..., G) counts, groups in ascending order of the score.

    Returns:
      (...) in 0..1; NaN without positives.
    """
    hits = np.cumsum(positives[..., ::-1], axis=-1, dtype=np.float64)
    seen = hits + np.cumsum(negatives[..., ::-1], axis=-1, dtype=np.float64)
    gained = positives[..., ::-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(seen > 0, hits / seen, 0.0)
        return (gained * precision).sum(-1) / hits[..., -1]


def roc_area(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: the share of pairs (positive, negative) in the right order, ties count half.

    Arguments as ``average_precision``. NaN without positives or without negatives.
    """
    below = np.cumsum(negatives, axis=-1, dtype=np.float64) - negatives
    right = (positives * (below + 0.5 * negatives)).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return right / (positives.sum(-1, dtype=np.float64) * negatives.sum(-1, dtype=np.float64))


def d_prime(area: float) -> float:
    """sqrt(2) z(area): how many standard deviations two normal distributions of that area lie apart."""
    if math.isnan(area) or not 0.0 < area < 1.0:
        return math.nan if math.isnan(area) else math.copysign(math.inf, area - 0.5)
    return math.sqrt(2.0) * NormalDist().inv_cdf(area)


def count_groups(targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One class: targets (N,) bool and scores (N,) to the (positives, negatives) (G,) of each distinct
    score."""
    _, group = np.unique(scores, return_inverse=True)
    size = int(group.max(initial=-1)) + 1
    positives = np.bincount(group[targets], minlength=size)
    return positives, np.bincount(group, minlength=size) - positives


@dataclass(frozen=True)
class ClassScore:
    """How well one class is found."""

    index: int
    label: str
    """Its id, in AudioSet the mid."""
    name: str
    support: int
    """Clips that have the label."""
    average_precision: float
    """0..1."""
    roc_area: float
    """0..1; NaN where every clip has the label."""


@dataclass(frozen=True)
class TaggingScore:
    """How well the labels of a set are found."""

    classes: list[ClassScore]
    """The classes with positives, those of most support first."""
    num_clips: int
    num_classes: int
    """Classes of the model, with and without positives."""

    @property
    def mean_average_precision(self) -> float:
        """Macro mean over the classes with positives, in percent."""
        return 100.0 * float(np.mean([each.average_precision for each in self.classes]))

    @property
    def mean_roc_area(self) -> float:
        """Macro mean over the classes with positives and negatives, 0..1; NaN if there is none."""
        areas = [each.roc_area for each in self.classes if not math.isnan(each.roc_area)]
        return float(np.mean(areas)) if areas else math.nan

    @property
    def d_prime(self) -> float:
        """Of the mean area (as in the literature of AudioSet)."""
        return d_prime(self.mean_roc_area)

    @property
    def chance(self) -> float:
        """What random scores reach, in percent: the mean share of clips that have a label."""
        return 100.0 * float(np.mean([each.support for each in self.classes])) / self.num_clips

    def summary(self) -> dict:
        """The numbers for a result file; what is not finite is None."""
        return {
            "map": round(self.mean_average_precision, 4),
            "mean_auc": _finite(self.mean_roc_area),
            "d_prime": _finite(self.d_prime),
            "num_clips": self.num_clips,
            "num_classes": self.num_classes,
            "num_scored_classes": len(self.classes),
            "chance_map": round(self.chance, 4),
        }


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def score(targets: np.ndarray, scores: np.ndarray, classes: dict[str, str]) -> TaggingScore:
    """Scores of a set of clips.

    Args:
      targets: (N, K) bool, True where the clip has the label.
      scores: (N, K); only their order within a class counts.
      classes: {label: name} in the order of the columns.

    Raises:
      ValueError: shapes that do not fit, scores that are not numbers, or no clip with any label.
    """
    targets = np.asarray(targets, dtype=bool)
    if targets.shape != scores.shape or targets.ndim != 2 or targets.shape[1] != len(classes):
        raise ValueError(
            f"targets {targets.shape} and scores {scores.shape} must both be (clips, {len(classes)} classes)"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} scores are not finite: is the model damaged?")
    if not targets.any():
        raise ValueError(f"none of {len(targets)} clips has a label, so nothing can be scored")
    found = []
    for index, (label, name) in enumerate(classes.items()):
        support = int(targets[:, index].sum())
        if support:
            groups = count_groups(targets[:, index], scores[:, index])
            found.append(
                ClassScore(
                    index, label, name, support, float(average_precision(*groups)), float(roc_area(*groups))
                )
            )
    found.sort(key=lambda each: (-each.support, each.index))
    return TaggingScore(found, len(targets), len(classes))


class ScoreCounts:
    """Counts of clips by range of score, which add up over batches and processes: for validation.

    Scores are logits; the ranges are 1/64 wide and reach from -16 to 16. The mean average precision from them
    differs from the exact one only by the order of clips within one range.
    """

    RANGES = 2048
    _LIMIT, _PER_UNIT = 16.0, 64.0

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """logits (B, K), targets (B, K) in 0..1 -> (positives, negatives), (K, RANGES) each, on their
        device."""
        clipped = logits.double().clamp(-cls._LIMIT, cls._LIMIT)
        ranges = ((clipped + cls._LIMIT) * cls._PER_UNIT).long().clamp(max=cls.RANGES - 1).T
        positive = (targets > 0.5).T.double()
        counts = torch.zeros((2, len(ranges), cls.RANGES), dtype=torch.float64, device=logits.device)
        counts[0].scatter_add_(1, ranges, positive)
        counts[1].scatter_add_(1, ranges, 1.0 - positive)
        return counts[0], counts[1]

    @staticmethod
    def mean_average_precision(positives: Tensor, negatives: Tensor) -> float:
        """In percent, over the classes with positives; NaN if there are none."""
        each = average_precision(positives.cpu().numpy(), negatives.cpu().numpy())
        known = each[~np.isnan(each)]
        return 100.0 * float(known.mean()) if len(known) else math.nan
