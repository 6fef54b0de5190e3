"""Whole published checkpoints, teacher and codebooks included (spec spidr §9)."""

from pathlib import Path

import torch
from torch import Tensor

from spear_lib.encoders.weights import load_strictly, read_weights
from spear_lib.self_distillation.task import SelfDistillationModel

_STEP = "current_step"
_OF_TRAINING = ("teacher.", "codebooks.")
_OURS = ".idle"  # counts of revive_after, which no published file has


def load_published(model: SelfDistillationModel, state: dict[str, Tensor], path: Path) -> int:
    """Takes student, teacher and codebooks of a published state dict; returns its optimiser step.

    Raises:
      ValueError: names or shapes do not fit; lists them. ``path`` is for the message.
    """
    ours = {
        name if name.startswith(_OF_TRAINING) else f"encoder.{name}": value
        for name, value in state.items()
        if name != _STEP
    }
    ours |= {name: value for name, value in model.state_dict().items() if name.endswith(_OURS)}
    load_strictly(model, ours, path, "model with its teacher and codebooks")
    return int(state.get(_STEP, torch.zeros(1)))


def read_published(model: SelfDistillationModel, path: str | Path) -> int:
    """``load_published`` of a file of the authors (a dict with "model")."""
    content = read_weights(Path(path))
    return load_published(model, content.get("model", content), Path(path))


def published_state(model: SelfDistillationModel, step: int) -> dict[str, Tensor]:
    """The state dict under the published names, as ``load_published`` reads it."""
    state = {
        name.removeprefix("encoder."): value
        for name, value in model.state_dict().items()
        if not name.endswith(_OURS)
    }
    return {**state, _STEP: torch.tensor([step])}
