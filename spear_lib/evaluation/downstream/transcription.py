"""SF, PR, ASR: a sequence of units by CTC, read greedily (after s3prl's SuperbSF, SuperbPR, SuperbASR).

* SF: characters, and a mark at both ends of every slot, "B-artist NEIL YOUNG E-artist"; two BLSTMs; F1 of
  slot types and CER of slot values.
* PR: phones, between spaces; linear; PER.
* ASR: characters; two BLSTMs; WER and CER.

Legend: B utterances, T frames, K units (0 is the blank).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.evaluation.clip_sets import SEPARATOR, Clip
from spear_lib.evaluation.downstream.heads import UnitHead
from spear_lib.evaluation.downstream.training import Features, Recipe

_SLOT = re.compile(r"B-(\S+) (.+?) E-\1(?!\S)")
_MARK = re.compile(r"[BE]-\S+")
_OPENING, _CLOSING = re.compile(r"B-\S+ "), re.compile(r" E-\S+")


def slots_of(text: str) -> dict[str, list[str]]:
    """Slot type -> its values in order; marks inside a value are dropped."""
    found: dict[str, list[str]] = {}
    for kind, value in _SLOT.findall(" ".join(text.split())):
        found.setdefault(kind, []).append(_CLOSING.sub("", _OPENING.sub("", value)))
    return found


def slot_type_f1(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Mean over utterances of the F1 of the *set* of slot types, 0..1; 1 where neither has any."""
    values = []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        ours, theirs = set(slots_of(hypothesis)), set(slots_of(reference))
        both = len(ours & theirs)
        values.append(2 * both / (len(ours) + len(theirs)) if ours or theirs else 1.0)
    return sum(values) / len(values)


def slot_value_cer(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Edits of characters over those of the reference's values, 0..: each value beside the nearest one that
    was found for its type, or beside nothing."""
    edits = total = 0
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        ours = slots_of(hypothesis)
        for kind, values in slots_of(reference).items():
            for value in values:
                edits += min(edit_distance(list(one), list(value)) for one in ours.get(kind, [""]))
                total += len(value)
    if not total:
        raise ValueError("no reference has a slot: SF needs texts with marks, 'B-artist NEIL YOUNG E-artist'")
    return edits / total


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Insertions, deletions and replacements."""
    import kaldialign

    return kaldialign.edit_distance(list(other), list(one))["total"]


def error_rate(hypotheses: Iterable[Sequence[str]], references: Iterable[Sequence[str]]) -> float:
    """Edits over the length of the references, 0.."""
    pairs = list(zip(hypotheses, references, strict=True))
    return sum(edit_distance(*pair) for pair in pairs) / max(1, sum(len(reference) for _, reference in pairs))


def units_of(text: str, kind: str) -> list[str]:
    """The units of a text; those of SF and ASR join to it again."""
    words = text.split()
    if kind == "pr":
        return words
    found: list[str] = []
    for word in words:
        found += [" "] if found else []
        found += [word] if kind == "sf" and _MARK.fullmatch(word) else list(word)
    return found


@dataclass
class Transcription:
    """The task, for ``training.train_head``; ``kind`` is sf, pr or asr."""

    train: Sequence[Clip]
    kind: str = "sf"

    def __post_init__(self) -> None:
        self.recipe = {
            "sf": Recipe(200_000, 2000, 32, hidden_size=1024),
            "asr": Recipe(200_000, 2000, 32, hidden_size=1024),
            "pr": Recipe(100_000, 1000, 16, 2, learning_rate=1e-2, hidden_size=256),
        }[self.kind]
        self.metric = {"sf": "slot type F1 (%)", "asr": "WER (%)", "pr": "PER (%)"}[self.kind]
        self.better = "higher" if self.kind == "sf" else "lower"
        units = sorted({unit for clip in self.train for unit in units_of(self.text(clip), self.kind)})
        if not units:
            raise ValueError("no training clip has a transcript")
        if self.kind == "sf" and not any(map(_MARK.fullmatch, units)):
            raise ValueError(
                "no training text has a slot: write them as 'B-artist NEIL YOUNG E-artist' (--label names "
                "the field; prepare_benchmark makes it for SNIPS)"
            )
        self.units = [""] + units
        self.place = {unit: index for index, unit in enumerate(self.units)}

    @staticmethod
    def text(clip: Clip) -> str:
        """The transcript of a clip: of a table with its ";", of a cut all its supervisions."""
        return " ".join((SEPARATOR if isinstance(clip.source, Path) else " ").join(clip.labels).split())

    def head(self, dim: int, hidden: int) -> nn.Module:
        return UnitHead(dim, len(self.units), hidden, 0 if self.kind == "pr" else 2)

    def crop(self, clip: Clip, states: Tensor, random: Any) -> tuple[Tensor, list[int]]:
        units = units_of(self.text(clip), self.kind)
        return states, [self.place[unit] for unit in units if unit in self.place]

    def loss(self, head: nn.Module, features: Tensor, lengths: Tensor, targets: list[list[int]]) -> Tensor:
        log_probs = head(features, lengths).transpose(0, 1)
        flat = torch.tensor([unit for target in targets for unit in target], device=features.device)
        sizes = torch.tensor([len(target) for target in targets])
        # A text that is longer than its frames has no alignment: it counts nothing.
        return F.ctc_loss(log_probs, flat, lengths, sizes, blank=0, zero_infinity=True)

    def read(self, log_probs: Tensor) -> list[str]:
        """(T, K) -> units of the best path: repetitions and blanks removed."""
        path = log_probs.argmax(-1).tolist()
        return [self.units[unit] for unit, before in zip(path, [0, *path]) if unit not in (0, before)]

    def scores(
        self, head: nn.Module, features: Features, clips: Sequence[Clip], chosen: Any
    ) -> tuple[dict[str, float], Any]:
        found = [self.read(head(*features(clip))[0]) for clip in clips]
        truth = [self.text(clip) for clip in clips]
        if self.kind == "pr":
            return {self.metric: 100 * error_rate(found, map(str.split, truth))}, None
        if self.kind == "sf":
            # A mark is a word of its own, wherever it was read.
            texts = [" ".join(" ".join(_spaced(units)).split()) for units in found]
            return {
                self.metric: 100 * slot_type_f1(texts, truth),
                "slot value CER (%)": 100 * slot_value_cer(texts, truth),
            }, None
        texts = ["".join(units) for units in found]
        return {
            self.metric: 100 * error_rate(map(str.split, texts), map(str.split, truth)),
            "CER (%)": 100 * error_rate(map(list, texts), map(list, truth)),
        }, None


def _spaced(units: Sequence[str]) -> list[str]:
    """Runs of characters as strings, marks between them."""
    found = [""]
    for unit in units:
        if _MARK.fullmatch(unit):
            found += [unit, ""]
        else:
            found[-1] += unit
    return found
