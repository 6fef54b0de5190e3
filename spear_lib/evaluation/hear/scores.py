"""The scores of HEAR tasks, equal to heareval's and sed_eval's (spec evaluation §2.4, golden/hear).

Legend: N clips or frames, K classes.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

CHROMA = 12
EPSILON = float(np.spacing(1))  # sed_eval adds it to denominators


@dataclass(frozen=True)
class Event:
    """A sound event; times in ms."""

    label: str
    start: float
    end: float


Events = dict[str, list[Event]]
"""File -> its events."""


def top1_accuracy(scores: np.ndarray, targets: np.ndarray) -> float:
    """Share of rows whose highest score (N, K) is that of the (first) class of targets (N, K)."""
    return float(np.mean(scores.argmax(1) == targets.argmax(1)))


def chroma_accuracy(scores: np.ndarray, targets: np.ndarray) -> float:
    """As top1_accuracy of classes that are consecutive pitches, octave errors forgiven."""
    return float(np.mean(scores.argmax(1) % CHROMA == targets.argmax(1) % CHROMA))


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Macro mean of average precision; a class without positives counts 0, as scikit-learn has it."""
    from sklearn.metrics import average_precision_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class without positives
        return float(average_precision_score(targets, scores, average="macro"))


def _areas(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of every class, all NaN if one class has no positives or no negatives."""
    from sklearn.metrics import roc_auc_score

    count = targets.sum(0)
    if ((count == 0) | (count == len(targets))).any():
        return np.full(targets.shape[1], math.nan)
    return np.array([roc_auc_score(targets[:, k], scores[:, k]) for k in range(targets.shape[1])])


def roc_area(scores: np.ndarray, targets: np.ndarray) -> float:
    """Macro mean of the area under the ROC curve; NaN if a class has no positives or no negatives."""
    return float(_areas(scores, targets).mean())


def d_prime(scores: np.ndarray, targets: np.ndarray) -> float:
    """Macro mean of sqrt(2) z(area); infinite if a class is perfect."""
    from scipy.stats import norm

    return float((norm.ppf(_areas(scores, targets)) * math.sqrt(2.0)).mean())


CLIP_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "top1_acc": top1_accuracy,
    "pitch_acc": top1_accuracy,
    "chroma_acc": chroma_accuracy,
    "mAP": mean_average_precision,
    "aucroc": roc_area,
    "d_prime": d_prime,
}


def event_scores(
    predicted: Events, target: Events, collar: float, offset_share: float | None = None
) -> dict[str, float]:
    """f_measure, precision and recall of events over all files and classes together (sed_eval "overall").

    A pair may match if it is of one label and the onsets are at most ``collar`` s apart, and with
    ``offset_share`` the offsets at most max(collar, that share of the target's duration); of all matchings
    the largest counts. Differences are taken in float seconds: 50 ms apart is beyond a collar of 0.05, 200 ms
    within one of 0.2. Files that are not among the predicted ones are not scored. Precision is NaN where
    nothing is predicted, recall where there is nothing to find.
    """
    hits = num_predicted = num_target = 0
    for name, found in predicted.items():
        wanted = target.get(name, [])
        num_predicted, num_target = num_predicted + len(found), num_target + len(wanted)
        if not found or not wanted:
            continue
        pairs = np.zeros((len(wanted), len(found)), dtype=bool)
        for row, one in enumerate(wanted):
            start, end = one.start / 1000.0, one.end / 1000.0
            for column, other in enumerate(found):
                fits = one.label == other.label and abs(start - other.start / 1000.0) <= collar
                if fits and offset_share is not None:
                    most = max(collar, offset_share * (end - start))
                    fits = abs(end - other.end / 1000.0) <= most
                pairs[row, column] = fits
        matching = maximum_bipartite_matching(csr_matrix(pairs), perm_type="column")
        hits += int((matching >= 0).sum())
    precision = hits / num_predicted if num_predicted else math.nan
    recall = hits / num_target if num_target else math.nan
    total = precision + recall
    f_measure = 0.0 if total == 0 else 2 * precision * recall / total
    return {"f_measure": f_measure, "precision": precision, "recall": recall}


def segment_error_rate(predicted: Events, target: Events, seconds: float = 1.0) -> dict[str, float]:
    """error_rate: substitutions, deletions and insertions of classes per segment, over the active classes of
    the targets (sed_eval's segment-based error rate)."""
    errors = active = 0
    for name, found in predicted.items():
        wanted = target.get(name, [])
        labels = sorted({event.label for event in [*found, *wanted]})
        spans = [
            (math.floor(event.start / 1000.0 / seconds), math.ceil(event.end / 1000.0 / seconds))
            for event in [*found, *wanted]
        ]
        length = max((end for _, end in spans), default=0)
        rolls = np.zeros((2, length, len(labels)), dtype=bool)
        sources = [0] * len(found) + [1] * len(wanted)
        for source, event, (first, last) in zip(sources, [*found, *wanted], spans):
            rolls[source, first:last, labels.index(event.label)] = True
        hits = (rolls[0] & rolls[1]).sum(1)
        found_in, wanted_in = rolls[0].sum(1), rolls[1].sum(1)
        substituted = np.minimum(found_in, wanted_in) - hits
        errors += int((substituted + np.abs(found_in - wanted_in)).sum())
        active += int(wanted_in.sum())
    return {"error_rate": errors / (active + EPSILON)}


EVENT_SCORES: dict[str, Callable[[Events, Events], dict[str, float]]] = {
    "event_onset_200ms_fms": lambda predicted, target: event_scores(predicted, target, 0.2),
    "event_onset_50ms_fms": lambda predicted, target: event_scores(predicted, target, 0.05),
    "event_onset_offset_50ms_20perc_fms": lambda predicted, target: event_scores(
        predicted, target, 0.05, 0.2
    ),
    "segment_1s_er": segment_error_rate,
}


def primary(values: dict[str, float]) -> float:
    """The one number of an event score that models are chosen by: higher is better. heareval's is NaN where
    nothing is predicted, and ends training there; here it is 0 and training goes on."""
    if "error_rate" in values:
        return -values["error_rate"]
    value = values["f_measure"]
    return 0.0 if math.isnan(value) else value
