"""What all encoders share: what they return, and how a kind of encoder is described to the library."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

MASKED_SCORE = -1000.0  # of attention; finite, so that a row without any source stays finite


@dataclass
class EncoderOutput:
    """What an encoder returns; frames at and beyond an utterance's length are undefined."""

    encoder_out: Tensor
    """(B, T', D) at ``frame_rate``."""
    lengths: Tensor
    """(B,) int64, valid frames of encoder_out."""
    hidden_states: Sequence[Tensor]
    """One (B, T, D) tensor per layer in order of computation, always at 50 Hz."""


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
