"""Eq. 1 of the paper: how the losses on masked and unmasked frames add up (spec augment_and_mask §4).

The paper writes alpha * masked + (1 - alpha) * unmasked with alpha = 0.5; the reference adds both with weight
1. Here the weights are 2 alpha and 2 (1 - alpha), so that alpha = 0.5 is the plain sum that clipping and logs
were tuned for.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from spear_lib.training.task import Stats


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is predicted, and how the parts of the loss are weighted."""

    strategy: str = "single"
    """Which teachers a cut is trained on: single = one token field for all cuts (paper §3.2.3)."""
    alpha: float = 0.5
    """Share of the masked frames in the loss; the unmasked ones get 1 - alpha (paper Eq. 1: 0.5)."""
    align: str = "center"
    """center: teacher frames nearest in time; index: same position, as the published models (spec teachers
    §7)."""
    field_weights: dict[str, float] = field(default_factory=dict)
    """Token field -> lambda, its weight in the loss (paper Eq. 3); a field that is not named has 1."""

    def __post_init__(self) -> None:
        if self.strategy != "single":
            raise ValueError(f"strategy {self.strategy!r} is not known: use single")
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"alpha must be between 0 and 1, it is {self.alpha}")
        if self.align not in ("center", "index"):
            raise ValueError(f"align must be 'center' or 'index', it is {self.align!r}")


def frame_weights(masked: Tensor, alpha: float, num_codebooks: int) -> Tensor:
    """(F,) what the cross-entropies of a frame, summed over its codebooks, count in Eq. 1.

    Args:
      masked: (F,) bool, whether the student saw mask_emb in most of the frame.
      num_codebooks: N; a frame counts once, whatever the number of codebooks.
    """
    return torch.where(masked, 2 * alpha, 2 * (1 - alpha)) / num_codebooks


def masked_prediction_stats(loss: Tensor, correct: Tensor, targets: Tensor, masked: Tensor) -> Stats:
    """What to report of one token field, in nats per codebook and frame.

    Args:
      loss: (F, N) nats, 0 where there is no target.
      correct: (F, N) bool.
      targets: (F, N), -100 where there is none.
      masked: (F,) bool.
    """
    valid = targets >= 0
    masked = masked.unsqueeze(-1)
    num_masked, num_valid = (valid & masked).sum(), valid.sum()
    num_unmasked = num_valid - num_masked
    return {
        "loss": (loss.sum(), num_valid),
        "masked_loss": ((loss * masked).sum(), num_masked),
        "unmasked_loss": ((loss * ~masked).sum(), num_unmasked),
        "masked_accuracy": ((correct & masked).sum(), num_masked),
        "unmasked_accuracy": ((correct & ~masked).sum(), num_unmasked),
    }
