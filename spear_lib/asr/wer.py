"""Word error rate: Levenshtein distance with unit costs, summed over a set (kaldialign).

Text is compared as it stands, after collapsing runs of spaces: no lower-casing, no removal of punctuation
(evaluation rules: "no normalisation beyond joining units and collapsing spaces").
"""

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import kaldialign

from spear_lib.runtime.files import write_text

# kaldialign fills the gaps of an alignment with this. Words come from str.split, so none is ever empty and
# the marker cannot be mistaken for one (a literal "*" in a transcript could).
_GAP = ""


@dataclass(frozen=True)
class UtteranceErrors:
    """One utterance, aligned."""

    id: str
    """The utterance."""
    pairs: tuple[tuple[str, str], ...]
    """Alignment as (reference word, hypothesis word); an empty word marks an insertion or a deletion."""

    @cached_property
    def substitutions(self) -> int:
        """Words recognised as another word."""
        return sum(
            1 for reference, hypothesis in self.pairs if reference and hypothesis and reference != hypothesis
        )

    @cached_property
    def deletions(self) -> int:
        """Reference words that have no counterpart."""
        return sum(1 for _, hypothesis in self.pairs if not hypothesis)

    @cached_property
    def insertions(self) -> int:
        """Recognised words that have no counterpart in the reference."""
        return sum(1 for reference, _ in self.pairs if not reference)

    @property
    def errors(self) -> int:
        """Substitutions + deletions + insertions: the Levenshtein distance."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def num_words(self) -> int:
        """Words of the reference."""
        return sum(1 for reference, _ in self.pairs if reference)

    @property
    def reference(self) -> str:
        """Reference words joined by single spaces."""
        return " ".join(reference for reference, _ in self.pairs if reference)

    @property
    def hypothesis(self) -> str:
        """Hypothesis words joined by single spaces."""
        return " ".join(hypothesis for _, hypothesis in self.pairs if hypothesis)

    @cached_property
    def character_errors(self) -> int:
        """Levenshtein distance of the texts in characters; the spaces between words count (as in ESPnet)."""
        return int(kaldialign.edit_distance(list(self.reference), list(self.hypothesis))["total"])

    def marked(self) -> str:
        """The alignment in one line: ``ref->hyp`` substituted, ``-ref-`` deleted, ``+hyp+`` inserted."""
        words = []
        for reference, hypothesis in self.pairs:
            if reference == hypothesis:
                words.append(reference)
            elif not hypothesis:
                words.append(f"-{reference}-")
            elif not reference:
                words.append(f"+{hypothesis}+")
            else:
                words.append(f"{reference}->{hypothesis}")
        return " ".join(words)


@dataclass(frozen=True)
class WordErrors:
    """The errors of a set of utterances, in the order of the references."""

    utterances: tuple[UtteranceErrors, ...]
    """Every utterance of the reference."""

    @cached_property
    def substitutions(self) -> int:
        """Substituted words of the whole set."""
        return sum(utterance.substitutions for utterance in self.utterances)

    @cached_property
    def deletions(self) -> int:
        """Deleted words of the whole set."""
        return sum(utterance.deletions for utterance in self.utterances)

    @cached_property
    def insertions(self) -> int:
        """Inserted words of the whole set."""
        return sum(utterance.insertions for utterance in self.utterances)

    @cached_property
    def num_words(self) -> int:
        """Reference words of the whole set."""
        return sum(utterance.num_words for utterance in self.utterances)

    @property
    def wer(self) -> float:
        """Word error rate in percent: (S + D + I) / reference words, summed over the set (not averaged)."""
        return 100.0 * (self.substitutions + self.deletions + self.insertions) / self.num_words

    @cached_property
    def num_characters(self) -> int:
        """Characters of all references, with the spaces between words."""
        return sum(len(utterance.reference) for utterance in self.utterances)

    @cached_property
    def cer(self) -> float:
        """Character error rate in percent, summed over the set; characters have an alignment of their own."""
        return 100.0 * sum(utterance.character_errors for utterance in self.utterances) / self.num_characters

    def worst(self, count: int = 10) -> list[UtteranceErrors]:
        """The utterances with most errors (then the higher rate, then the id: a fixed order)."""
        wrong = [utterance for utterance in self.utterances if utterance.errors]
        return sorted(wrong, key=lambda u: (-u.errors, -u.errors / max(u.num_words, 1), u.id))[:count]

    def interval(self, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of the WER in percent, resampling whole utterances (Bisani & Ney 2004).

        Words of an utterance share its speaker and its noise, so words are not independent draws; utterances
        nearly are. Speakers are not resampled: with few speakers the interval is too narrow for "another
        set of voices". As in Kaldi: mean of the resampled rates and 1.96 standard deviations to
        each side, cut off at 0.

        Args:
          draws: number of resampled sets.
          seed: same seed, same interval.

        Returns:
          Lower and upper end; 0 and 100, so nothing, where a resampled set has no reference word (few
          utterances, some of them without words).
        """
        references = [utterance.reference.split() for utterance in self.utterances]
        hypotheses = [utterance.hypothesis.split() for utterance in self.utterances]
        found = kaldialign.bootstrap_wer_ci(references, hypotheses, replications=draws, seed=seed)
        if not math.isfinite(found["wer"]):
            return 0.0, 100.0
        return max(0.0, 100.0 * found["ci95min"]), 100.0 * found["ci95max"]

    def confusions(self, count: int = 10) -> dict[str, list[list]]:
        """The most frequent errors: {"substitutions": [["ref->hyp", n], ...], "deletions", "insertions"}."""
        counters = {"substitutions": Counter(), "deletions": Counter(), "insertions": Counter()}
        for utterance in self.utterances:
            for reference, hypothesis in utterance.pairs:
                if not hypothesis:
                    counters["deletions"][reference] += 1
                elif not reference:
                    counters["insertions"][hypothesis] += 1
                elif reference != hypothesis:
                    counters["substitutions"][f"{reference}->{hypothesis}"] += 1
        return {
            kind: [[word, n] for word, n in sorted(c.items(), key=lambda item: (-item[1], item[0]))[:count]]
            for kind, c in counters.items()
        }

    def summary(self, num_worst: int = 10, draws: int = 1000, seed: int = 0) -> dict:
        """What ``wer-<set>.json`` holds; rates in percent with two decimals."""
        low, high = self.interval(draws, seed)
        return {
            "wer": round(self.wer, 2),
            "interval_95": [round(low, 2), round(high, 2)],
            "substitutions": self.substitutions,
            "deletions": self.deletions,
            "insertions": self.insertions,
            "num_words": self.num_words,
            "cer": round(self.cer, 2),
            "num_characters": self.num_characters,
            "num_utterances": len(self.utterances),
            "num_wrong_utterances": sum(1 for utterance in self.utterances if utterance.errors),
            "confusions": self.confusions(),
            "worst": [
                {
                    "id": utterance.id,
                    "errors": utterance.errors,
                    "num_words": utterance.num_words,
                    "reference": utterance.reference,
                    "hypothesis": utterance.hypothesis,
                }
                for utterance in self.worst(num_worst)
            ],
        }


