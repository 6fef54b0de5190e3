"""Fine-tune an encoder for audio tagging (stage 12 of recipes of sounds)."""

from dataclasses import dataclass, field

import torch

from spear_lib import keyed_random
from spear_lib.bin.common import first_screen, run
from spear_lib.config import parse
from spear_lib.data.clip_tables import read_class_list
from spear_lib.data.tagging_data import TaggingData, TaggingDataConfig
from spear_lib.tagging.model import TaggingConfig, TaggingModel
from spear_lib.tagging.task import TaggingTask
from spear_lib.training.distributed import world as open_world
from spear_lib.training.finetuning import (
    FinetuningOptions,
    build_encoder,
    describe_audio,
    start_facts,
    training_config,
)
from spear_lib.training.loop import train


@dataclass(frozen=True, kw_only=True)
class FinetuneTaggingOptions(FinetuningOptions):
    """What is fine-tuned, on what, and where the result goes."""

    classes: str
    """AudioSet's class_labels_indices.csv, or a list of the same form: index, mid, display_name."""
    dev_cuts: list[str]
    """Manifests of the validation set (loss and mean average precision)."""
    data: TaggingDataConfig = field(default_factory=TaggingDataConfig)
    """Training data."""
    model: TaggingConfig = field(default_factory=TaggingConfig)
    """The head."""


def describe_sampling(data: TaggingData) -> str:
    """What an epoch takes and what is mixed, for the first screen."""
    config = data.config
    if config.weighted_sampling:
        number = config.samples_per_epoch or data.num_cuts
        sampling = f"{number} clips per epoch, drawn by the weights of their labels"
    else:
        sampling = "every clip once per epoch"
    noise = config.mixing.noise_probability if data.examples.noise is not None else 0.0
    return f"{sampling}; mixup with {config.mixup.probability:g}, noise with {noise:g} of them"


def main(argv: list[str] | None = None) -> None:
    options = parse(
        FinetuneTaggingOptions,
        argv,
        prog="python -m spear_lib.bin.finetune_tagging",
        description="Fine-tune an encoder for audio tagging (torchrun starts several processes).",
    )
    classes = read_class_list(options.classes)
    encoder = build_encoder(options)
    training = training_config(options, encoder)
    seed, batch_seconds = training.seed, options.data.batch_seconds
    torch.manual_seed(keyed_random.key("tagging head", seed))
    model = TaggingModel(encoder, options.model, len(classes))
    task = TaggingTask(model, classes, options.data.spec_augment)
    with open_world(training.device) as world:
        train_data = TaggingData(options.data, classes, seed, world.rank, world.world_size)
        valid = TaggingData(
            options.data, classes, seed, world.rank, world.world_size, training=False, cuts=options.dev_cuts
        )
        if world.is_main:
            first_screen(
                "Fine-tuning for audio tagging",
                {
                    **start_facts(options, training),
                    **task.facts(),
                    "training audio": describe_audio(train_data),
                    "sampling": describe_sampling(train_data),
                    "validation": describe_audio(valid),
                    "batch": f"{batch_seconds:g} s of audio over {world.world_size} process(es)",
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
