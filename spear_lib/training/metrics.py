"""Numbers of a run: summed without waiting for the device, reduced over ranks when they are shown (ours)."""

import math

import torch
from torch import Tensor

from spear_lib.runtime.progress import format_seconds
from spear_lib.runtime.world import World
from spear_lib.training.interfaces import TrainingData
from spear_lib.training.options import TrainingConfig
from spear_lib.training.resuming import Position
from spear_lib.training.task import Stats


class Totals:
    """Running (sum, count) pairs of this rank, in float64 on whatever device the values live."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, stats: Stats) -> None:
        for name, pair in stats.items():
            new = [torch.as_tensor(value).detach().to(torch.float64) for value in pair]
            old = self._values.get(name)
            self._values[name] = new if old is None else [a.to(b.device) + b for a, b in zip(old, new)]

    def __bool__(self) -> bool:
        return bool(self._values)

    def collect(self, world: World) -> Stats:
        """Totals over all ranks, on the host. All ranks call it; they may have seen different names.

        The main rank goes on from these totals and the others from zero, so that a run that saves them and
        one that restarts from them add the same numbers in the same order.
        """
        host = {name: [value.cpu() for value in pair] for name, pair in self._values.items()}
        shapes = {name: [list(value.shape) for value in pair] for name, pair in host.items()}
        totals = {}
        for name, pair in sorted(world.union(shapes).items()):
            own = host.get(name) or [torch.zeros(shape, dtype=torch.float64) for shape in pair]
            totals[name] = (world.sum(own[0]), world.sum(own[1]))
        self.load(totals, world)
        return totals

    def clear(self) -> None:
        self._values = {}

    def load(self, stats: Stats, world: World) -> None:
        """Continue from saved totals (the main rank; the others start from zero)."""
        scale = 1.0 if world.is_main else 0.0
        self._values = {name: [value * scale for value in pair] for name, pair in stats.items()}


def describe_length(config: TrainingConfig, batches_per_epoch: int) -> str:
    """How long a run is, for the first screen: ``"90 epochs of 180 steps: about 16,200 steps"``.

    Args:
      config: of the run.
      batches_per_epoch: global batches of an epoch; 0: not known.
    """
    per_epoch = batches_per_epoch / config.accumulate_batches
    lengths = []
    if config.max_epochs:
        of_epoch = f" of {per_epoch:,.0f} steps: about {config.max_epochs * per_epoch:,.0f} steps"
        lengths.append(f"{config.max_epochs} epochs" + (of_epoch if batches_per_epoch else ""))
    if config.max_steps:
        in_epochs = f", {config.max_steps / per_epoch:.1f} epochs of {per_epoch:,.0f}" if per_epoch else ""
        lengths.append(f"{config.max_steps:,} steps{in_epochs}")
    if config.max_minutes:
        lengths.append(f"{config.max_minutes:g} minutes")
    return "; or, if that is sooner, ".join(lengths)


def describe_batch(seconds: float, processes: int) -> str:
    """The batch of a step, for the first screen: ``"4800 s of audio, 600 s on each of 8 processes"``."""
    share = f", {seconds / processes:g} s on each of {processes} processes" if processes > 1 else ""
    return f"{seconds:g} s of audio{share}"


def time_left(config: TrainingConfig, position: Position, data: TrainingData, seconds_per_step: float) -> str:
    """``", 3 min 05 s left"``: until the first of the limits of a run; empty where none is near."""
    limits = []
    if config.max_steps:
        limits.append((config.max_steps - position.step) * seconds_per_step)
    if config.max_minutes:
        limits.append(60 * config.max_minutes - position.seconds)
    if config.max_epochs:
        done = position.epoch + position.batch / max(data.num_batches(position.epoch), 1)
        if done > 0:
            limits.append((config.max_epochs / done - 1) * position.step * seconds_per_step)
    return f", {format_seconds(min(limits))} left" if limits and math.isfinite(min(limits)) else ""
