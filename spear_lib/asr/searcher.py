"""Which search finds the transcript, as an option: head, method, beam, language model."""

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from spear_lib.asr.arpa import load_ngram_model
from spear_lib.asr.ctc_search import (
    ctc_greedy_search,
    ctc_log_probabilities,
    ctc_prefix_beam_search,
)
from spear_lib.asr.hypothesis import Hypothesis
from spear_lib.asr.lattice_search import lattice_beam_search
from spear_lib.asr.model import AsrModel
from spear_lib.asr.ngram import NgramModel
from spear_lib.asr.search import greedy_search_batch, modified_beam_search
from spear_lib.asr.word_scores import WordScoreConfig, WordScorer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchConfig:
    """How the best transcript is searched."""

    method: str = "beam"
    """beam: the most probable unit sequences over their alignments; greedy: the best unit per frame."""
    beam: int = 4
    """Hypotheses kept per utterance in beam search (icefall's transducers: 4; CTC with a language model: 100
    and more, published tools 500 to 1500)."""
    head: str = "auto"
    """transducer or ctc; auto: the transducer where the model has one."""
    max_units_per_frame: int = 1
    """Units that a frame may emit in the transducer's searches. 1: a unit takes its frame (icefall's modified
    beam search). More: only blank takes a frame, as in the regular loss; better where frames are long and
    units short, such as letters at 25 Hz (ours)."""
    ctc_weight: float = 0.0
    """Weight of the CTC head's log-probability beside the transducer's, in choosing from the final beam; for
    models with both heads (choose it on dev; ours)."""
    blank_penalty: float = 0.0
    """Nats taken from the blank before the search; above 0 fewer words are deleted (choose it on dev)."""
    lm: str = ""
    """Word n-gram for beam search: an ARPA file (.arpa, .arpa.gz) or a compiled one (.npz of train_lm)."""
    lm_scores: WordScoreConfig = field(default_factory=WordScoreConfig)
    """Weights of the language model."""

    def __post_init__(self) -> None:
        if self.method not in ("beam", "greedy"):
            raise ValueError(f"search.method must be beam or greedy, it is {self.method!r}")
        if self.head not in ("auto", "transducer", "ctc"):
            raise ValueError(f"search.head must be auto, transducer or ctc, it is {self.head!r}")
        if self.beam < 1:
            raise ValueError(f"search.beam must be at least 1, it is {self.beam}")
        if self.max_units_per_frame < 1:
            raise ValueError(
                f"search.max_units_per_frame must be at least 1, it is {self.max_units_per_frame}"
            )
        if self.ctc_weight < 0:
            raise ValueError(f"search.ctc_weight must not be negative, it is {self.ctc_weight:g}")
        if self.lm and self.method == "greedy":
            raise ValueError("greedy search cannot use a language model: set search.method to beam")
        if self.ctc_weight and self.method == "greedy":
            raise ValueError("greedy search cannot use search.ctc_weight: set search.method to beam")

    def __str__(self) -> str:
        words = "greedy" if self.method == "greedy" else f"beam {self.beam}"
        if self.head != "auto":
            words += f", {self.head}"
        if self.max_units_per_frame > 1:
            words += f", {self.max_units_per_frame} units per frame"
        if self.ctc_weight:
            words += f", CTC x {self.ctc_weight:g}"
        if self.blank_penalty:
            words += f", blank penalty {self.blank_penalty:g}"
        if self.lm:
            words += f", {self.lm} x {self.lm_scores.weight:g}, word score {self.lm_scores.word_score:g}"
        return words


class Searcher:
    """The search that a configuration describes.

    Args:
      model: in evaluation mode.
      units: its text units.
      config: what to search with.
      lm: the model of ``config.lm``, where it is open already.

    Raises:
      ValueError: the model has no such head; the language model cannot be read, or does not fit the units.
    """

    def __init__(
        self, model: AsrModel, units: Any, config: SearchConfig, lm: NgramModel | None = None
    ) -> None:
        self.model, self.units, self.config = model, units, config
        self.head = config.head if config.head != "auto" else model.heads[0]
        if self.head not in model.heads:
            raise ValueError(
                f"search.head is {config.head}, but this model was trained with: {', '.join(model.heads)}"
            )
        if config.ctc_weight and model.heads != ["transducer", "ctc"]:
            raise ValueError(
                f"search.ctc_weight is {config.ctc_weight:g}, but this model was trained with one head: "
                f"{', '.join(model.heads)}"
            )
        if self.head == "ctc":
            if config.ctc_weight:
                raise ValueError(
                    "search.ctc_weight is for the search of the transducer, and search.head is ctc"
                )
            # A configuration serves models of either head: units per frame say nothing of CTC.
            self.config = replace(config, max_units_per_frame=1)
        self.ctc_may_vote = self.head == "transducer" and "ctc" in model.heads and config.method == "beam"
        self.scorer = None
        if config.lm:
            scorer = WordScorer(lm or load_ngram_model(config.lm), units, config.lm_scores)
            self.scorer = scorer.to(next(model.parameters()).device)

    def scores(self, encoder_out: Tensor) -> Tensor:
        """(B, T, E) encoder output -> what ``search`` reads: the same, or (B, T, V) CTC log-probabilities."""
        return self.model.ctc_log_probs(encoder_out) if self.head == "ctc" else encoder_out

    def search(self, scores: Tensor, lengths: Tensor) -> list[Hypothesis]:
        """``scores`` (B, T, ...) and valid frames (B,) -> one hypothesis per utterance."""
        config = self.config
        options = {"blank_penalty": config.blank_penalty}
        if config.method == "greedy":
            if self.head == "ctc":
                return ctc_greedy_search(scores, lengths, **options)
            options["max_symbols_per_frame"] = config.max_units_per_frame
            return greedy_search_batch(self.model, scores, lengths, **options)
        options |= {"beam": config.beam, "scorer": self.scorer}
        if self.head == "ctc":
            return ctc_prefix_beam_search(scores, lengths, **options)
        if config.max_units_per_frame > 1:
            options["max_units_per_frame"] = config.max_units_per_frame
            found = lattice_beam_search(self.model, scores, lengths, **options)
        else:
            found = modified_beam_search(self.model, scores, lengths, **options)
        return self._chosen_with_ctc(found, scores, lengths) if config.ctc_weight else found

    def _chosen_with_ctc(
        self, found: list[Hypothesis], encoder_out: Tensor, lengths: Tensor
    ) -> list[Hypothesis]:
        """The best of each final beam by its score and the weighted log-probability of the CTC head."""
        log_probs = self.model.ctc_log_probs(encoder_out)
        results = []
        for hypothesis, of_frames, length in zip(found, log_probs, lengths.tolist()):
            nbest = hypothesis.nbest or [hypothesis]
            for entry, added in zip(nbest, ctc_log_probabilities(of_frames[:length], [e.ids for e in nbest])):
                entry.score += self.config.ctc_weight * added
            nbest.sort(key=lambda entry: -entry.score)
            nbest[0].nbest = nbest
            results.append(nbest[0])
        return results

    @torch.no_grad()
    def __call__(self, encoder_out: Tensor, lengths: Tensor) -> list[Hypothesis]:
        """(B, T, E) encoder output and valid frames (B,) -> one hypothesis per utterance."""
        return self.search(self.scores(encoder_out), lengths)
