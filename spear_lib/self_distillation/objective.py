"""What self-distillation minimises and reports (spec spidr §5).

Legend: F masked frames, D channels, K codes, n codebooks.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from spear_lib.self_distillation.teacher import TeacherConfig
from spear_lib.training.task import Stats

STARTS = ("random", "data")
STATISTICS = ("valid", "tensor")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Codebooks, targets and teacher."""

    codebook_size: int = 256
    """K (reference)."""
    codebook_decay: float = 0.9
    """Share of a code's sums that stays in a step in which it wins frames (reference; 1: they never move)."""
    codebook_start: str = "random"
    """random: standard normal codes (reference); data: after the first step codes are means of few of its
    masked frames, drawn by their keys (ours: at small scale few random codes ever win)."""
    revive_after: int = 0
    """A code that won nothing in so many steps becomes half of the code that won most (ours; 0: never, as the
    reference)."""
    target_statistics: str = "valid"
    """Frames that targets are normalised over: valid, those of the utterance (ours); tensor, padding too, as
    the reference does."""
    stacks: list[int] = field(default_factory=list)
    """Stacks of a Zipformer that have a codebook, from 1; none: all. A spidr encoder has them on its last
    layers."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)

    def __post_init__(self) -> None:
        if self.codebook_size < 2:
            raise ValueError(f"objective.codebook_size is {self.codebook_size}: at least 2 codes")
        if not 0.0 <= self.codebook_decay <= 1.0:
            raise ValueError(f"objective.codebook_decay is {self.codebook_decay}, expected 0 to 1")
        if self.revive_after < 0:
            raise ValueError(f"objective.revive_after is {self.revive_after} steps: 0 (never) or more")
        for name, known in (("codebook_start", STARTS), ("target_statistics", STATISTICS)):
            if getattr(self, name) not in known:
                raise ValueError(f"objective.{name} is {getattr(self, name)!r}; use {' or '.join(known)}")


def prediction_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Stats]:
    """Cross-entropy of one codebook.

    Args:
      logits: (F, K) float32.
      labels: (F,) int64.

    Returns:
      The sum over frames (differentiable), the loss of each frame (F,), and what to report: accuracy, and
      the sums that ``perplexity`` is of.
    """
    log_probs = F.log_softmax(logits, dim=-1)
    losses = F.nll_loss(log_probs, labels, reduction="none")
    with torch.no_grad():
        count = len(labels)
        histogram = labels.new_zeros(logits.shape[1]).scatter_add_(0, labels, torch.ones_like(labels))
        stats: Stats = {
            "loss": (losses.detach().sum(), count),
            "accuracy": ((logits.argmax(-1) == labels).sum(), count),
            "targets": (histogram, count),
            "predictions": (log_probs.detach().exp().sum(0), count),
        }
    return losses.sum(), losses.detach(), stats


def perplexity(total: Tensor, count: float) -> float:
    """2 to the entropy (bits) of the mean distribution, from the sum (K,) of ``count`` distributions."""
    shares = torch.as_tensor(total).double() / max(float(count), 1.0)
    return float(2.0 ** -(shares * (shares + 1e-8).log2()).sum())
