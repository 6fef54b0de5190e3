"""Back-off n-gram language models as tensors: many contexts are looked up at once, on any device.

Every n-gram w1..wn is a node of a tree, numbered by the order of its key ``node(w1..wn-1) * num_words + wn``;
node 0 is the empty context. A context is a node, so a search keeps one integer per hypothesis. Reading ARPA
files is in ``arpa.py``, training in ``ngram_training.py``. Probabilities are natural logarithms.

Legend: M n-grams of all orders, W words.
"""

import io
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spear_lib.runtime.files import atomic_file

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
SPECIAL_WORDS = (BEGIN, END, UNKNOWN)


@dataclass
class NgramModel:
    """An n-gram model; ``score`` is the only thing that a search needs."""

    order: int
    """Longest n-gram."""
    words: list[str]
    """Word of each id; <s>, </s> and <unk> are among them."""
    keys: Tensor
    """(M,) int64, rising: parent node * W + word."""
    log_probs: Tensor
    """(M,) float32: log p(last word | the words before it), nats."""
    backoffs: Tensor
    """(M + 1,) float32 by node: log weight of the shorter context, nats."""
    suffixes: Tensor
    """(M + 1,) int32 by node: the longest known n-gram without its first word."""
    num_contexts: int
    """Nodes from this one on are of the highest order, which is never a context."""

    @cached_property
    def word_ids(self) -> dict[str, int]:
        """Id of each word."""
        return {word: index for index, word in enumerate(self.words)}

    @property
    def num_words(self) -> int:
        """W, the special words included."""
        return len(self.words)

    def word_id(self, word: str) -> int:
        """Id of a word; that of <unk> for an unknown one."""
        return self.word_ids.get(word, self.word_ids[UNKNOWN])

    @property
    def begin_state(self) -> int:
        """Context at the start of a sentence."""
        return self.word_ids[BEGIN] + 1 if self.order > 1 else 0

    def to(self, device: torch.device | str) -> "NgramModel":
        """The same model on another device."""
        tensors = (self.keys, self.log_probs, self.backoffs, self.suffixes)
        return NgramModel(self.order, self.words, *(t.to(device) for t in tensors), self.num_contexts)

    def score(self, states: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of words after contexts.

        Args:
          states: contexts (nodes), any shape, int64.
          words: word ids, the same shape, int64.

        Returns:
          log p(word | context) in nats, and the contexts after the words, both of that shape.
        """
        states, words = torch.broadcast_tensors(states, words)
        total = torch.zeros(states.shape, device=states.device)
        following = torch.zeros_like(states)
        pending = torch.ones(states.shape, dtype=torch.bool, device=states.device)
        # Every word has a unigram, so the empty context ends the search: at most ``order`` rounds.
        for _ in range(self.order):
            keys = states * self.num_words + words
            place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
            found = pending & (self.keys[place] == keys)
            gain = torch.where(found, self.log_probs[place], self.backoffs[states])
            total = total + torch.where(pending, gain, 0.0)
            node = place + 1
            after = torch.where(node < self.num_contexts, node, self.suffixes[node].long())
            following = torch.where(found, after, following)
            pending = pending & ~found
            states = torch.where(pending, self.suffixes[states].long(), states)
        return total, following

    def log_prob(self, sentence: list[str]) -> float:
        """log p(sentence, </s>) in nats."""
        state, total = torch.tensor(self.begin_state), 0.0
        for word in [*sentence, END]:
            gain, state = self.score(state, torch.tensor(self.word_id(word)))
            total += float(gain)
        return total

    def perplexity(self, sentences: list[list[str]]) -> float:
        """Per word, sentence ends included; unknown words count with the probability of <unk>."""
        num_words = sum(len(sentence) + 1 for sentence in sentences)
        if num_words == 0:
            raise ValueError("perplexity of no sentence: give at least one")
        return math.exp(-sum(self.log_prob(sentence) for sentence in sentences) / num_words)

    def save(self, path: str | os.PathLike) -> None:
        """Compiled form, ``*.npz``: opens in seconds where a large ARPA file takes minutes."""
        arrays = {
            name: getattr(self, name).cpu().numpy() for name in ("keys", "log_probs", "backoffs", "suffixes")
        }
        words = np.frombuffer("\n".join(self.words).encode(), dtype=np.uint8)
        content = io.BytesIO()
        np.savez(content, order=self.order, num_contexts=self.num_contexts, words=words, **arrays)
        with atomic_file(Path(path)) as file:
            file.write(content.getbuffer())


def build_ngram_model(
    words: list[str], levels: list[tuple[np.ndarray, np.ndarray, np.ndarray]], where: str
) -> NgramModel:
    """The tree of n-grams.

    Args:
      words: by id; level 1 must hold each of them once.
      levels: per order n: words (M_n, n) int, log_probs (M_n,), backoffs (M_n,), in nats.
      where: what they come from, for messages.

    Raises:
      ValueError: an n-gram twice, or one whose context (all words but the last) is no n-gram.
    """
    num_words = len(words)
    keys = np.zeros(0, dtype=np.int64)
    log_probs, backoffs = [np.zeros(0, np.float32)], [np.zeros(1, np.float32)]
    suffixes = [np.zeros(1, np.int32)]
    num_contexts = 1

    def walk(sequence: np.ndarray) -> np.ndarray:
        """(N, n) words -> (N,) nodes, -1 where there is no such n-gram."""
        node = np.zeros(len(sequence), dtype=np.int64)
        for column in sequence.T:
            wanted = node * num_words + column
            place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            node = np.where((node >= 0) & (keys[place] == wanted), place + 1, -1)
        return node

    for order, (sequences, level_probs, level_backoffs) in enumerate(levels, 1):
        sequences = sequences.astype(np.int64)
        parents = walk(sequences[:, :-1]) if order > 1 else np.zeros(len(sequences), dtype=np.int64)
        if (parents < 0).any():
            example = " ".join(words[w] for w in sequences[int(np.argmax(parents < 0))])
            raise ValueError(
                f"{where}: the {order}-gram {example!r} is there, but the {order - 1}-gram before its last "
                "word is not; the file is damaged or was cut by hand"
            )
        level_keys = parents * num_words + sequences[:, -1]
        rising = np.argsort(level_keys, kind="stable")
        level_keys, sequences = level_keys[rising], sequences[rising]
        twice = np.flatnonzero(level_keys[1:] == level_keys[:-1])
        if len(twice):
            example = " ".join(words[w] for w in sequences[twice[0]])
            raise ValueError(f"{where}: the {order}-gram {example!r} is there twice")
        shorter = np.full(len(sequences), -1, dtype=np.int64)
        # A pruned model may lack w2..wn: then the longest end that it has.
        for first in range(1, order):
            missing = shorter < 0
            if missing.any():
                shorter[missing] = walk(sequences[missing][:, first:])
        num_contexts = len(keys) + 1
        keys = np.concatenate([keys, level_keys])
        log_probs.append(level_probs[rising].astype(np.float32))
        backoffs.append(level_backoffs[rising].astype(np.float32))
        suffixes.append(np.maximum(shorter, 0).astype(np.int32))
    tensors = (keys, *map(np.concatenate, (log_probs, backoffs, suffixes)))
    return NgramModel(len(levels), words, *map(torch.from_numpy, tensors), num_contexts)
