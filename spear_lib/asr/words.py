"""Words with times and confidences out of recognised units, and the join of overlapping transcripts (ours).

Legend: S units of an utterance, T encoder frames, E encoder channels. Times are in seconds.
"""

from bisect import bisect_left
from dataclasses import asdict, dataclass
from math import exp, log
from typing import Any

import torch
from torch import Tensor

WORD_START = "▁"
"""How units that begin a word are written (sentencepiece)."""
AGREEMENT_SECONDS = 0.3
"""Two windows mean the same word where they write it alike and emit it within this time of each other."""


@dataclass(frozen=True)
class Unit:
    """One recognised unit."""

    text: str
    """As the text units write it."""
    start: float
    """Begin of the encoder frame that emitted it. A transducer emits when it is sure, so this may be some
    frames after the sound began."""
    end: float
    """End of that frame."""
    confidence: float
    """Probability that the model gave it in that frame, after the units before it."""


@dataclass(frozen=True)
class Word:
    """A word and the units that it was written with."""

    text: str
    units: tuple[Unit, ...]

    @property
    def start(self) -> float:
        """When its first unit was emitted."""
        return self.units[0].start

    @property
    def end(self) -> float:
        """When its last unit was emitted; not when its sound ended."""
        return self.units[-1].end

    @property
    def confidence(self) -> float:
        """Geometric mean of its units' confidences."""
        return mean_confidence(self.units)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; times rounded to ms."""
        units = [
            {
                name: round(value, 3) if isinstance(value, float) else value
                for name, value in asdict(u).items()
            }
            for u in self.units
        ]
        return {
            "word": self.text,
            "start": round(self.start, 3),
            "end": round(self.end, 3),
            "confidence": round(self.confidence, 3),
            "units": units,
        }


def mean_confidence(units: tuple[Unit, ...] | list[Unit]) -> float:
    """Geometric mean of confidences; 1 where there is nothing to doubt."""
    if not units:
        return 1.0
    return exp(sum(log(max(unit.confidence, 1e-30)) for unit in units) / len(units))


def words_of(units: Any, ids: list[int], recognised: list[Unit]) -> list[Word]:
    """Group recognised units into words.

    Args:
      units: text units (``TextUnits``, ``CharacterUnits``, ``TokenTable``).
      ids: unit ids.
      recognised: the same units with their times.

    Returns:
      Words in order; joined by spaces they are ``units.decode(ids)``.
    """
    groups: list[list[int]] = []
    for place, unit in enumerate(recognised):
        if not groups or unit.text.startswith((WORD_START, " ")):
            groups.append([])
        groups[-1].append(place)
    words = []
    for group in groups:
        text = units.decode([ids[place] for place in group]).strip()
        if text:
            words.append(Word(text, tuple(recognised[place] for place in group)))
    return words


@torch.no_grad()
def unit_confidences(model: Any, encoder_out: Tensor, ids: list[int], frames: list[int]) -> list[float]:
    """Probability of each unit where it was emitted, given the units before it.

    Args:
      model: its decoder and joiner are used.
      encoder_out: (T, E) of one utterance.
      ids: S unit ids.
      frames: encoder frame of each.
    """
    if not ids:
        return []
    size, device = model.decoder.context_size, encoder_out.device
    history = torch.tensor([-1] * (size - 1) + [model.blank_id] + ids, dtype=torch.int64, device=device)
    context = history.unfold(0, size, 1)[: len(ids)]
    decoded = model.joiner.decoder_proj(model.decoder(context, pad=False)[:, 0])
    encoded = model.joiner.encoder_proj(encoder_out[frames].float())
    logits = model.joiner(encoded, decoded, project_input=False).float()
    chosen = torch.tensor(ids, device=device)[:, None]
    return torch.softmax(logits, dim=1).gather(1, chosen)[:, 0].tolist()


def join(left: list[Word], right: list[Word], begin: float, end: float) -> list[Word]:
    """One transcript out of those of two windows that overlap from ``begin`` to ``end``.

    The windows change over at the word that both have (written alike, emitted within ``AGREEMENT_SECONDS``)
    nearest the middle of the overlap, so that it is neither lost nor doubled. Where they agree on none, at
    the middle of the longest pause between their words; without words in the overlap, at its middle.
    """
    middle = (begin + end) / 2
    first = bisect_left(left, begin - AGREEMENT_SECONDS, key=lambda word: word.start)
    last = bisect_left(right, end + AGREEMENT_SECONDS, key=lambda word: word.start)
    common = _common_words(left[first:], right[:last])
    if common:
        i, j = min(common, key=lambda pair: abs(left[first + pair[0]].start - middle))
        return left[: first + i + 1] + right[j + 1 :]
    change = _longest_pause(left, right, begin, end)
    return [word for word in left if word.start < change] + [word for word in right if word.start >= change]


def _common_words(left: list[Word], right: list[Word]) -> list[tuple[int, int]]:
    """The most words that both have in the same order (of equal choices the nearest in time), as places."""
    best = [[0.0] * (len(right) + 1) for _ in range(len(left) + 1)]
    gain: dict[tuple[int, int], float] = {}
    for i in range(len(left) - 1, -1, -1):
        for j in range(len(right) - 1, -1, -1):
            apart = abs(left[i].start - right[j].start)
            best[i][j] = max(best[i + 1][j], best[i][j + 1])
            if left[i].text == right[j].text and apart <= AGREEMENT_SECONDS:
                gain[i, j] = 1.0 - apart / 100
                best[i][j] = max(best[i][j], best[i + 1][j + 1] + gain[i, j])
    pairs, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if (i, j) in gain and best[i][j] == best[i + 1][j + 1] + gain[i, j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return pairs


def _longest_pause(left: list[Word], right: list[Word], begin: float, end: float) -> float:
    """Middle of the longest stretch of the overlap in which neither window has a word."""
    spoken = sorted((w.start, w.end) for w in left + right if w.end > begin and w.start < end)
    best, reached = (0.0, (begin + end) / 2), begin
    for start, stop in [*spoken, (end, end)]:
        best = max(best, (start - reached, (start + reached) / 2))
        reached = max(reached, stop)
    return best[1]
