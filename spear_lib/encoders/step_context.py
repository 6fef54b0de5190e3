"""Schedules, and the clock and random draws of one training step.

All modules of an encoder share one ``StepContext``. ``SpearEncoder.begin_step`` fills it once per step; the
forward pass then is a pure function of weights, inputs and the context. Nothing here synchronises with the
device: coins that concern a whole call are hashed on the host, draws that concern an utterance on the device.
"""

import logging
from typing import Any

import torch
from torch import Tensor

from spear_lib.kernels import fused
from spear_lib.runtime import keyed_random

logger = logging.getLogger(__name__)

# Sites of keyed_random.uniform; positional dropout takes _SITE_SHARED + its own number.
_SITE_COINS = 1
_SITE_UTTERANCE = 2
_SITE_SHARED = 1000


class Schedule:
    """A piecewise-linear function of the batch count, constant outside its points (Zipformer).

    Args:
      *points: (batch count, value) with increasing batch counts; one number makes a constant.
      default: the value while no batch count is set.
    """

    def __init__(self, *points: tuple[float, float] | float, default: float | None = None):
        if len(points) == 1 and not isinstance(points[0], tuple):
            constant = float(points[0])
            points = ((0.0, constant),)
            default = constant if default is None else default
        self.points = [(float(x), float(y)) for x, y in points]
        self.default = 0.0 if default is None else float(default)
        starts = [x for x, _ in self.points]
        if starts != sorted(set(starts)):
            raise ValueError(f"schedule points must have increasing batch counts, got {starts}")

    def __call__(self, batch_count: float | None) -> float:
        """The value at ``batch_count``, or the default for None."""
        if batch_count is None:
            return self.default
        if batch_count <= self.points[0][0]:
            return self.points[0][1]
        for (x0, y0), (x1, y1) in zip(self.points, self.points[1:]):
            if batch_count <= x1:
                return y0 + (y1 - y0) * (batch_count - x0) / (x1 - x0)
        return self.points[-1][1]

    def __repr__(self) -> str:
        return f"Schedule({self.points}, default={self.default})"


def as_schedule(value: "Schedule | float") -> Schedule:
    """``value`` itself, or a constant schedule of it."""
    return value if isinstance(value, Schedule) else Schedule(value)


