"""Choosing the weights of a search on a development set: every combination of a grid, the lowest WER wins."""

import dataclasses
import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spear_lib.asr.decoding import set_scores, text_of
from spear_lib.asr.searcher import SearchConfig, Searcher
from spear_lib.asr.wer import score
from spear_lib.data.manifests import Manifest
from spear_lib.runtime.progress import progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TuneConfig:
    """On which set, and what is tried."""

    dev_set: str = ""
    """Name of one of the sets: its word error rate chooses search.lm_scores, search.ctc_weight and
    search.blank_penalty, with which all sets are then recognised; empty: the values of search hold. Never a
    test set."""
    weights: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0])
    """Weights of the language model, w1 (published tools: 0 to 5; without a language model not used)."""
    word_scores: list[float] = field(default_factory=lambda: [-1.0, 0.0, 1.0, 2.0])
    """Scores per word, w2, nats (published tools: -5 to 5; without a language model not used)."""
    blank_penalties: list[float] = field(default_factory=lambda: [0.0])
    """Penalties on blank, nats (ours)."""
    ctc_weights: list[float] = field(default_factory=list)
    """Weights of the CTC head beside the transducer (ours); empty, or where the search is not the
    beam search of a transducer with a CTC head beside it: that of search."""
    beam: int = 0
    """Beam while choosing; 0: that of search."""

    def __post_init__(self) -> None:
        if "test" in self.dev_set:
            raise ValueError(
                f"tune.dev_set is {self.dev_set!r}: what is chosen on a test set makes its result worthless"
            )
        if not (self.weights and self.word_scores and self.blank_penalties):
            raise ValueError("tune.weights, tune.word_scores and tune.blank_penalties need one value each")


def grid(search: SearchConfig, tune: TuneConfig, ctc_may_vote: bool) -> list[SearchConfig]:
    """Every combination, in a fixed order. Without a language model none of its weights is varied, and where
    the CTC head may not vote, not that one."""
    ctc_weights = tune.ctc_weights if ctc_may_vote and tune.ctc_weights else [search.ctc_weight]
    weights = tune.weights if search.lm else [search.lm_scores.weight]
    word_scores = tune.word_scores if search.lm else [search.lm_scores.word_score]
    return [
        dataclasses.replace(
            search,
            blank_penalty=penalty,
            ctc_weight=ctc_weight,
            lm_scores=dataclasses.replace(search.lm_scores, weight=weight, word_score=word_score),
        )
        for weight, word_score, penalty, ctc_weight in itertools.product(
            weights, word_scores, tune.blank_penalties, ctc_weights
        )
    ]


def choose_search(
    searcher: Searcher,
    tune: TuneConfig,
    manifest: Manifest,
    references: Mapping[str, str],
    batch_seconds: float,
) -> tuple[SearchConfig, list[dict[str, Any]]]:
    """The configuration with the lowest WER on a set, and what each one had.

    Args:
      searcher: its configuration is the one that is varied; the encoder runs once.
      tune: what is tried.
      manifest, references: the set.
      batch_seconds: padded audio of a batch.

    Returns:
      The chosen configuration (the first of equals; with the beam of ``searcher``), and for each one its
      values and its WER in percent.
    """
    config, ids = searcher.config, manifest.ids
    batches = [
        (rows, scores.cpu(), lengths.cpu())
        for rows, scores, lengths in set_scores(
            searcher, manifest, batch_seconds, f"{tune.dev_set}: encoding"
        )
    ]
    device = next(searcher.model.parameters()).device
    lm = searcher.scorer.model if searcher.scorer else None
    candidates = grid(config, tune, searcher.ctc_may_vote)
    tried = []
    for candidate in progress(candidates, len(candidates), f"{tune.dev_set}: choosing weights", "searches"):
        narrow = dataclasses.replace(candidate, beam=tune.beam or candidate.beam)
        other = Searcher(searcher.model, searcher.units, narrow, lm)
        texts = {}
        for rows, scores, lengths in batches:
            found = other.search(scores.to(device), lengths.to(device))
            texts |= {ids[row]: text_of(searcher.units, hypothesis) for row, hypothesis in zip(rows, found)}
        tried.append(
            {
                "weight": candidate.lm_scores.weight,
                "word_score": candidate.lm_scores.word_score,
                "blank_penalty": candidate.blank_penalty,
                "ctc_weight": candidate.ctc_weight,
                "wer": round(score(references, texts, tune.dev_set).wer, 2),
            }
        )
    best = min(range(len(tried)), key=lambda number: tried[number]["wer"])
    logger.info("chosen on %s: %s (WER %.2f %%)", tune.dev_set, candidates[best], tried[best]["wer"])
    for name in ("weight", "word_score", "blank_penalty", "ctc_weight"):
        values = sorted({entry[name] for entry in tried})
        # At 0 a weight or penalty is off: there is nothing beyond.
        if len(values) > 1 and (tried[best][name] == values[-1] or tried[best][name] == values[0] != 0):
            logger.warning(
                "%s %g is at the edge of what was tried: try values beyond it", name, tried[best][name]
            )
    return candidates[best], tried
