"""The kinds of encoders there are: from settings to a configuration, from a configuration to an encoder."""

from dataclasses import fields
from typing import Any

from spear_lib.transformer import TransformerConfig, TransformerEncoder
from spear_lib.zipformer import SpearEncoder, ZipformerConfig

EncoderConfig = ZipformerConfig | TransformerConfig
Encoder = SpearEncoder | TransformerEncoder

ENCODER_TYPES = ("zipformer", "transformer")


def build_encoder(config: EncoderConfig) -> Encoder:
    """A new encoder with random weights."""
    return TransformerEncoder(config) if isinstance(config, TransformerConfig) else SpearEncoder(config)


def config_from_settings(settings: dict[str, Any], where: str) -> EncoderConfig:
    """The configuration that ``settings`` describe; "type" tells a Transformer's from a Zipformer's.

    Raises:
      ValueError: an unknown setting; names all of them, and ``where`` they stand.
    """
    cls = TransformerConfig if settings.get("type") == "transformer" else ZipformerConfig
    known = {field.name for field in fields(cls)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(
            f"{where} has unknown encoder settings: {', '.join(unknown)}; "
            f"known ones: {', '.join(sorted(known))}"
        )
    return cls(**settings)