class StepContext:
    """Clock and random draws of the current training step, shared by all modules of one encoder.

    Modules reserve their draws when they are built (``new_coin``, ``new_draws``), so each draw has a number
    that depends on the architecture alone.

    Attributes:
      tables: what depends on sizes alone and is made once on an accelerator, by what it belongs to.
      optional: a forward in training mode needs no step, until the first one was begun; so it is for encoders
        that ``load_encoder`` hands out, which clients train that know nothing of steps.
    """

    def __init__(self):
        self.batch_count: float | None = None
        self.step_key: int | None = None
        self.utterance_keys: Tensor | None = None
        self.gradient_scale = 1.0
        self.optional = False
        self._num_coins = 0
        self._num_draws = 0
        self._num_shared = 0
        self._coins: list[float] = []
        self._draws: Tensor | None = None
        self._ready = False
        self._told = False
        self.tables: dict[Any, Tensor] = {}
        self._planned: list[tuple[slice, Schedule | None, bool]] = []
        self._masks: Tensor | None = None
        self._rates: dict[tuple[int, int, bool], float] = {}

    def new_coin(self) -> int:
        """Reserve one uniform number per step."""
        self._num_coins += 1
        return self._num_coins - 1

    def new_draws(self, count: int = 1, rate: Schedule | None = None, scaled: bool = False) -> slice:
        """Reserve ``count`` uniform numbers per utterance and step.

        Args:
          rate: what ``keep`` (or ``dropout``, where ``scaled``) will be asked for; then an accelerator makes
            all masks of the step at once.
        """
        self._num_draws += count
        where = slice(self._num_draws - count, self._num_draws)
        self._planned.append((where, rate, scaled))
        return where

    def new_shared(self) -> int:
        """Reserve a site for numbers shared by the batch, see ``shared``."""
        self._num_shared += 1
        return _SITE_SHARED + self._num_shared - 1

    def begin(
        self, batch_count: float, step_key: int, utterance_keys: Tensor, gradient_scale: float = 1.0
    ) -> None:
        """Set the clock and keys of the next training forward.

        Args:
          batch_count: schedule clock, in batches of the reference size (spec: 600 s of audio each).
          step_key: key of the draws shared by the batch; the same on all processes.
          utterance_keys: (B,) int64, one key per utterance, see ``spear_lib.runtime.keyed_random.keys``.
          gradient_scale: what the loss is multiplied by before backward (the number of processes whose
            gradients are averaged); gradients that do not come from the loss are multiplied by it too.
        """
        self.batch_count = float(batch_count)
        self.step_key = int(step_key)
        self.utterance_keys = utterance_keys
        self.gradient_scale = gradient_scale
        key = torch.tensor(self.step_key, dtype=torch.int64, device="cpu")
        self._coins = keyed_random.uniform(key, _SITE_COINS, self._num_coins).tolist()
        self._draws = self._masks = None
        self._rates = {}
        self._ready = True

    def without_steps(self) -> bool:
        """Whether whoever trains knows nothing of steps: where that is allowed (``optional``), until the
        first ``begin``."""
        if not self.optional or self.step_key is not None:
            return False
        if not self._told:
            self._told = True
            logger.warning(
                "training mode without begin_step: the encoder computes as in evaluation mode, with "
                "gradients (no dropout, no regularisers). Call encoder.begin_step before every forward for "
                "SPEAR's training, or encoder.eval() for features"
            )
        return True

    def take(self, batch_size: int, device: torch.device) -> None:
        """Use up the step that ``begin`` prepared, for one training forward of ``batch_size`` utterances.

        Raises:
          RuntimeError: no step was begun since the last forward.
          ValueError: the step was begun for another number of utterances.
        """
        if not self._ready:
            raise RuntimeError(
                "training forward without begin_step: call encoder.begin_step(batch_count, step_key, "
                "utterance_keys) before every forward in training mode, or encoder.eval() for features"
            )
        num_keys = self.utterance_keys.shape[0]
        if num_keys != batch_size:
            raise ValueError(
                f"begin_step got {num_keys} utterance keys but the batch has {batch_size} utterances; "
                "give one key per utterance"
            )
        self._ready = False
        self.prepare(device)

    def prepare(self, device: torch.device) -> None:
        """Draw all per-utterance numbers of the step at once, on ``device``."""
        if self._draws is None and self._num_draws:
            keys = self.utterance_keys.to(device, non_blocking=True)
            if fused("draws", keys):
                sites = keyed_random.constants(_SITE_UTTERANCE)
                self._draws = torch.ops.spear.keyed_uniform(keys, sites, self._num_draws)
                self._make_masks()
            else:
                self._draws = keyed_random.uniform(keys, _SITE_UTTERANCE, self._num_draws)

    def coin(self, index: int) -> float:
        """The reserved number ``index`` of this step, in [0, 1); a host float."""
        return self._coins[index]

    def draws(self, where: slice) -> Tensor:
        """The reserved per-utterance numbers, (B, count) in [0, 1)."""
        return self._draws[:, where]

    def _make_masks(self) -> None:
        """All masks whose rates are known, in one kernel."""
        counts, rates, values = [], [], []
        for where, schedule, scaled in self._planned:
            rate = 0.0 if schedule is None else schedule(self.batch_count)
            counts.append(where.stop - where.start)
            rates.append(rate)
            values.append(1.0 / (1.0 - rate) if scaled else 1.0)
            if schedule is not None:
                self._rates[where.start, where.stop, scaled] = rate
        if self._rates:
            self._masks = torch.ops.spear.keep_all(self._draws, counts, rates, values)

    def _mask(self, where: slice, rate: float, scaled: bool) -> Tensor | None:
        """One of them, (B, count) with rows apart, or None if it was not foreseen."""
        foreseen = self._rates.get((where.start, where.stop, scaled)) == rate
        return self._masks[:, where] if foreseen else None

    def keep(self, where: slice, probability: float) -> Tensor:
        """0/1 float mask (B, count), 0 with ``probability``."""
        mask = self._mask(where, probability, False)
        return (self._draws[:, where] >= probability).to(torch.float32) if mask is None else mask

    def dropout(self, where: slice, rate: float) -> Tensor:
        """Multipliers (B, count) float32: 0 with probability ``rate``, else 1 / (1 - rate)."""
        mask = self._mask(where, rate, True)
        return self.keep(where, rate).div_(1.0 - rate) if mask is None else mask

    def shared(self, site: int, positions: Tensor, count: int) -> Tensor:
        """Numbers (len(positions), count) that depend on (step, site, position) alone, not on the batch."""
        return keyed_random.uniform(positions + self.step_key, site, count)
