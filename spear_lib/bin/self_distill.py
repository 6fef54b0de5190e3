"""Pre-train an encoder by self-distillation with online clusters: SpidR, DinoSR, or either on the Zipformer.

    python -m spear_lib.bin.self_distill --config conf/self_distill/mini.yaml --experiment_dir exp/spidr \\
        --data.train_cuts '[data/manifests/librispeech_cuts_train.jsonl.gz]' \\
        --valid_cuts '[data/manifests/librispeech_cuts_dev.jsonl.gz]'

It needs audio alone, no teacher and no tokens. Run the same command again to go on after a crash. Several
processes: torchrun --nproc-per-node=8 -m ...
With --dry_run true nothing is trained: it prints what the run would take (memory, steps, GPU-hours).
"""

import torch

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.data.manifests import set_name
from spear_lib.encoders.kinds import KINDS, build_encoder
from spear_lib.pretraining import token_fields
from spear_lib.pretraining.running import train_encoder
from spear_lib.runtime import keyed_random
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.metrics_log import log_file
from spear_lib.runtime.world import World, world
from spear_lib.self_distillation.data import SelfDistillationData
from spear_lib.self_distillation.facts import run_facts
from spear_lib.self_distillation.options import SelfDistillOptions
from spear_lib.self_distillation.plan import plan_lines
from spear_lib.self_distillation.published import read_published
from spear_lib.self_distillation.with_tokens import new_task


def main(argv: list[str] | None = None) -> None:
    options = parse(
        SelfDistillOptions, argv, prog="python -m spear_lib.bin.self_distill", description=__doc__
    )
    if options.dry_run:
        first_screen("Plan of a self-distillation; nothing is trained", plan_lines(options))
        return
    with world(options.training.device) as processes, log_file(options.experiment_dir, processes.is_main):
        self_distill(options, processes)


def self_distill(options: SelfDistillOptions, processes: World) -> None:
    """Everything of one run, in this process of ``processes``."""
    fields = options.data.token_fields
    shared = {
        "input_kind": KINDS[options.encoder_type].encoder.input_kind,
        "seed": options.training.seed,
        "rank": processes.rank,
        "world_size": processes.world_size,
        "needed_fields": options.tokens.objective.fields_by_domain(fields) if fields else None,
    }
    train_data = SelfDistillationData(options.data, **shared)
    valid_data = {
        set_name(path): SelfDistillationData(options.data, **shared, training=False, cuts=[path])
        for path in options.valid_cuts
    }
    torch.manual_seed(keyed_random.key("initialisation", options.training.seed) & 0xFFFFFFFF)
    encoder = build_encoder(options.encoder_config)
    task = new_task(
        encoder, options.objective, token_fields(train_data, valid_data) if fields else [], options.tokens
    )
    if options.start:
        read_published(task.model, options.start)
    if options.compile:
        task.model.view.compile()
    train_encoder("Self-distillation", options, processes, task, train_data, valid_data, run_facts)


if __name__ == "__main__":
    run(main)
