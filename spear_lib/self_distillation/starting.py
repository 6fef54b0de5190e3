"""Codes that start from data, and codes that come back to life (ours; both off as published).

Both follow from sums over the global batch and keyed draws, so that they do not depend on how it was divided
between ranks and micro-batches.

Legend: K codes, D channels, F masked frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from spear_lib.runtime.keyed_random import uniform
from spear_lib.self_distillation.codebooks import Codebook

_SITE_CHOICE, _SITE_PLACE, _SITE_NOISE = 940_001, 940_002, 940_003
_FRAMES_PER_CODE = 2.0
_NOISE = 0.01


def frame_keys(keys: Tensor, scored: Tensor) -> Tensor:
    """A key for each scored frame: utterance keys (B,), scored (B, T) bool -> (F,) int64."""
    position = torch.arange(scored.shape[1], device=scored.device)
    return (keys.to(scored.device).unsqueeze(1) + position)[scored]


def drawn_means(vectors: Tensor, keys: Tensor, share: float, num_codes: int) -> Tensor:
    """Some frames, thrown on the codes: (K, D + 1), sums of vectors and their numbers.

    Args:
      vectors: (F, D).
      keys: (F,) int64.
      share: probability of each frame to be taken.
      num_codes: K.
    """
    taken = uniform(keys, _SITE_CHOICE)[:, 0] < share
    place = (uniform(keys, _SITE_PLACE)[:, 0] * num_codes).long().clamp(max=num_codes - 1)
    on_code = F.one_hot(place, num_codes).float() * taken.unsqueeze(1)
    return torch.cat([on_code.t() @ vectors.float(), on_code.sum(0).unsqueeze(1)], dim=1)


def share_for(num_frames: float, num_codes: int) -> float:
    """Which share of all masked frames gives every code about two."""
    return min(1.0, _FRAMES_PER_CODE * num_codes / max(num_frames, 1.0))


@torch.no_grad()
def start_from(codebook: Codebook, means: Tensor) -> None:
    """Codes that got frames stand at their mean, with a count of 1; the others keep their random start."""
    numbers = means[:, -1:]
    there = numbers > 0
    codebook.codebook.copy_(torch.where(there, means[:, :-1] / numbers.clamp(min=1.0), codebook.centres()))
    codebook.counts.fill_(1.0)


@torch.no_grad()
def revive(codebook: Codebook, idle: Tensor, collected: Tensor, limit: int, step: int) -> None:
    """Codes that won nothing for ``limit`` steps take half of the codes that won most in this one.

    Args:
      idle: (K,) int64, steps in a row without a frame; brought up to date here.
      collected: (K, D + 1) of this step, over the global batch.
      limit: steps.
      step: of the draws.
    """
    won = collected[:, -1] > 0
    idle.copy_(torch.where(won, 0, idle + 1))
    dead = (idle >= limit).nonzero().flatten()
    donors = collected[:, -1].argsort(descending=True, stable=True)[: int(won.sum())]
    dead = dead[: len(donors)]
    if not len(dead):
        return
    donors = donors[: len(dead)]
    centres = codebook.centres()[donors]
    noise = uniform(dead + step * len(idle), _SITE_NOISE, centres.shape[1]) - 0.5
    counts = codebook.counts[donors] / 2
    codebook.counts[donors] = counts
    codebook.codebook[donors] = centres * counts.unsqueeze(1)
    codebook.counts[dead] = counts
    codebook.codebook[dead] = (centres + _NOISE * noise) * counts.unsqueeze(1)
    idle[dead] = 0
