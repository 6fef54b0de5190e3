"""ABX error rates, within and across speakers, with and without context (rules: spec §5.1, golden/abx).

A triplet (a, b, x) has a and x of phone A and b of phone B; it is right if a is nearer to x. A cell is all
triplets of (A, B, speaker of a and b, speaker of x, context); its error the share of wrong ones, equal
distances count half.

* within speaker: x is of the same speaker, x is not a, and A has two items or more;
* across: x is of another speaker;
* context within: all three have the same neighbours; any: neighbours do not count.

Legend: I items, F frames, D channels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spear_lib.evaluation.abx.distances import DISTANCES, Distance, warp
from spear_lib.evaluation.alignments import Phone, is_silence
from spear_lib.runtime.progress import progress

WITHIN, ACROSS, ANY = "within", "across", "any"
SPEAKERS, CONTEXTS = (WITHIN, ACROSS), (WITHIN, ANY)


@dataclass
class Segments:
    """Items and their frames, sorted by speaker."""

    frames: Tensor
    """(F, D), the frames of each item one after the other."""
    starts: np.ndarray
    """(I,) first frame of each item."""
    lengths: np.ndarray
    """(I,)."""
    phones: list[Phone]
    too_short: int = 0
    """Phones without a frame, which are left out."""


def frame_range(
    phone: Phone, rate: int, first_center: Fraction, without_last: bool = False
) -> tuple[int, int]:
    """First frame of a phone and the one behind its last: those with start <= time <= end, where frame i is
    at first_center + i / rate seconds. Exact. ``without_last``: without the last of them, as Libri-light's
    old code had it, whose numbers many papers print."""
    first = math.ceil((phone.start - first_center) * rate)
    return max(0, first), math.floor((phone.end - first_center) * rate) + (0 if without_last else 1)


def cut_segments(
    phones: list[Phone],
    features: Mapping[str, Tensor],
    rate: int,
    first_center: Fraction,
    max_too_short: float = 0.0,
    without_last: bool = False,
) -> Segments:
    """The items among ``phones`` (silences are none) with their frames.

    Args:
      features: file -> (T, D).
      rate: frames per second.
      first_center: centre of frame 0 in seconds.
      max_too_short: share of the phones that may have no frame.
      without_last: see ``frame_range``.

    Raises:
      ValueError: a phone beyond the end of its file, too many without a frame, or none left.
    """
    items: list[tuple[Phone, Tensor]] = []
    too_short = 0
    spoken = [phone for phone in phones if not is_silence(phone.label)]
    for phone in sorted(spoken, key=lambda phone: (phone.speaker, phone.label, phone.file, phone.start)):
        own = features[phone.file]
        first, behind = frame_range(phone, rate, first_center, without_last)
        if behind > len(own):
            raise ValueError(
                f"{phone.label} of {phone.file} ends at {float(phone.end):g} s, but the file has {len(own)} "
                f"frames at {rate} per second: alignment and audio do not belong together"
            )
        if behind <= first:
            too_short += 1
            continue
        items.append((phone, own[first:behind]))
    if too_short > max_too_short * len(spoken) or not items:
        raise ValueError(
            f"{too_short} of {len(spoken)} phones have no frame at {rate} per second, more than "
            f"{max_too_short:g} of all: take features of a higher rate, or raise max_too_short"
        )
    lengths = np.array([len(frames) for _, frames in items])
    starts = np.cumsum(lengths) - lengths
    return Segments(
        torch.cat([frames for _, frames in items]), starts, lengths, [p for p, _ in items], too_short
    )


@dataclass(frozen=True)
class AbxConfig:
    """How many triplets are asked; the defaults are those of ZeroSpeech."""

    max_items: int = 10
    """Most items of a phone, speaker and context (0: all); two at least."""
    max_x_speakers: int = 5
    """Across speakers: most speakers of x for each pair of phones of a speaker (0: all)."""
    seed: int = 0
    """Of the choice."""

    def __post_init__(self) -> None:
        if self.max_items == 1 or self.max_items < 0 or self.max_x_speakers < 0:
            raise ValueError(
                f"abx has max_items {self.max_items} and max_x_speakers {self.max_x_speakers}: items must be "
                "2 or more, or 0 for all"
            )


@dataclass
class AbxResult:
    """Error rates in 0..1."""

    error: float
    """The average, see ``average``."""
    num_cells: int
    num_items: int
    cells: list[dict[str, Any]] = field(repr=False)
    """One per cell: phone, other, speaker, x_speaker, previous, next, error."""


@torch.no_grad()
def abx(
    segments: Segments,
    speaker: str = WITHIN,
    context: str = ANY,
    distance: str = "angular",
    config: AbxConfig | None = None,
) -> AbxResult:
    """The error rate of one condition.

    Raises:
      ValueError: an unknown condition, or no cell fulfils it.
    """
    config = config or AbxConfig()
    for name, value, known in (
        ("speaker", speaker, SPEAKERS),
        ("context", context, CONTEXTS),
        ("distance", distance, tuple(DISTANCES)),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}: use {' or '.join(known)}")
    prepared = replace(segments, frames=DISTANCES[distance].prepare(segments.frames))
    groups = _groups(segments.phones, context, config)
    speakers = sorted(groups)
    pairs = (
        [(s, s) for s in speakers]
        if speaker == WITHIN
        else [p for p in product(speakers, repeat=2) if p[0] != p[1]]
    )
    chosen = _choose_x_speakers(groups, config) if speaker == ACROSS else None
    cells: list[dict[str, Any]] = []
    for own, of_x in progress(
        pairs, len(pairs), f"ABX {speaker} speaker, context {context}", "speaker pairs"
    ):
        cells += _block(prepared, groups[own], groups[of_x], own, of_x, DISTANCES[distance], chosen)
    if not cells:
        raise ValueError(
            f"no triplet fulfils speaker {speaker!r} with context {context!r}: there are {len(speakers)} "
            f"speakers and {len(segments.phones)} items; more of both are needed, or context 'any'"
        )
    items = sum(len(rows) for of_speaker in groups.values() for rows in of_speaker.values())
    return AbxResult(average(cells, context), len(cells), items, cells)


_Key = tuple[str, str, str]  # neighbours (empty where they do not count) and phone


def _groups(phones: list[Phone], context: str, config: AbxConfig) -> dict[str, dict[_Key, list[int]]]:
    """Speaker -> (previous, next, phone) -> items, at most ``max_items`` of each, sorted."""
    found: dict[str, dict[_Key, list[int]]] = {}
    for row, phone in enumerate(phones):
        neighbours = (phone.previous, phone.next) if context == WITHIN else ("", "")
        found.setdefault(phone.speaker, {}).setdefault((*neighbours, phone.label), []).append(row)
    random = np.random.default_rng(config.seed)
    return {
        speaker: {
            key: sorted(random.permutation(rows)[: config.max_items].tolist())
            if 0 < config.max_items < len(rows)
            else rows
            for key, rows in sorted(found[speaker].items())
        }
        for speaker in sorted(found)
    }


def _choose_x_speakers(
    groups: dict[str, dict[_Key, list[int]]], config: AbxConfig
) -> dict[tuple[str, _Key], dict[str, np.ndarray]] | None:
    """(speaker, A) -> speaker of x -> which of the phones B, in order, are asked with that one; None: all."""
    if not config.max_x_speakers:
        return None
    random = np.random.default_rng(config.seed + 1)
    owners: dict[_Key, list[str]] = {}
    for speaker, own in groups.items():
        for key in own:
            owners.setdefault(key, []).append(speaker)
    chosen = {}
    for speaker, own in groups.items():
        for key in own:
            others = [name for name in owners[key] if name != speaker]
            draws = random.random((len(own), len(others)))
            asked = draws.argsort(1).argsort(1) < config.max_x_speakers
            chosen[speaker, key] = {name: asked[:, column] for column, name in enumerate(others)}
    return chosen


def _block(
    segments: Segments,
    own: dict[_Key, list[int]],
    of_x: dict[_Key, list[int]],
    speaker: str,
    x_speaker: str,
    distance: Distance,
    chosen: dict[tuple[str, _Key], dict[str, np.ndarray]] | None,
) -> list[dict[str, Any]]:
    """The cells whose a and b are of one speaker and x of another (or the same)."""
    same = speaker == x_speaker
    contexts: dict[tuple[str, str], list[int]] = {}
    keys = list(own)
    for number, key in enumerate(keys):
        contexts.setdefault(key[:2], []).append(number)
    # Per phone A with items x: the groups it is compared with, itself among them.
    asked: list[tuple[int, list[int]]] = []
    for number, key in enumerate(keys):
        if key not in of_x or (same and len(own[key]) < 2):
            continue
        among = contexts[key[:2]]
        if chosen is not None:
            wanted = chosen[speaker, key][x_speaker]
            among = [other for other in among if other == number or wanted[other]]
        if len(among) > 1:
            asked.append((number, among))
    if not asked:
        return []
    own_items = _Items(segments, [row for rows in own.values() for row in rows])
    x_items = own_items if same else _Items(segments, [row for rows in of_x.values() for row in rows])
    # x is the first segment: which of equally cheap paths is taken depends on the order.
    blocks = [
        _Block(x_items, of_x[keys[number]], own_items, [row for other in among for row in own[keys[other]]])
        for number, among in asked
    ]
    begins = np.cumsum([0, *(block.size for block in blocks)])
    pairs = [block.pairs(begin) for block, begin in zip(blocks, begins.tolist())]
    places = torch.from_numpy(np.concatenate(pairs, axis=1)).to(segments.frames.device)
    distances = warp([distance.between(block.x, block.own) for block in blocks], *places).cpu().numpy()
    cells, begin = [], 0
    for number, among in asked:
        key = keys[number]
        sizes = [len(own[keys[other]]) for other in among]
        count = sum(sizes) * len(of_x[key])
        values = distances[begin : begin + count].reshape(sum(sizes), -1)
        begin += count
        starts = np.cumsum(sizes) - sizes
        place = among.index(number)
        a = values[starts[place] : starts[place] + sizes[place]]
        # (a, all, x): 1 where a is nearer, 1/2 where both are equally near.
        nearer = (a[:, None] < values).astype(np.float64) + 0.5 * (a[:, None] == values)
        if same:
            index = np.arange(len(a))
            nearer[index, :, index] = 0.0
        sums = np.add.reduceat(nearer.sum((0, 2)), starts)
        triplets = np.array(sizes) * len(a) * (len(a) - 1 if same else values.shape[1])
        for other, total, count in zip(among, sums, triplets):
            if other != number:
                cells.append(
                    {
                        "phone": key[2],
                        "other": keys[other][2],
                        "speaker": speaker,
                        "x_speaker": x_speaker,
                        "previous": key[0],
                        "next": key[1],
                        "error": 1.0 - float(total) / int(count),
                    }
                )
    return cells


class _Items:
    """The frames of some items, together, and where each of them begins."""

    def __init__(self, segments: Segments, rows: list[int]) -> None:
        self.rows = np.array(sorted(rows))
        self.lengths = segments.lengths[self.rows]
        self.begins = np.cumsum(self.lengths) - self.lengths
        self.frames = segments.frames[_ranges(segments.starts[self.rows], self.lengths, segments.frames)]

    def of(self, rows: list[int]) -> tuple[Tensor, np.ndarray]:
        """The frames of ``rows``, one item after the other (F, D), and how many each has (I,)."""
        index = np.searchsorted(self.rows, rows)
        lengths = self.lengths[index]
        return self.frames[_ranges(self.begins[index], lengths, self.frames)], lengths


def _ranges(starts: np.ndarray, lengths: np.ndarray, like: Tensor) -> Tensor:
    """(I,) first frames and lengths -> (F,) int64, all frames, where ``like`` is."""
    before = np.cumsum(lengths) - lengths
    index = np.repeat(starts - before, lengths) + np.arange(lengths.sum())
    return torch.from_numpy(index).to(like.device)


class _Block:
    """Items x, which are all of one phone, beside the items a and b that they are compared with: their frames
    (F, D) and (G, D)."""

    def __init__(self, x_items: _Items, x: list[int], items: _Items, rows: list[int]) -> None:
        self.x, self.x_lengths = x_items.of(x)
        self.own, self.lengths = items.of(rows)
        self.size = len(self.x) * len(self.own)

    def pairs(self, begin: int) -> np.ndarray:
        """(4, P) int64, others by x: what ``warp`` wants to know of a pair, where the block begins at
        ``begin``."""
        stride, shape = int(self.lengths.sum()), (len(self.lengths), len(self.x_lengths))
        first = np.cumsum(self.x_lengths) - self.x_lengths
        origins = begin + (np.cumsum(self.lengths) - self.lengths)[:, None] + stride * first[None]
        of_pairs = origins, stride, self.x_lengths[None], self.lengths[:, None]
        return np.stack([np.broadcast_to(each, shape).ravel() for each in of_pairs])


def average(cells: list[dict[str, Any]], context: str) -> float:
    """Unweighted means. Context within: over contexts and speakers of x together, then over speakers, then
    over ordered pairs of phones; any: over speakers and speakers of x together, then over pairs."""
    levels: list[tuple[str, ...]] = [("phone", "other")]
    if context == WITHIN:
        levels.insert(0, ("phone", "other", "speaker"))
    rows = cells
    for names in levels:
        found: dict[tuple, list[float]] = {}
        for row in rows:
            found.setdefault(tuple(row[name] for name in names), []).append(row["error"])
        rows = [dict(zip(names, key)) | {"error": sum(values) / len(values)} for key, values in found.items()]
    return sum(row["error"] for row in rows) / len(rows)
