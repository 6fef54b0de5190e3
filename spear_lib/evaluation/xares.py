"""X-ARES's two protocols for clips: a linear layer and 10 nearest neighbours, on means over frames.

As xares 0.1.3 (spec evaluation §4, golden/xares_knn.json); without its package, on any labelled clips.

Legend: N clips, D channels, K classes.
"""

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.evaluation.hear.scores import mean_average_precision

NEIGHBOURS = 10
TEMPERATURE = 0.07


def knn_scores(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    num_classes: int,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    over_samples: bool = True,
) -> Tensor:
    """Votes of the k most similar training vectors, weighted by the softmax of similarity / temperature.

    Args:
      train: (N, D). labels: (N,) int64. test: (M, D).
      over_samples: as xares has it: of the training vectors each *channel* is scaled to norm 1 over all
        samples, instead of each vector; test vectors are scaled one by one. False: ordinary cosines.

    Returns:
      (M, K), rows sum to 1.
    """
    train = F.normalize(train, dim=0 if over_samples else 1)
    similar, index = (F.normalize(test, dim=1) @ train.T).topk(min(k, len(train)), dim=1)
    weights = (similar / temperature).softmax(1)
    return weights.new_zeros(len(test), num_classes).scatter_add_(1, labels[index], weights)


@dataclass(frozen=True)
class LinearConfig:
    """Of the linear protocol; defaults as xares."""

    epochs: int = 10
    """Passes over the training clips; the best on validation counts."""
    learning_rate: float = 1e-3
    """Of Adam."""
    batch_size: int = 32
    """Clips per step."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.learning_rate <= 0:
            raise ValueError(
                f"linear has {self.epochs} epochs, batch_size {self.batch_size} and learning_rate "
                f"{self.learning_rate}: all must be positive"
            )


@dataclass
class Clips:
    """Vectors (N, D) float32 and targets (N, K) bool of a set."""

    vectors: Tensor
    targets: np.ndarray


def score(scores: np.ndarray, targets: np.ndarray, multilabel: bool) -> float:
    """Mean average precision of clips with several labels, else accuracy; 0..1."""
    if multilabel:
        return mean_average_precision(scores, targets)
    return float(np.mean(scores.argmax(1) == targets.argmax(1)))


def linear_score(
    train: Clips, valid: Clips, test: Clips, multilabel: bool, config: LinearConfig, seed: int
) -> tuple[float, float]:
    """Scores on test and validation of layer norm and a linear layer, at the best epoch on validation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dim, num_classes = train.vectors.shape[1], train.targets.shape[1]
        model = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_classes))
        optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        targets = torch.from_numpy(train.targets)
        best, kept = -math.inf, model
        for _ in range(config.epochs):
            for rows in torch.randperm(len(targets)).split(config.batch_size):
                logits = model(train.vectors[rows])
                loss = (
                    F.binary_cross_entropy_with_logits(logits, targets[rows].float())
                    if multilabel
                    else F.cross_entropy(logits, targets[rows].int().argmax(1))
                )
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
            with torch.no_grad():
                value = score(model(valid.vectors).numpy(), valid.targets, multilabel)
            if value > best:
                best, kept = value, copy.deepcopy(model)
        with torch.no_grad():
            return score(kept(test.vectors).numpy(), test.targets, multilabel), best


def knn_accuracy(train: Clips, test: Clips) -> float:
    """Accuracy of the 10 nearest neighbours, 0..1; clips of one label each."""
    labels = torch.from_numpy(train.targets.argmax(1))
    scores = knn_scores(train.vectors, labels, test.vectors, train.targets.shape[1])
    return float((scores.argmax(1).numpy() == test.targets.argmax(1)).mean())
