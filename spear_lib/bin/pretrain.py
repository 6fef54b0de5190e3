"""Pre-train an encoder to predict teacher tokens from a masked input (paper §3.2).

    python -m spear_lib.bin.pretrain --config conf/pretrain/mini.yaml --experiment_dir exp/pretrain \\
        --data.train_cuts '[data/cuts/librispeech_cuts_train.jsonl.gz]' --data.token_fields '[spectral_cb8]'
        \\ --valid_cuts '[data/cuts/librispeech_cuts_dev.jsonl.gz]'

Run the same command again to go on after a crash. Several processes: torchrun --nproc-per-node=8 -m ...
With --init_encoder FOLDER pre-training goes on from an encoder, ours or published, on data of your own.
With --dry_run true nothing is trained: it prints what the run would take (memory, steps, GPU-hours).
"""

import logging

import torch

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.data.manifests import set_name
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.pretraining import PretrainingModel, PretrainingTask, token_fields
from spear_lib.pretraining.data import PretrainingData
from spear_lib.pretraining.facts import run_facts
from spear_lib.pretraining.initial import initial_encoder, start_facts, with_final_schedules
from spear_lib.pretraining.options import PretrainOptions
from spear_lib.pretraining.plan_report import plan_lines
from spear_lib.pretraining.running import train_encoder
from spear_lib.runtime import keyed_random
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.metrics_log import log_file
from spear_lib.runtime.world import World, world

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    options = parse(PretrainOptions, argv, prog="python -m spear_lib.bin.pretrain", description=__doc__)
    options = with_final_schedules(options)
    if options.dry_run:
        first_screen("Plan of a pre-training run; nothing is trained", plan_lines(options))
        return
    with world(options.training.device) as processes, log_file(options.experiment_dir, processes.is_main):
        pretrain(options, processes)


def pretrain(options: PretrainOptions, processes: World) -> None:
    """Everything of one run, in this process of ``processes``."""
    seed = options.training.seed
    shared = {
        "seed": seed,
        "rank": processes.rank,
        "world_size": processes.world_size,
        "needed_fields": options.objective.fields_by_domain(options.data.token_fields),
    }
    train_data = PretrainingData(options.data, **shared)
    valid_data = {
        set_name(path): PretrainingData(options.data, **shared, training=False, cuts=[path])
        for path in options.valid_cuts
    }
    fields = token_fields(train_data, valid_data)

    torch.manual_seed(keyed_random.key("initialisation", seed) & 0xFFFFFFFF)
    encoder = initial_encoder(options)
    starts = start_facts(options, encoder)
    model = PretrainingModel(encoder, fields)
    if model.encoder.input_kind == "fbank":
        model.encoder.use_fbank_backend(options.data.fbank_backend)
    shortest = model.encoder.min_samples / SAMPLE_RATE
    if options.data.min_duration < shortest:
        raise ValueError(
            f"data.min_duration is {options.data.min_duration} s, but audio shorter than {shortest} s gives "
            f"the encoder no frame: set it to {shortest} or more"
        )
    task = PretrainingTask(model, fields, options.objective)
    train_encoder("Pre-training", options, processes, task, train_data, valid_data, run_facts, starts)


if __name__ == "__main__":
    run(main)
