"""What a run learns about itself now and then: losses on validation sets, and a probe of the features."""

import logging
import time
from collections.abc import Callable
from typing import Protocol

import torch

from spear_lib.runtime.metrics_log import MetricsLog
from spear_lib.runtime.world import World
from spear_lib.training.interfaces import ValidationData
from spear_lib.training.metrics import Totals
from spear_lib.training.task import Task

logger = logging.getLogger(__name__)

COST_LIMIT = 0.05
"""Share of the training time above which the log says how to make the probe cheaper."""


@torch.no_grad()
def validate(
    task: Task,
    valid_data: dict[str, ValidationData],
    world: World,
    between_batches: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Every validation set once, without autocast; the numbers do not depend on the number of ranks.

    Args:
      valid_data: set name -> data.
      between_batches: called by all ranks alike before every batch; what it raises ends the validation.

    Raises:
      ValueError: a set gave no batch.
    """
    task.model.eval()
    results = {}
    for name, data in valid_data.items():
        totals = Totals()
        for batch in data.epoch_batches(0, 0):
            between_batches()
            if not len(batch):
                continue
            totals.add(task.compute(batch.to(world.device)).stats)
        collected = totals.collect(world)
        if not collected:
            raise ValueError(f"validation set {name!r} gave no batch: see its cuts and the duration limits")
        results[name] = task.summarise(collected)
    return results


class Probe(Protocol):
    """Measures what the model's features are good for, beside the loss that it is trained on."""

    every: int
    """At every n-th validation; 0: never."""

    def measure(self, between_batches: Callable[[], None]) -> dict[str, dict[str, float]]:
        """Set -> values. All ranks call it; it is empty on all but the main one. ``between_batches`` as in
        ``validate``."""

    def describe(self, values: dict[str, float]) -> str:
        """One log line of a set's values."""


class ProbeReports:
    """Runs a probe when it is due, writes what it found and what it cost.

    The lines of metrics.jsonl are of kind ``probe/<set>``: what the probe measured and ``seconds``, its time.
    """

    def __init__(self, probe: Probe | None, metrics: MetricsLog, world: World) -> None:
        self.probe, self.metrics, self.world = probe if probe else None, metrics, world
        self._spent = 0.0
        self._seconds_before: float | None = None

    def due(self, validation: int) -> bool:
        """Whether the n-th validation of the run includes the probe (0: that before the first step)."""
        return self.probe is not None and self.probe.every > 0 and validation % self.probe.every == 0

    def report(
        self,
        step: int,
        epoch: int,
        training_seconds: float,
        between_batches: Callable[[], None] = lambda: None,
    ) -> None:
        """Measures now.

        Args:
          training_seconds: spent training since the start of the run.
          between_batches: as in ``validate``.
        """
        if self.probe is None:
            return
        start = time.monotonic()
        results = self.probe.measure(between_batches)
        seconds = time.monotonic() - start
        if self._seconds_before is None:
            self._seconds_before = training_seconds
        trained = training_seconds - self._seconds_before
        self._spent += seconds if trained > 0 else 0.0
        for name, values in results.items():
            self.metrics.write(step, epoch, f"probe/{name}", {**values, "seconds": seconds})
            logger.info("step %d, probe %s: %s", step, name, self.probe.describe(values))
        if not self.world.is_main or trained <= 0:
            return
        share = self._spent / trained
        advice = (
            "" if share <= COST_LIMIT else ": raise probe.every or lower probe.max_cuts to make it cheaper"
        )
        logger.info(
            "step %d, probe: %.1f s, %.1f %% of the training time so far%s",
            step,
            seconds,
            100 * share,
            advice,
        )
