"""The training of a head on frozen states: one loop for all tasks (ours; recipes as s3prl 0.4.18).

The learning rate is constant, and features are not masked (s3prl: exponential decay, SpecAugment for ASR and
SF). Batches and initial weights are drawn from the seed alone.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spear_lib.evaluation.clip_sets import Clip
from spear_lib.evaluation.downstream.states import FrozenStates, WeightedSum, pad
from spear_lib.runtime import keyed_random
from spear_lib.runtime.progress import progress

logger = logging.getLogger(__name__)

Features = Callable[[Clip], tuple[Tensor, Tensor]]
"""A clip -> its weighted sum (1, T, D), and frames (1,)."""


@dataclass(frozen=True)
class Recipe:
    """How s3prl trains a head."""

    total_steps: int
    eval_step: int
    batch_size: int
    gradient_accumulate: int = 1
    learning_rate: float = 1e-4
    clipping: float = 1.0
    hidden_size: int = 512
    adamw: bool = False


@dataclass(frozen=True)
class HeadConfig:
    """What may differ from a task's recipe; 0 leaves its own value."""

    total_steps: int = 0
    eval_step: int = 0
    batch_size: int = 0
    gradient_accumulate: int = 0
    hidden_size: int = 0
    normalise: bool = False
    max_gigabytes: float = 2.0

    def on(self, recipe: Recipe, learning_rate: float = 0.0) -> Recipe:
        """The recipe with these values."""
        given = {
            name: getattr(self, name)
            for name in ("total_steps", "eval_step", "batch_size", "gradient_accumulate", "hidden_size")
            if getattr(self, name)
        }
        if learning_rate:
            given["learning_rate"] = learning_rate
        return Recipe(**{**vars(recipe), **given})


class HeadTask(Protocol):
    """What a task says of itself; ``scores`` returns the primary measure first."""

    recipe: Recipe
    metric: str
    better: str

    def head(self, dim: int, hidden: int) -> nn.Module:
        """An untrained head on features of ``dim`` channels."""

    def crop(self, clip: Clip, states: Tensor, random: Any) -> tuple[Tensor, Any]:
        """What one training example takes of a clip's states (L, T, D), and its target."""

    def loss(self, head: nn.Module, features: Tensor, lengths: Tensor, targets: list[Any]) -> Tensor:
        """Of a batch (B, T, D), (B,)."""

    def scores(
        self, head: nn.Module, features: Features, clips: Sequence[Clip], chosen: Any
    ) -> tuple[dict[str, float], Any]:
        """Measures, and what was chosen on these clips where ``chosen`` is None."""


def train_head(
    task: HeadTask,
    states: FrozenStates,
    parts: tuple[Sequence[Clip], Sequence[Clip], Sequence[Clip]],
    recipe: Recipe,
    seed: int,
    normalise: bool = False,
) -> dict[str, Any]:
    """Train on the first part, choose the step on the second, test on the third.

    Returns:
      valid and test: name -> value; step: the chosen one; chosen: whatever the task chose on validation;
      weights: of the states.

    Raises:
      RuntimeError: the loss is not finite.
    """
    train, valid, test = parts
    device = next(states.encoder.parameters(), torch.empty(0)).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_random.key("head", seed))
        model = nn.ModuleDict(
            {
                "sum": WeightedSum(states.num_states, normalise),
                "head": task.head(states.dim, recipe.hidden_size),
            }
        ).to(device)

        def features(clip: Clip) -> tuple[Tensor, Tensor]:
            batch, lengths = states.batch([clip])
            return model["sum"](batch), lengths.to(device)

        optimiser = (torch.optim.AdamW if recipe.adamw else torch.optim.Adam)(
            model.parameters(), lr=recipe.learning_rate
        )
        sign = 1.0 if task.better == "higher" else -1.0
        best: tuple[float, int, Any, Any, dict] = (-math.inf, 0, None, None, {})
        batches = _batches(train, recipe.batch_size, seed)
        model.train()
        for step in progress(range(1, recipe.total_steps + 1), recipe.total_steps, "head", "steps"):
            optimiser.zero_grad(set_to_none=True)
            for _ in range(recipe.gradient_accumulate):
                random, clips = next(batches)
                crops = [task.crop(clip, own, random) for clip, own in zip(clips, states.of(clips))]
                batch, lengths = pad([crop for crop, _ in crops])
                loss = task.loss(
                    model["head"],
                    model["sum"](batch),
                    lengths.to(device),
                    [target for _, target in crops],
                )
                if not torch.isfinite(loss):
                    raise RuntimeError(
                        f"the loss of the head is {loss.item()} at step {step} with learning rate "
                        f"{recipe.learning_rate:g}: use a smaller one (--learning_rates)"
                    )
                (loss / recipe.gradient_accumulate).backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clipping)
            optimiser.step()
            if step % recipe.eval_step == 0 or step == recipe.total_steps:
                model.eval()
                with torch.no_grad():
                    found, chosen = task.scores(model["head"], features, valid, None)
                model.train()
                value = sign * next(iter(found.values()))
                if value > best[0] or best[1] == 0:
                    best = value, step, found, chosen, copy.deepcopy(model.state_dict())
        model.load_state_dict(best[4])
        model.eval()
        with torch.no_grad():
            tested, _ = task.scores(model["head"], features, test, best[3])
    weights = [round(float(weight), 4) for weight in model["sum"].weights.detach().softmax(0)]
    return {"valid": best[2], "test": tested, "step": best[1], "chosen": best[3], "weights": weights}


def _batches(clips: Sequence[Clip], size: int, seed: int) -> Iterator[tuple[Any, list[Clip]]]:
    """(random numbers of the batch, its clips), passes over the clips without end."""
    epoch, number = 0, 0
    while True:
        order = keyed_random.generator("order of clips", seed, epoch).permutation(len(clips))
        for start in range(0, len(order), size):
            yield (
                keyed_random.generator("batch of clips", seed, number),
                [clips[index] for index in order[start : start + size]],
            )
            number += 1
        epoch += 1
