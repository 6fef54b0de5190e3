"""How well discrete units stand for phones: purities, PNMI, perplexity, bit rate (spec evaluation §5.2).

Legend: P phones, U units, T frames of 10 ms.
"""

import math
from collections.abc import Iterable
from fractions import Fraction
from itertools import groupby
from typing import Any

import numpy as np

from spear_lib.evaluation.alignments import Phone, is_silence

FRAME_RATE = 100
"""Frames per second at which phones and units are counted together."""
TOLERANCE = 2
"""Frames by which phones and units of a file may differ in number; the rest is cut off."""
SILENCE = "SIL"
"""The class of all labels that are no phones."""


def quality_of_counts(counts: np.ndarray) -> dict[str, Any]:
    """Measures of a table n(phone, unit), (P, U); natural logarithms.

    Raises:
      ValueError: an empty table.
    """
    counts = np.asarray(counts, dtype=np.float64)
    total = counts.sum()
    if total <= 0:
        raise ValueError("no frame has both a phone and a unit")
    joint = counts / total
    phones, units = joint.sum(1), joint.sum(0)
    seen = joint > 0
    information = float((joint[seen] * np.log(joint[seen] / np.outer(phones, units)[seen])).sum())
    information = max(0.0, information)
    entropies = [_entropy(phones), _entropy(units)]
    return {
        "phone_purity": float(joint.max(0).sum()),
        "cluster_purity": float(joint.max(1).sum()),
        "pnmi": information / entropies[0] if entropies[0] else 1.0,
        "mutual_information_nats": information,
        "phone_entropy_nats": entropies[0],
        "unit_entropy_nats": entropies[1],
        "codebook_perplexity": math.exp(entropies[1]),
        "active_units": int((units > 0).sum()),
        "frames": int(total),
    }


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return max(0.0, float(-(shares * np.log(shares)).sum()))


def count_frames(phones: np.ndarray, units: np.ndarray, table: np.ndarray, where: str = "a file") -> int:
    """Add the frames of one file to ``table`` (P, U); returns how many.

    Args:
      phones: (T,) at 10 ms, -1 where none is known.
      units: (T',) at 10 ms, or at a rate that goes into 100 Hz, then repeated by the caller.

    Raises:
      ValueError: their numbers differ by more than TOLERANCE.
    """
    if abs(len(phones) - len(units)) > TOLERANCE:
        raise ValueError(
            f"{where} has {len(phones)} frames of phones and {len(units)} of units at 10 ms: alignment and "
            "units do not belong together"
        )
    count = min(len(phones), len(units))
    known = phones[:count] >= 0
    np.add.at(table, (phones[:count][known], units[:count][known]), 1)
    return int(known.sum())


def repeats(frame_rate: float) -> int:
    """How often a unit at ``frame_rate`` Hz is repeated to give 100 Hz.

    Raises:
      ValueError: 100 is no multiple of it.
    """
    times = FRAME_RATE / frame_rate
    if times != int(times) or times < 1:
        raise ValueError(f"units at {frame_rate:g} Hz: 100, 50, 25 and 20 Hz can be counted at 10 ms")
    return int(times)


def bit_rate(sequences: Iterable[np.ndarray], num_units: int, seconds: float) -> tuple[float, int]:
    """log2(num_units) times runs of equal units per second, and the number of runs."""
    runs = sum(sum(1 for _ in groupby(sequence.tolist())) for sequence in sequences)
    return math.log2(num_units) * runs / seconds, runs


def phone_classes(phones: list[Phone]) -> list[str]:
    """The different labels, silence one of them where there is any."""
    labels = {SILENCE if is_silence(phone.label) else phone.label for phone in phones}
    return sorted(labels)


def phone_frames(phones: list[Phone], classes: list[str]) -> np.ndarray:
    """Classes of the 10 ms frames of one file, frame i at (i + 1/2) / 100 s; -1 where no phone is.

    Args:
      phones: of the file, by their starts.
    """
    center = Fraction(1, 2 * FRAME_RATE)
    total = math.ceil(max(phone.end for phone in phones) * FRAME_RATE - Fraction(1, 2))
    frames = np.full(total, -1, dtype=np.int64)
    for phone in phones:
        first = max(0, math.ceil((phone.start - center) * FRAME_RATE))
        behind = math.ceil((phone.end - center) * FRAME_RATE)
        frames[first:behind] = classes.index(SILENCE if is_silence(phone.label) else phone.label)
    return frames


def unit_quality(
    phones: list[Phone], units: dict[str, np.ndarray], num_units: int, frame_rate: float, seconds: float
) -> dict[str, Any]:
    """All measures of one codebook.

    Args:
      phones: silences included.
      units: file -> (T,) at ``frame_rate``, frame j for the j-th stretch of time.
      num_units: size of the codebook.
      seconds: of all files.
    """
    classes = phone_classes(phones)
    table = np.zeros((len(classes), num_units), dtype=np.int64)
    by_file: dict[str, list[Phone]] = {}
    for phone in phones:
        by_file.setdefault(phone.file, []).append(phone)
    times = repeats(frame_rate)
    for name, own in by_file.items():
        frames = phone_frames(own, classes)
        # An alignment may end before its audio does.
        count_frames(frames, np.repeat(units[name], times)[: len(frames)], table, name)
    rate, runs = bit_rate((units[name] for name in by_file), num_units, seconds)
    return quality_of_counts(table) | {
        "bitrate_deduplicated": rate,
        "deduplicated_units": runs,
        "seconds": seconds,
        "phones": len(classes),
        "num_units": num_units,
    }
