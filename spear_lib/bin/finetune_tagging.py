"""Fine-tune an encoder for audio tagging (stage 12 of recipes of sounds)."""

import torch

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.corpora.clip_tables import read_class_list
from spear_lib.runtime import keyed_random
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.world import world as open_world
from spear_lib.tagging.data import TaggingData
from spear_lib.tagging.model import TaggingModel
from spear_lib.tagging.options import FinetuneTaggingOptions
from spear_lib.tagging.task import TaggingTask
from spear_lib.training.finetuning import (
    build_encoder,
    describe_audio,
    start_facts,
    training_config,
)
from spear_lib.training.loop import train


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
