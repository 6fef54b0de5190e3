"""Fine-tune an encoder for speech recognition: pruned transducer, CTC or both (stage 12)."""

import torch

from spear_lib.asr.data import AsrData
from spear_lib.asr.model import AsrModel
from spear_lib.asr.options import FinetuneOptions
from spear_lib.asr.task import AsrTask
from spear_lib.asr.units import load_units
from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.runtime import keyed_random
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.world import world as open_world
from spear_lib.training.finetuning import (
    build_encoder,
    describe_audio,
    start_facts,
    training_config,
)
from spear_lib.training.loop import train


def main(argv: list[str] | None = None) -> None:
    options = parse(
        FinetuneOptions,
        argv,
        prog="python -m spear_lib.bin.finetune_asr",
        description="Fine-tune an encoder for speech recognition (torchrun starts several processes).",
    )
    units = load_units(options.units)
    encoder = build_encoder(options)
    training = training_config(options, encoder)
    seed, batch_seconds = training.seed, options.data.batch_seconds
    torch.manual_seed(keyed_random.key("asr head", seed))
    model = AsrModel(encoder, options.model, units.vocab_size)
    task = AsrTask(model, units, options.data.spec_augment, options.valid_wer)
    with open_world(training.device) as world:
        train_data = AsrData(options.data, seed, world.rank, world.world_size)
        valid = AsrData(
            options.data, seed, world.rank, world.world_size, training=False, cuts=options.dev_cuts
        )
        if world.is_main:
            first_screen(
                "Fine-tuning for speech recognition",
                {
                    **start_facts(options, training),
                    **task.facts(),
                    "training audio": describe_audio(train_data),
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
