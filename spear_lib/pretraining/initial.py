"""What pre-training starts from: random weights, or an encoder that is there (continued pre-training).

``options`` are PretrainOptions.
"""

import functools
import logging
from dataclasses import fields, replace
from typing import Any

from spear_lib.encoders import encoder_id, load_encoder
from spear_lib.encoders.kinds import Encoder, EncoderConfig, build_encoder, kind_of

logger = logging.getLogger(__name__)

FINAL_SCHEDULE_BATCHES = 100_000.0
"""Clock at which every schedule of an encoder has its final value (reference, of fine-tuning)."""


def continued_config(chosen: EncoderConfig, found: EncoderConfig, where: str) -> EncoderConfig:
    """The configuration of an encoder that goes on: its own shape, what ``chosen`` says of training.

    Raises:
      ValueError: ``chosen`` asks for another kind or shape than it has.
    """
    if kind_of(chosen) is not kind_of(found):
        raise ValueError(
            f"init_encoder {where} is a {kind_of(found).encoder.encoder_type}, but encoder_type is "
            f"{kind_of(chosen).encoder.encoder_type}: set it to that of init_encoder"
        )
    default = type(chosen)()
    training = {name: getattr(chosen, name) for name in type(chosen).TRAINING}
    for field in fields(chosen):
        asked, own = (_per_stack(config, field.name) for config in (chosen, found))
        left_alone = getattr(chosen, field.name) == getattr(default, field.name)
        if field.name not in training and not left_alone and asked != own:
            raise ValueError(
                f"{field.name} is {getattr(chosen, field.name)}, but init_encoder {where} has "
                f"{getattr(found, field.name)}: leave the shape out, it is that of init_encoder"
            )
    return replace(found, **training)


def _per_stack(config: EncoderConfig, name: str) -> Any:
    """A field's value, written out for every stack where there are stacks."""
    value = getattr(config, name)
    if isinstance(value, tuple) and len(value) == 1 and hasattr(config, "num_stacks"):
        return value * config.num_stacks
    return value


@functools.lru_cache(maxsize=1)
def _loaded(path: str) -> Encoder:
    """The encoder at ``path``: options ask for its configuration, the run for its weights."""
    return load_encoder(path)


def config_of(options: Any, chosen: EncoderConfig) -> EncoderConfig:
    """The configuration of the run's encoder: ``chosen``, or that of ``init_encoder``."""
    if not options.init_encoder:
        return chosen
    return continued_config(chosen, _loaded(options.init_encoder).config, options.init_encoder)


def initial_encoder(options: Any) -> Encoder:
    """The encoder that the run starts with."""
    encoder = build_encoder(options.encoder_config)
    if options.init_encoder:
        encoder.load_state_dict(_loaded(options.init_encoder).state_dict())
        _loaded.cache_clear()
    return encoder


def with_final_schedules(options: Any) -> Any:
    """``options`` with the clock of the encoder's schedules at their end, where training goes on from an
    encoder and no clock was asked for: layers would be skipped and dropped out as in a run's first steps."""
    training = options.training
    if not options.init_encoder or training.schedule_offset_batches:
        return options
    return replace(options, training=replace(training, schedule_offset_batches=FINAL_SCHEDULE_BATCHES))


def start_facts(options: Any, encoder: Encoder) -> dict[str, str]:
    """Lines of the first screen: where the weights come from, and how they train."""
    if not options.init_encoder:
        return {"starts from": "random weights"}
    training = options.training
    scale = training.lr_scales.get("encoder", 1.0)
    return {
        "starts from": f"{options.init_encoder} ({encoder_id(encoder)}); new prediction heads. Read at the "
        "first step only: a run that is there goes on from its checkpoint",
        "encoder trains with": f"learning rate {training.learning_rate * scale:g} at its peak after "
        f"{training.warmup_batches:g} steps (the paper's from random weights: 0.045; training.learning_rate, "
        "or training.lr_scales '{encoder: 0.1}' for the encoder alone), its schedules (dropout, layer "
        f"skipping, balancers) at batch {training.schedule_offset_batches:g}",
    }