def align_words(id: str, reference: str, hypothesis: str) -> UtteranceErrors:
    """One utterance aligned at least cost. An empty hypothesis is all deletions."""
    pairs = kaldialign.align(reference.split(), hypothesis.split(), _GAP)
    return UtteranceErrors(id=id, pairs=tuple((ref, hyp) for ref, hyp in pairs))


def score(references: Mapping[str, str], hypotheses: Mapping[str, str], name: str = "this set") -> WordErrors:
    """Align a whole set.

    Args:
      references: utterance id -> transcript.
      hypotheses: utterance id -> recognised text (may be empty).
      name: of the set, for error messages.

    Raises:
      ValueError: an utterance is missing from the hypotheses or unknown to the references, or there is not
        one reference word.
    """
    missing = [id for id in references if id not in hypotheses]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(references)} utterances of {name} have no decoding output, for example "
            f"'{missing[0]}'; leaving them out would flatter the word error rate. Decode the set again."
        )
    unknown = [id for id in hypotheses if id not in references]
    if unknown:
        raise ValueError(
            f"{len(unknown)} decoded utterances have no reference in {name}, for example '{unknown[0]}'; "
            "the output belongs to another set of cuts."
        )
    errors = WordErrors(tuple(align_words(id, text, hypotheses[id]) for id, text in references.items()))
    if errors.num_words == 0:
        raise ValueError(
            f"the {len(references)} transcripts of {name} hold no word; there is nothing to score."
        )
    return errors


def write_errors(errors: WordErrors, path: str | os.PathLike, title: str = "") -> None:
    """``errs-<set>.txt``: the counts, the most frequent confusions and every wrong utterance aligned."""
    low, high = errors.interval()
    lines = [
        f"{title}".strip(),
        f"WER {errors.wer:.2f} % (95 % interval {low:.2f} to {high:.2f}): "
        f"{errors.substitutions} substitutions, {errors.deletions} deletions, "
        f"{errors.insertions} insertions in {errors.num_words} words of {len(errors.utterances)} utterances",
        f"CER {errors.cer:.2f} % of {errors.num_characters} characters (spaces count)",
        "Reading: ref->hyp is a substitution, -word- a deletion, +word+ an insertion.",
        "",
    ]
    for kind, items in errors.confusions(count=30).items():
        lines.append(f"Most frequent {kind}:")
        lines += [f"  {count:5d}  {word}" for word, count in items] + [""]
    lines.append("Wrong utterances, most errors first:")
    for utterance in errors.worst(len(errors.utterances)):
        lines.append(f"{utterance.id} ({utterance.errors}/{utterance.num_words}): {utterance.marked()}")
    write_text(path, "\n".join(lines) + "\n")
