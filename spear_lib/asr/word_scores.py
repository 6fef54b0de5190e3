"""A word n-gram inside a search over text units: Eq. 11 while the words are still being spelled.

A hypothesis carries an ``LmState``. In the middle of a word, its node in the tree of all words knows the best
word that can still come (the look-ahead); at the word's end the look-ahead gives way to the word's own score.
So hypotheses in the middle of a word can be compared with others at its end. A word counts as known in the
spelling that the units give it; other spellings of it with the same units are unknown words.

Legend: any leading shape "...", V units, N nodes of the tree of words.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spear_lib.asr.ngram import END, SPECIAL_WORDS, UNKNOWN, NgramModel

logger = logging.getLogger(__name__)

_ROOT, _OUTSIDE = 0, -1
FORBIDDEN = -1e10
"""Score of what may not be written: finite, since differences of -inf would be NaN."""
_WORD_START = "▁"


@dataclass(frozen=True)
class WordScoreConfig:
    """Weights of Eq. 11: log p(y|x) + weight * log p_LM(y) + word_score * words(y), natural logarithms."""

    weight: float = 1.0
    """w1, on the language model; choose it on dev (decode --tune.dev_set dev)."""
    word_score: float = 0.0
    """w2, nats per word; choose it on dev."""
    unknown_penalty: float = 10.0
    """Nats taken for a word that the language model does not know, beside its probability of <unk> (ours;
    pyctcdecode: 10); below 0 such words are never written (the lexicon decoding of wav2letter++, paper C)."""


@dataclass
class LmState:
    """Where hypotheses are in the language model; all tensors have the same shape."""

    nodes: Tensor
    """int64: node of the tree of words, 0 between words, -1 where the spelling is no known word's."""
    contexts: Tensor
    """int64: context of the n-gram model, before the word being spelled."""
    scores: Tensor
    """float32: the weighted terms so far, look-ahead of the word being spelled included, nats."""
    end_gains: Tensor
    """float32: what ``scores`` gains if the word ends here (about FORBIDDEN: it cannot)."""
    end_contexts: Tensor
    """int64: context after it."""

    def first(self, rows: int) -> "LmState":
        """(B, K) -> the first ``rows`` utterances, sharing memory."""
        return LmState(*(tensor[:rows] for tensor in vars(self).values()))

    def gather(self, places: Tensor) -> "LmState":
        """(B, K) -> the hypotheses at ``places`` (B, K) of each utterance's beam."""
        return LmState(*(tensor.gather(1, places) for tensor in vars(self).values()))

    def at(self, utterances: Tensor) -> "LmState":
        """(B, K) -> those of the utterances with these numbers."""
        return LmState(*(tensor[utterances] for tensor in vars(self).values()))

    def write(self, new: "LmState", utterances: Tensor | None = None) -> None:
        """Overwrites the first utterances with ``new``, or those with these numbers."""
        for old, tensor in zip(vars(self).values(), vars(new).values()):
            old[slice(len(tensor)) if utterances is None else utterances] = tensor


