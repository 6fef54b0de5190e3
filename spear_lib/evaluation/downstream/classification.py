"""SID, ER, KS: one label per clip; mean over frames and two linear layers (s3prl: UtteranceLevel)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.evaluation.clip_sets import Clip
from spear_lib.evaluation.downstream.heads import MeanPoolClassifier
from spear_lib.evaluation.downstream.training import Features, Recipe


@dataclass
class Classification:
    """The task, for ``training.train_head``."""

    train: Sequence[Clip]
    recipe: Recipe = Recipe(200_000, 5000, 8, 4, hidden_size=256)
    metric: str = "accuracy (%)"
    better: str = "higher"

    def __post_init__(self) -> None:
        several = next((clip for clip in self.train if len(clip.labels) != 1), None)
        if several is not None:
            raise ValueError(f"{several.name} has the labels {several.labels}: one is wanted")
        self.classes = {label: k for k, label in enumerate(sorted({clip.labels[0] for clip in self.train}))}

    def head(self, dim: int, hidden: int) -> nn.Module:
        return MeanPoolClassifier(dim, len(self.classes), hidden)

    def crop(self, clip: Clip, states: Tensor, random: Any) -> tuple[Tensor, int]:
        return states, self.classes[clip.labels[0]]

    def loss(self, head: nn.Module, features: Tensor, lengths: Tensor, targets: list[int]) -> Tensor:
        return F.cross_entropy(head(features, lengths), torch.tensor(targets, device=features.device))

    def scores(
        self, head: nn.Module, features: Features, clips: Sequence[Clip], chosen: Any
    ) -> tuple[dict[str, float], Any]:
        # A class that training has not seen is never right.
        right = sum(
            int(head(*features(clip)).argmax()) == self.classes.get(clip.labels[0], -1) for clip in clips
        )
        return {self.metric: 100.0 * right / len(clips)}, None
