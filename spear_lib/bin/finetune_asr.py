"""Fine-tune an encoder for speech recognition with the pruned transducer loss (stage 12)."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from spear_lib import keyed_random
from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.asr.task import AsrTask
from spear_lib.asr.units import CharacterUnits, TextUnits, character_units
from spear_lib.bin.common import first_screen, run
from spear_lib.config import parse
from spear_lib.data.asr_data import AsrData, AsrDataConfig
from spear_lib.pretrained import load_encoder
from spear_lib.training.distributed import world as open_world
from spear_lib.training.loop import train
from spear_lib.training.options import TrainingConfig
from spear_lib.zipformer import SpearEncoder, ZipformerConfig


@dataclass(frozen=True)
class FinetuneOptions:
    """What is fine-tuned, on what, and where the result goes."""

    experiment_dir: str
    """Receives config.yaml, log, metrics.jsonl, tensorboard and checkpoints; a run goes on there."""
    units: str
    """Text units: bpe.model, the folder that holds it, or "characters" (the 29 labels of the CTC models)."""
    dev_cuts: list[str]
    """Manifests of the validation set (loss, and word error rate by greedy search)."""
    encoder: str = ""
    """Pre-trained encoder: a folder of stage 11 or a checkpoint. With scratch: only its shape is used."""
    scratch: bool = False
    """Start from random weights (the comparison); then encoder_lr_scale, freeze_encoder_steps and
    schedule_offset_batches do not apply: a random encoder trains like the head, from the first step on."""
    encoder_config: ZipformerConfig = field(default_factory=ZipformerConfig)
    """Shape of the encoder with scratch and without encoder."""
    encoder_lr_scale: float = 0.1
    """Factor on the learning rate of the encoder (reference: 0.05 or 0.1)."""
    freeze_encoder_steps: int = 2000
    """Steps during which only the head trains (reference: 2000)."""
    schedule_offset_batches: float = 100_000.0
    """Added to the clock of the encoder's schedules, so that they are in their final state (reference)."""
    valid_wer: bool = True
    """Recognise the validation set at every validation (greedy search)."""
    data: AsrDataConfig = field(default_factory=AsrDataConfig)
    """Training data."""
    model: TransducerConfig = field(default_factory=TransducerConfig)
    """Transducer head."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Optimiser, schedule, intervals."""


def load_units(name: str) -> TextUnits | CharacterUnits:
    """Units by the option ``units``."""
    return character_units() if name == "characters" else TextUnits(name)


def build_encoder(options: FinetuneOptions) -> SpearEncoder:
    """The encoder that training starts from.

    Raises:
      ValueError: neither an encoder nor scratch was asked for.
    """
    if not options.scratch:
        if not options.encoder:
            raise ValueError(
                "no encoder is given: set encoder to a pre-trained one (run.sh stage 11 makes it), "
                "or scratch to true to start from random weights"
            )
        return load_encoder(options.encoder)
    config: Any = load_encoder(options.encoder).config if options.encoder else options.encoder_config
    # After reading the other one, whose construction also draws numbers.
    torch.manual_seed(keyed_random.key("encoder", options.training.seed))
    return load_encoder(config)


def training_config(options: FinetuneOptions) -> TrainingConfig:
    """The options of the loop, with the encoder's own learning rate, freezing and clock filled in."""
    training = options.training
    if options.scratch:
        return training
    freeze = ["encoder"] if options.freeze_encoder_steps > 0 else training.freeze
    return dataclasses.replace(
        training,
        lr_scales={**training.lr_scales, "encoder": options.encoder_lr_scale},
        freeze=freeze,
        freeze_steps=options.freeze_encoder_steps if freeze == ["encoder"] else training.freeze_steps,
        schedule_offset_batches=options.schedule_offset_batches,
    )


def describe_audio(data: AsrData) -> str:
    """How much there is of a set, for the first screen."""
    return f"{data.total_seconds / 60:.1f} min in {data.num_cuts} cuts"


def main() -> None:
    options = parse(
        FinetuneOptions,
        prog="python -m spear_lib.bin.finetune_asr",
        description="Fine-tune an encoder for speech recognition (torchrun starts several processes).",
    )
    training = training_config(options)
    seed, batch_seconds = training.seed, options.data.batch_seconds
    units = load_units(options.units)
    encoder = build_encoder(options)
    torch.manual_seed(keyed_random.key("asr head", seed))
    model = AsrModel(encoder, options.model, units.vocab_size)
    task = AsrTask(model, units, options.data.spec_augment, options.valid_wer)
    with open_world(training.device) as world:
        train_data = AsrData(options.data, seed, world.rank, world.world_size)
        valid = AsrData(
            options.data, seed, world.rank, world.world_size, training=False, cuts=options.dev_cuts
        )
        if world.is_main:
            rate = training.lr_scales.get("encoder", 1.0)
            frozen = f", frozen for {training.freeze_steps} steps" if training.freeze else ""
            first_screen(
                "Fine-tuning for speech recognition",
                {
                    "starts from": "random weights" if options.scratch else options.encoder,
                    **task.facts(),
                    "training audio": describe_audio(train_data),
                    "validation": describe_audio(valid),
                    "batch": f"{batch_seconds:g} s of audio over {world.world_size} process(es)",
                    "learning rate": f"{training.learning_rate:g}; encoder x {rate:g}{frozen}",
                    "steps": training.max_steps,
                    "experiment": options.experiment_dir,
                },
            )
        train(
            task,
            train_data,
            {"dev": valid},
            training,
            options.experiment_dir,
            batch_seconds=batch_seconds,
            world=world,
            options=options,
        )


if __name__ == "__main__":
    run(main)
