"""All conditions of ABX for the states of one encoder or token store, whose frames are made once (ours)."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from torch import Tensor

from spear_lib.evaluation.abx.rates import AbxConfig, Segments, abx, cut_segments
from spear_lib.evaluation.alignments import Phone


class Conditions:
    """Speaker and context conditions -> the error of the best state.

    Args:
      load: the frames of every state, file -> (T, D), and the centre of the first frame in ms; called when
        the first condition is asked for.
      rate: frames per second.
      distance: one of DISTANCES.
      max_too_short, without_last_frame: as ``cut_segments`` takes them.
    """

    def __init__(
        self,
        phones: list[Phone],
        load: Callable[[], tuple[list[Mapping[str, Tensor]], float]],
        rate: int,
        distance: str,
        config: AbxConfig,
        max_too_short: float,
        without_last_frame: bool,
    ) -> None:
        self.phones, self.load, self.rate, self.distance, self.config = phones, load, rate, distance, config
        self.cutting = max_too_short, without_last_frame
        self.states: list[Segments] = []

    def __call__(self, speaker: str, context: str) -> dict[str, Any]:
        """One condition, errors in percent."""
        if not self.states:
            states, first_ms = self.load()
            first = Fraction(first_ms) / 1000
            self.states = [
                cut_segments(self.phones, state, self.rate, first, *self.cutting) for state in states
            ]
        found = [abx(segments, speaker, context, self.distance, self.config) for segments in self.states]
        errors = [100.0 * one.error for one in found]
        return {
            "metric": "ABX error (%)",
            "better": "lower",
            "mean": min(errors),
            "errors": errors,
            "best_state": errors.index(min(errors)),
            "cells": found[0].num_cells,
            "items": found[0].num_items,
            "too_short": self.states[0].too_short,
        }
