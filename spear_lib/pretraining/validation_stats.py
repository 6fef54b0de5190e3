"""Validation of masked prediction: every codebook by itself, beside what guessing and token frequencies give.

Legend: F frames with targets, N codebooks (those of every teacher frame that a student frame predicts), K
entries of a codebook.
"""

import torch
from torch import Tensor

from spear_lib.training.task import Stats


def codebook_stats(
    loss: Tensor, correct: Tensor, targets: Tensor, masked: Tensor, codebook_size: int
) -> Stats:
    """Loss and accuracy of each codebook on masked and on unmasked frames, and how often each token occurs.

    Args:
      loss: (F, N) nats, 0 where there is no target.
      correct: (F, N) bool.
      targets: (F, N), negative where there is none.
      masked: (F,) bool.
      codebook_size: K.
    """
    valid = targets >= 0
    stats: Stats = {"unigram_entropy": (token_histogram(targets, codebook_size), 1.0)}
    for name, frames in (("masked", masked.unsqueeze(1)), ("unmasked", ~masked.unsqueeze(1))):
        count = (valid & frames).sum(0)
        stats[f"{name}_loss_codebook"] = ((loss * (valid & frames)).sum(0), count)
        stats[f"{name}_accuracy_codebook"] = ((correct & valid & frames).sum(0), count)
    return stats


def token_histogram(targets: Tensor, codebook_size: int) -> Tensor:
    """(F, N) -> (N, K) how often each token occurs."""
    offsets = torch.arange(targets.shape[1], device=targets.device) * codebook_size
    size = targets.shape[1] * codebook_size
    return torch.bincount((targets + offsets)[targets >= 0], minlength=size).reshape(-1, codebook_size)


def unigram_entropies(histogram: Tensor) -> Tensor:
    """(N, K) counts -> (N,) entropies in nats.

    An entropy is the loss of the best predictor that does not look at the audio, so a masked loss above it
    has learnt nothing but frequencies.
    """
    shares = histogram.double() / histogram.sum(-1, keepdim=True).clamp(min=1).double()
    return -torch.xlogy(shares, shares).sum(-1)
