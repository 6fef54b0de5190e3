"""One training batch, and how it travels from a data worker to the device.

Legend: B utterances, N samples (16 kHz), T fbank frames (10 ms), F mel bins, Tt token frames, C codebooks,
K classes.
"""

from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

PADDING = -100
"""Token value where there is nothing to predict: behind an utterance's last token frame, or without a partner
in a mixture. The losses ignore it; it needs int64, in uint8 it would wrap to 156, a valid token."""


@dataclass
class Batch:
    """A rank's share of a global batch. Tensors are padded at the end; what is not used by a task is None or
    empty."""

    ids: list[str]
    """Cut ids, B of them."""
    keys: Tensor
    """(B,) int64: what spear_lib.runtime.keyed_random draws from for each utterance in this epoch."""
    waveforms: Tensor
    """(B, N) float32 in [-1, 1] (mixtures may exceed it), zero behind the end."""
    num_samples: Tensor
    """(B,) int64, valid samples."""
    samples_of_each: list[int] = field(default_factory=list)
    """``num_samples`` as numbers, which stay on the host: nobody waits for a device to know them."""
    epoch: int = 0
    index: int = 0
    """Number of the global batch in its epoch."""
    tokens: dict[str, Tensor] = field(default_factory=dict)
    """Token field -> (B, Tt, C) int64, -100 behind the end and in cuts without it; fields that no cut of the
    batch has are left out."""
    audio: Tensor | None = None
    """(B,) bool, True where the cut's domain is audio; None: all are speech."""
    time_mask: Tensor | None = None
    """(B, T) bool, True = hidden; T = fbank frames of N samples."""
    channel_mask: Tensor | None = None
    """(B, F) bool, True = set to 0."""
    texts: list[str] | None = None
    """Transcripts, B of them."""
    labels: Tensor | None = None
    """(B, K) float32 in 0..1: how much of each class a clip has."""
    speeds: list[float] | None = None
    """Speed factors applied, B of them."""
    mixed: list[str] = field(default_factory=list)
    """What was mixed in, B of "none", "noise", "utterance", "tokens"."""
    statistics: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Name -> (sum, count) of what the augmentations did."""
    audio_seconds: float = 0.0
    """Valid audio of this rank's share, s."""
    padded_seconds: float = 0.0
    """Audio of this rank's share with its padding, s."""
    problems: dict[str, str] = field(default_factory=dict)
    """Cut id -> why it is missing from this batch."""
    last_share: bool = True
    """False: this rank's next batch is another share of the same global batch."""
    counts: bool = True
    """False: none of this rank's cuts is usable, and one of another rank's stands in, so that the ranks stay
    in step; its loss counts nothing."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch with its tensors on ``device``."""

        def move(value):
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=non_blocking)
            return value

        changed = {each.name: move(getattr(self, each.name)) for each in fields(self)}
        changed["tokens"] = {name: move(value) for name, value in self.tokens.items()}
        return replace(self, **changed)

    def to_numpy(self) -> dict:
        """Fields with tensors as arrays: plain memory that a pipe carries, whatever the size of /dev/shm."""
        packed = {each.name: _as_numpy(getattr(self, each.name)) for each in fields(self)}
        packed["tokens"] = {name: _as_numpy(value) for name, value in self.tokens.items()}
        return packed

    @classmethod
    def from_numpy(cls, packed: dict) -> "Batch":
        """The inverse of ``to_numpy``."""
        restored = {name: _as_tensor(value) for name, value in packed.items()}
        restored["tokens"] = {name: _as_tensor(value) for name, value in packed["tokens"].items()}
        return cls(**restored)


def _as_numpy(value):
    return value.numpy() if isinstance(value, Tensor) else value


def _as_tensor(value):
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def pad_waveforms(waveforms: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """B arrays (N_b,) -> waveforms (B, N) float32, zero behind the end, and their lengths (B,) int64 in
    samples."""
    lengths = torch.tensor([len(waveform) for waveform in waveforms], dtype=torch.int64)
    padded = torch.zeros((len(waveforms), int(lengths.max())), dtype=torch.float32)
    for row, waveform in zip(padded, waveforms):
        row[: len(waveform)] = torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32))
    return padded, lengths
