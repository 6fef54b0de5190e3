"""Which search finds the transcript, as an option: head, method, beam, language model."""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spear_lib.asr.arpa import load_ngram_model
from spear_lib.asr.ctc_search import ctc_greedy_search, ctc_prefix_beam_search
from spear_lib.asr.hypothesis import Hypothesis
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
        if self.lm and self.method == "greedy":
            raise ValueError("greedy search cannot use a language model: set search.method to beam")

    def __str__(self) -> str:
        words = "greedy" if self.method == "greedy" else f"beam {self.beam}"
        if self.head != "auto":
            words += f", {self.head}"
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
            return greedy_search_batch(self.model, scores, lengths, **options)
        options |= {"beam": config.beam, "scorer": self.scorer}
        if self.head == "ctc":
            return ctc_prefix_beam_search(scores, lengths, **options)
        return modified_beam_search(self.model, scores, lengths, **options)

    @torch.no_grad()
    def __call__(self, encoder_out: Tensor, lengths: Tensor) -> list[Hypothesis]:
        """(B, T, E) encoder output and valid frames (B,) -> one hypothesis per utterance."""
        return self.search(self.scores(encoder_out), lengths)
