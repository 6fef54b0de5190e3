"""The kinds of encoders there are: from settings to a configuration, from a configuration to an encoder.

A new kind is a folder beside ``zipformer`` and one entry in ``KINDS``.
"""

from dataclasses import field, fields, make_dataclass
from typing import Any

from spear_lib.encoders.base import EncoderKind
from spear_lib.encoders.spidr import SpidrConfig, SpidrEncoder
from spear_lib.encoders.spidr import published as spidr
from spear_lib.encoders.transformer import TransformerConfig, TransformerEncoder
from spear_lib.encoders.transformer import published as wavlm
from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.encoders.zipformer import published as spear
from spear_lib.encoders.zipformer.fused import zipformer_kernels

KINDS: dict[str, EncoderKind] = {
    "zipformer": EncoderKind(
        ZipformerConfig,
        SpearEncoder,
        option="encoder",
        anchor="encoder_embed.conv.0.weight",
        tensors=("encoder_embed.", "encoder.", "mask_emb"),
        published_config=spear.published_config,
        kernels=zipformer_kernels,
    ),
    "transformer": EncoderKind(
        TransformerConfig,
        TransformerEncoder,
        option="transformer",
        anchor="feature_extractor.conv_layers.0.conv.weight",
        tensors=("feature_extractor.", "feature_projection.", "encoder.", "masked_spec_embed"),
        published_config=wavlm.published_config,
        published_names=wavlm.PUBLISHED_NAMES,
        model_types=("wavlm",),
    ),
    "spidr": EncoderKind(
        SpidrConfig,
        SpidrEncoder,
        option="spidr",
        anchor=spidr.ANCHOR,
        tensors=spidr.TENSORS,
        published_config=spidr.published_config,
        recognises=spidr.recognises,
        converted=spidr.converted,
    ),
}

EncoderConfig = ZipformerConfig | TransformerConfig | SpidrConfig
Encoder = SpearEncoder | TransformerEncoder | SpidrEncoder

# The settings of every kind as a group of options; commands that build an encoder inherit from it.
EncoderOptions = make_dataclass(
    "EncoderOptions",
    [(kind.option, kind.config, field(default_factory=kind.config)) for kind in KINDS.values()],
    frozen=True,
    kw_only=True,
)


def kind_of(config: EncoderConfig) -> EncoderKind:
    """The kind whose settings ``config`` holds."""
    return next(kind for kind in KINDS.values() if isinstance(config, kind.config))


def build_encoder(config: EncoderConfig) -> Encoder:
    """A new encoder with random weights."""
    return kind_of(config).encoder(config)


def config_from_settings(settings: dict[str, Any], where: str) -> EncoderConfig:
    """The configuration that ``settings`` describe; "type" names the kind, a Zipformer where there is none.

    Raises:
      ValueError: an unknown setting; names all of them, and ``where`` they stand.
    """
    cls = KINDS[settings["type"] if settings.get("type") in KINDS else "zipformer"].config
    known = {field.name for field in fields(cls)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(
            f"{where} has unknown encoder settings: {', '.join(unknown)}; "
            f"known ones: {', '.join(sorted(known))}"
        )
    return cls(**settings)
