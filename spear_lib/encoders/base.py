"""What all encoders share: what they return, and how a kind of encoder is described to the library."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spear_lib.kernels import Kernel

logger = logging.getLogger(__name__)

MASKED_SCORE = -1000.0  # of attention; finite, so that a row without any source stays finite


@dataclass
class EncoderOutput:
    """What an encoder returns; frames at and beyond an utterance's length are undefined."""

    encoder_out: Tensor
    """(B, T', D) at ``frame_rate``."""
    lengths: Tensor
    """(B,) int64, valid frames of encoder_out."""
    hidden_states: Sequence[Tensor]
    """One (B, T, D) tensor per layer in order of computation, at the encoder's ``hidden_frame_rates``: always
    50 Hz, also where ``encoder_out`` is at 25 Hz."""


@dataclass(frozen=True)
class EncoderKind:
    """All that the rest of the library knows of a kind of encoders; ``kinds`` lists them."""

    config: type
    """Frozen dataclass of the settings; its ``structure()`` names those that no shape shows."""
    encoder: type[nn.Module]
    """Made of a config; its docstring lists the attributes that every encoder has (``input_kind``, ...)."""
    option: str
    """Group of pre-training's options that holds the settings."""
    anchor: str
    """Name of a tensor that every encoder of this kind has."""
    tensors: tuple[str, ...]
    """How the names of its tensors begin."""
    published_config: Callable[[dict[str, Tensor], dict[str, Any], Path], Any]
    """(state dict, settings of the published config.json or {}, where they lie) -> config."""
    published_names: dict[str, str] = field(default_factory=dict)
    """Published name of a tensor -> ours, where they differ."""
    model_types: tuple[str, ...] = ()
    """``model_type`` in the config.json of published folders of this kind."""
    kernels: Callable[[Any], list[Kernel]] = lambda config: []
    """config -> the fused kernels that an encoder of it could use."""
    recognises: Callable[[dict[str, Any]], bool] = lambda state: False
    """Whether a published file without settings is of this kind, by its names."""
    converted: Callable[[dict[str, Any]], dict[str, Any]] = lambda state: state
    """State dict of a published file -> the same under names that ``anchor`` and ``tensors`` know, where more
    than single names differ."""


def check_range(name: str, values: Tensor, low: int, high: int, unit: str) -> None:
    """ValueError if one of ``values`` (B,) lies outside low..high; ``unit`` ends the message's numbers."""
    wrong = ((values < low) | (values > high)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"{name}[{wrong[0]}] is {int(values[wrong[0]])}, outside {low}..{high} {unit} "
            f"({len(wrong)} of {values.numel()} utterances); drop utterances that are too short, "
            "and give lengths within the padded input"
        )


def check_waveforms(waveforms: Tensor) -> None:
    """ValueError with the way out unless ``waveforms`` are (B, N) floats."""
    if waveforms.dim() == 2 and waveforms.is_floating_point():
        return
    if not waveforms.is_floating_point():
        advice = "divide 16-bit integers by 32768"
    elif waveforms.dim() == 1:
        advice = "one utterance is waveforms.unsqueeze(0)"
    elif waveforms.dim() == 3 and waveforms.shape[1] == 1:
        advice = "of (B, 1, N) take waveforms.squeeze(1)"
    else:
        advice = "this encoder takes samples in [-1, 1] at 16 kHz, not features; make several channels one"
    raise ValueError(
        f"waveforms must be (B, N) float, got {waveforms.dtype} {tuple(waveforms.shape)}: {advice}"
    )


def check_trains_in(dtype: torch.dtype) -> None:
    """RuntimeError for weights in half precision: the regularisers and random draws of training need more."""
    if torch.finfo(dtype).bits < 32:
        raise RuntimeError(
            f"an encoder whose weights are {dtype} cannot be trained with begin_step: keep them in float32 "
            "and train under autocast (training.precision), or call encoder.eval()"
        )


@contextmanager
def computing_as_in_evaluation(encoder: nn.Module) -> Iterator[None]:
    """While inside, every module of ``encoder`` is in evaluation mode; afterwards each is as it was."""
    training = [module for module in encoder.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
