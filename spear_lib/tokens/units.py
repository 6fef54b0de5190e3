"""Tokens as text, for language models of speech: one line per recording, repeated units joined (ours).

Legend: T frames, N codebooks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spear_lib.data.packed_arrays import PackedTokenReader
from spear_lib.tokens.store import TokenStoreReader


@dataclass(frozen=True)
class Utterance:
    """The units of one recording."""

    cut_id: str
    units: np.ndarray
    """(n,) the units in order."""
    durations: np.ndarray
    """(n,) how many frames each lasts; they add up to the recording's."""


def runs(codes: np.ndarray, deduplicate: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Units (n,) and how many frames each lasts (n,), of codes (T,); without ``deduplicate`` n = T and each
    lasts one."""
    starts = np.ones(len(codes), dtype=bool)
    if deduplicate:
        starts[1:] = codes[1:] != codes[:-1]
    places = np.flatnonzero(starts)
    return codes[places], np.diff(np.append(places, len(codes)))


def utterances(store: TokenStoreReader, codebook: int = 0, deduplicate: bool = True) -> Iterator[Utterance]:
    """The recordings of a store in the order of its manifest, without those that were skipped.

    Raises:
      ValueError: the store has no such codebook.
    """
    count = store.facts.num_codebooks
    if not 0 <= codebook < count:
        raise ValueError(f"codebook is {codebook}: the tokens in {store.store} have codebooks 0..{count - 1}")
    for entry in store.entries():
        if entry.skipped:
            continue
        codes = np.asarray(PackedTokenReader(entry.path).read(entry.key))[:, codebook]
        yield Utterance(entry.cut_id, *runs(codes, deduplicate))


class UnitStatistics:
    """What a corpus of units is like; ``add`` the recordings, then ``summary``."""

    def __init__(self, codebook_size: int, frame_rate: float) -> None:
        self.frame_rate = frame_rate
        self.counts = np.zeros(codebook_size, dtype=np.int64)
        self.num_frames = self.num_recordings = 0

    def add(self, utterance: Utterance) -> None:
        self.counts += np.bincount(utterance.units, minlength=len(self.counts))
        self.num_frames += int(utterance.durations.sum())
        self.num_recordings += 1

    def summary(self) -> dict[str, float]:
        """Numbers of recordings, units and active codes; units per second; perplexity of the units; and the
        bit rate, log2 of the codes times units per second (spec spidr §11.2)."""
        num_units = int(self.counts.sum())
        shares = self.counts[self.counts > 0] / max(num_units, 1)
        seconds = max(self.num_frames / self.frame_rate, 1e-9)
        return {
            "recordings": self.num_recordings,
            "seconds": round(self.num_frames / self.frame_rate, 3),
            "units": num_units,
            "active_units": int((self.counts > 0).sum()),
            "units_per_second": num_units / seconds,
            "perplexity": float(2.0 ** -(shares * np.log2(shares)).sum()) if num_units else 0.0,
            "bits_per_second": float(np.log2(len(self.counts))) * num_units / seconds,
        }
