"""Training n-gram models: interpolated modified Kneser-Ney (Chen and Goodman 1999).

Counts at sentence starts are as in Heafield et al. 2013. For texts up to some million words; for larger ones
there is kenlm's lmplz, whose ARPA files are read here too.
"""

import gzip
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from spear_lib.asr.ngram import BEGIN, END, SPECIAL_WORDS, UNKNOWN
from spear_lib.runtime.files import atomic_file

logger = logging.getLogger(__name__)

Ngram = tuple[str, ...]
# Of n-grams that were seen once, twice, more often; where a text is too small to estimate its own (as lmplz's
# --discount_fallback).
_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


def train_ngram(sentences: Iterable[list[str]], order: int, path: str | os.PathLike) -> list[int]:
    """Train a model and write it as an ARPA file (gzip where the name ends with .gz).

    Args:
      sentences: words of each sentence; empty ones are left out.
      order: longest n-gram.
      path: of the ARPA file.

    Returns:
      Number of n-grams by order.

    Raises:
      ValueError: no text, an order below 1, a reserved word in the text.
    """
    if order < 1:
        raise ValueError(f"the order of the language model is {order}, it must be at least 1")
    counts = adjusted_counts(sentences, order)
    levels: list[dict[Ngram, float]] = []
    backoffs: list[dict[Ngram, float]] = []
    for number, level in enumerate(counts, 1):
        discounts = _discounts(level, number)
        probabilities, weights = _probabilities(level, discounts, levels[-1] if levels else None)
        levels.append(probabilities)
        backoffs.append(weights)
    _write(levels, backoffs, Path(path))
    return [len(level) + (number == 0) for number, level in enumerate(levels)]  # <s> is a 1-gram too


def adjusted_counts(sentences: Iterable[list[str]], order: int) -> list[Counter]:
    """Kneser-Ney counts by order: how often for the longest n-grams and those at the sentence start, in how
    many different left contexts for the others. <s> itself has no count: it is never predicted."""
    longest: Counter = Counter()
    starts: list[Counter] = [Counter() for _ in range(order)]
    num_sentences = 0
    for sentence in sentences:
        if not sentence:
            continue
        num_sentences += 1
        reserved = set(SPECIAL_WORDS) & set(sentence)
        if reserved:
            raise ValueError(f"the text contains the word {min(reserved)!r}, which is reserved: remove it")
        padded = (BEGIN, *sentence, END)
        for end in range(1, len(padded) + 1):
            if end <= order:
                starts[end - 1][padded[:end]] += 1
            if end >= order:
                longest[padded[end - order : end]] += 1
    if not num_sentences:
        raise ValueError("there is no text to train a language model on: all sentences are empty")
    counts = [longest]
    for length in range(order - 1, 0, -1):
        level = Counter(ngram[1:] for ngram in counts[0])
        level.update(starts[length - 1])
        counts.insert(0, level)
    counts[0].pop((BEGIN,), None)
    return counts


def _discounts(counts: Counter, order: int) -> tuple[float, float, float]:
    """What is taken from counts of 1, 2 and more."""
    of = Counter(min(count, 5) for count in counts.values())
    if all(of[k] for k in (1, 2, 3, 4)):
        share = of[1] / (of[1] + 2 * of[2])
        found = tuple(k - (k + 1) * share * of[k + 1] / of[k] for k in (1, 2, 3))
        if all(0 <= discount <= k for k, discount in enumerate(found, 1)):
            return found
    logger.info("%d-grams: too little text for discounts of its own, %s are used", order, _FALLBACK_DISCOUNTS)
    return _FALLBACK_DISCOUNTS


def _probabilities(
    counts: Counter, discounts: tuple[float, float, float], shorter: dict[Ngram, float] | None
) -> tuple[dict[Ngram, float], dict[Ngram, float]]:
    """Interpolated probabilities of one order, and the weight that each context leaves to the shorter one."""
    totals: dict[Ngram, int] = defaultdict(int)
    taken: dict[Ngram, float] = defaultdict(float)
    for ngram, count in counts.items():
        totals[ngram[:-1]] += count
        taken[ngram[:-1]] += discounts[min(count, 3) - 1]
    weights = {context: taken[context] / totals[context] for context in totals}
    if shorter is None:
        # Below the 1-grams lies the uniform distribution over all words that can be predicted.
        uniform = weights[()] / (len(counts) + 1)
        lower = dict.fromkeys(counts, uniform)
        unknown = {(UNKNOWN,): uniform}
    else:
        lower = {ngram: weights[ngram[:-1]] * shorter[ngram[1:]] for ngram in counts}
        unknown = {}
    probabilities = {
        ngram: (count - discounts[min(count, 3) - 1]) / totals[ngram[:-1]] + lower[ngram]
        for ngram, count in counts.items()
    }
    return {**probabilities, **unknown}, weights


def _write(levels: list[dict[Ngram, float]], backoffs: list[dict[Ngram, float]], path: Path) -> None:
    lines = ["\\data\\"]
    lines += [f"ngram {n}={len(level) + (n == 1)}" for n, level in enumerate(levels, 1)]
    for number, level in enumerate(levels, 1):
        lines += ["", f"\\{number}-grams:"]
        weights = backoffs[number] if number < len(levels) else None
        entries = {ngram: math.log10(probability) for ngram, probability in level.items()}
        if number == 1:
            entries[(BEGIN,)] = -99.0  # never predicted
        for ngram in sorted(entries):
            line = f"{entries[ngram]:.7g}\t{' '.join(ngram)}"
            if weights is not None:
                # A context without continuation leaves everything to the shorter one.
                line += f"\t{math.log10(weights.get(ngram, 1.0)):.7g}"
            lines.append(line)
    content = ("\n".join([*lines, "", "\\end\\", ""])).encode()
    with atomic_file(path) as file:
        # No time stamp: the same text gives the same bytes.
        file.write(gzip.compress(content, mtime=0) if path.name.endswith(".gz") else content)