class WordScorer:
    """Scores of a word n-gram for hypotheses of units.

    Args:
      model: word n-gram.
      units: text units of the acoustic model; each word is spelled as they encode it. Words that they cannot
        write are left out and counted.
      config: weights.

    Raises:
      ValueError: no word of the model can be written in the units.
    """

    def __init__(self, model: NgramModel, units: Any, config: WordScoreConfig) -> None:
        self.model, self.config = model, config
        vocab_size = units.vocab_size
        texts = [units.unit(unit) for unit in range(vocab_size)]
        separator = torch.tensor([text == " " for text in texts])
        self.separator = separator
        """(V,) units that only separate words: not allowed where no word has begun."""
        self.ends_word = separator | torch.tensor([text.startswith(_WORD_START) for text in texts])
        """(V,) units before which a word ends."""
        children, words, ahead = self._tree(units)
        self.children, self.node_words, self.look_ahead = children, words, ahead
        # The node that follows the end of a word.
        self.after_end = torch.where(separator, _ROOT, children[_ROOT])

    def _tree(self, units: Any) -> tuple[Tensor, Tensor, Tensor]:
        """children (N + 1, V) and node_words (N + 1,) int64, look-ahead (N + 1,); the last row is for -1."""
        model = self.model
        unigrams, _ = model.score(
            torch.zeros(model.num_words, dtype=torch.int64), torch.arange(model.num_words)
        )
        next_node: dict[tuple[int, int], int] = {}
        word_of: dict[int, int] = {}
        best = [-math.inf]
        unwritable: list[str] = []
        for index, word in enumerate(model.words):
            if word in SPECIAL_WORDS:
                continue
            try:
                spelling = units.encode(word)
            except ValueError:
                unwritable.append(word)
                continue
            node = _ROOT
            for unit in spelling:
                node = next_node.setdefault((node, unit), len(best))
                if node == len(best):
                    best.append(-math.inf)
                best[node] = max(best[node], float(unigrams[index]))
            word_of[node] = index
        if not word_of:
            raise ValueError(
                f"none of the {len(unwritable)} words of the language model can be written in the text units "
                f"{units.id} ({', '.join(map(repr, unwritable[:3])) or 'it has no words'}): its text must be "
                "normalised as the transcripts are (upper case for LibriSpeech)"
            )
        if unwritable:
            logger.warning(
                "%d of %d words of the language model cannot be written in the text units and are left out, "
                "for example %r", len(unwritable), model.num_words, unwritable[0],
            )  # fmt: skip
        children = np.full((len(best) + 1, units.vocab_size), _OUTSIDE, dtype=np.int64)
        places = np.array(list(next_node), dtype=np.int64)
        children[places[:, 0], places[:, 1]] = np.fromiter(next_node.values(), dtype=np.int64)
        words = np.full(len(best) + 1, model.word_ids[UNKNOWN], dtype=np.int64)
        words[list(word_of)] = list(word_of.values())
        best[_ROOT] = 0.0
        config = self.config
        outside = config.weight * float(unigrams[model.word_ids[UNKNOWN]]) + self._unknown_cost()
        ahead = np.array([0.0, *(config.weight * value for value in best[1:]), outside], dtype=np.float32)
        return torch.from_numpy(children), torch.from_numpy(words), torch.from_numpy(ahead)

    def _unknown_cost(self) -> float:
        penalty = self.config.unknown_penalty
        return -penalty if penalty >= 0 else FORBIDDEN

    def to(self, device: torch.device | str) -> "WordScorer":
        """Moves the tables to a device; returns itself."""
        self.model = self.model.to(device)
        for name in ("separator", "ends_word", "children", "node_words", "look_ahead", "after_end"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def start(self, shape: tuple[int, ...], device: torch.device) -> LmState:
        """The state before the first unit."""
        nodes = torch.zeros(shape, dtype=torch.int64, device=device)
        return self._with_ends(nodes, nodes + self.model.begin_state, nodes.float())

    def _with_ends(self, nodes: Tensor, contexts: Tensor, scores: Tensor) -> LmState:
        words = self.node_words[nodes]
        log_probs, end_contexts = self.model.score(contexts, words)
        gains = self.config.weight * log_probs + self.config.word_score - self.look_ahead[nodes]
        unknown = words == self.model.word_ids[UNKNOWN]
        gains = torch.where(unknown, gains + self._unknown_cost(), gains)
        between = nodes == _ROOT
        return LmState(
            nodes,
            contexts,
            scores,
            torch.where(between, 0.0, gains),
            torch.where(between, contexts, end_contexts),
        )

    def extended_scores(self, state: LmState) -> Tensor:
        """(...) states -> (..., V) scores after each unit; FORBIDDEN or less where a unit is not allowed."""
        nodes = state.nodes[..., None]
        inside = self.look_ahead[self.children[state.nodes]] - self.look_ahead[nodes]
        ended = state.end_gains[..., None] + self.look_ahead[self.after_end]
        gains = torch.where(self.ends_word, ended, inside)
        gains = gains.masked_fill(self.separator & (nodes == _ROOT), FORBIDDEN)
        return state.scores[..., None] + gains

    def extended(self, state: LmState, units: Tensor, scores: Tensor) -> LmState:
        """States after one more unit each; a negative unit leaves a state as it is.

        Args:
          state: before.
          units: (...) int64.
          scores: (...) of ``extended_scores``.
        """
        unit = units.clamp(min=0)
        ends = self.ends_word[unit]
        nodes = torch.where(ends, self.after_end[unit], self.children[state.nodes, unit])
        contexts = torch.where(ends, state.end_contexts, state.contexts)
        new = self._with_ends(nodes, contexts, scores)
        keep = units < 0
        return LmState(
            *(torch.where(keep, old, v) for old, v in zip(vars(state).values(), vars(new).values()))
        )

    def final_scores(self, state: LmState) -> Tensor:
        """(...) scores of whole sentences: the last word completed, then </s>."""
        end = torch.full_like(state.nodes, self.model.word_ids[END])
        log_probs, _ = self.model.score(state.end_contexts, end)
        return state.scores + state.end_gains + self.config.weight * log_probs
