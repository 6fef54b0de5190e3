"""Random draws that are pure functions of what they belong to (ours).

Every random number of the product is keyed by (seed, epoch or step, utterance id, purpose), never by rank,
worker, clock or call order. So a resumed run, a run on another number of processes and a run with other
batch mates all draw the same numbers for the same utterance, and nothing needs to be stored to get them back.

Two tools: ``generator(...)`` for the data loader (NumPy, a few draws per utterance) and ``uniform(...)`` for
the model (a counter-based hash on whole tensors, on any device, without host synchronisation).
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

_MASK63 = (1 << 63) - 1


def key(*parts: int | str) -> int:
    """A stable 63-bit key of ``parts``; the same on every machine and Python version."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") & _MASK63


def keys(*common: int | str, ids: list[str], device: torch.device | str = "cpu") -> Tensor:
    """One key per utterance, (B,) int64: ``key(*common, id)`` for each of ``ids``."""
    return torch.tensor([key(*common, utterance) for utterance in ids], dtype=torch.int64, device=device)


def generator(*parts: int | str) -> np.random.Generator:
    """A NumPy generator that depends on ``parts`` alone."""
    return np.random.Generator(np.random.Philox(key(*parts)))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= (1 << 63) else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # int64 >> is arithmetic; clear the copied sign bits to get the logical shift that the hash needs.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The splitmix64 finaliser (Steele, Lea & Flood 2014): a bijection of 64-bit integers."""
    x = (x ^ _shift_right(x, 30)) * _MULTIPLIER_1
    x = (x ^ _shift_right(x, 27)) * _MULTIPLIER_2
    return x ^ _shift_right(x, 31)


def constants(site: int) -> tuple[int, int]:
    """What ``uniform`` mixes into the keys and into the positions of a site."""
    return _mix_int(site + 1), _mix_int(site)


def uniform(key: Tensor, site: int, count: int = 1) -> Tensor:
    """Uniform numbers in [0, 1) that depend only on (key, site, position).

    Args:
      key: int64 of any shape (...), for example one key per utterance (B,).
      site: which draw this is (a module's own number), so that different places are independent.
      count: how many numbers per key.

    Returns:
      float32 of shape (..., count), on the device of ``key``.
    """
    of_key, of_counter = constants(site)
    position = torch.arange(count, dtype=torch.int64, device=key.device)
    counter = (position + 1) * _GOLDEN + of_counter
    hashed = _mix(_mix(key.unsqueeze(-1) ^ of_key) + counter)
    return _shift_right(hashed, 40).to(torch.float32) * (1.0 / (1 << 24))


def bits(key: Tensor, site: int) -> Tensor:
    """32 random bits for each key (int64 of any shape), as int32; arguments as those of ``uniform``."""
    hashed = _mix(_mix(key ^ _mix_int(site + 1)) + _mix_int(site))
    return (hashed >> 32).to(torch.int32)


def _mix_int(value: int) -> int:
    mask = (1 << 64) - 1
    x = (value * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return _signed(x ^ (x >> 31))
