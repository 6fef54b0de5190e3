"""Pre-train an encoder to predict teacher tokens from a masked input (paper §3.2).

    python -m spear_lib.bin.pretrain --config conf/pretrain/mini.yaml --experiment_dir exp/pretrain \\
        --data.train_cuts '[data/cuts/librispeech_cuts_train.jsonl.gz]' --data.token_fields '[spectral_cb8]'
        \\ --valid_cuts '[data/cuts/librispeech_cuts_dev.jsonl.gz]'

Run the same command again to go on after a crash. Several processes: torchrun --nproc-per-node=8 -m ...
With --dry_run true nothing is trained: it prints what the run would take (memory, steps, GPU-hours).
"""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from spear_lib import keyed_random
from spear_lib.bin.common import first_screen, run
from spear_lib.config import parse
from spear_lib.data.features import SAMPLE_RATE
from spear_lib.data.pretraining_data import PretrainingData, PretrainingDataConfig
from spear_lib.evaluation.validation_probe import ValidationProbe, ValidationProbeConfig
from spear_lib.pretrained.kinds import ENCODER_TYPES, build_encoder
from spear_lib.pretraining import ObjectiveConfig, PretrainingModel, PretrainingTask, token_fields
from spear_lib.pretraining.facts import run_facts
from spear_lib.training.distributed import World, world
from spear_lib.training.loop import train
from spear_lib.training.metrics import log_file
from spear_lib.training.options import TrainingConfig
from spear_lib.training.plan import PlanConfig
from spear_lib.training.plan_report import plan_lines
from spear_lib.transformer import TransformerConfig
from spear_lib.zipformer import ZipformerConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainOptions:
    """Pre-training of one encoder."""

    experiment_dir: str
    """Folder for checkpoints, metrics.jsonl, log.txt and config.yaml; a run that is there already goes on."""
    valid_cuts: list[str] = field(default_factory=list)
    """Manifests of validation cuts with the same token fields; each is a set, named after its file."""
    encoder_type: str = "zipformer"
    """zipformer, of the settings in ``encoder``; or transformer, of those in ``transformer`` (paper F.3)."""
    encoder: ZipformerConfig = field(default_factory=ZipformerConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    data: PretrainingDataConfig = field(default_factory=PretrainingDataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    probe: ValidationProbeConfig = field(default_factory=ValidationProbeConfig)
    dry_run: bool = False
    """Train nothing: print what the run would take on the machines of ``plan`` (memory, steps, hours)."""
    plan: PlanConfig = field(default_factory=PlanConfig)

    def __post_init__(self) -> None:
        if self.encoder_type not in ENCODER_TYPES:
            raise ValueError(f"encoder_type is {self.encoder_type!r}; use {' or '.join(ENCODER_TYPES)}")
        masking = self.data.masking
        if self.objective.alpha == 1.0 and not (masking.enabled and masking.time_probability > 0):
            raise ValueError(
                "objective.alpha is 1, so only masked frames count, and no frame is masked: the loss would "
                "be 0. Lower alpha, or set data.masking.enabled and data.masking.time_probability"
            )
        if self.encoder_type == "transformer" and masking.enabled and masking.channel_probability > 0:
            raise ValueError(
                "a transformer reads waveforms and has no mel bins to mask: set "
                "data.masking.channel_probability to 0"
            )


def main(argv: list[str] | None = None) -> None:
    options = parse(PretrainOptions, argv, prog="python -m spear_lib.bin.pretrain", description=__doc__)
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
    config = options.transformer if options.encoder_type == "transformer" else options.encoder
    model = PretrainingModel(build_encoder(config), fields)
    if model.encoder.input_kind == "fbank":
        model.encoder.use_fbank_backend(options.data.fbank_backend)
    shortest = model.encoder.min_samples / SAMPLE_RATE
    if options.data.min_duration < shortest:
        raise ValueError(
            f"data.min_duration is {options.data.min_duration} s, but audio shorter than {shortest} s gives "
            f"the encoder no frame: set it to {shortest} or more"
        )
    task = PretrainingTask(model, fields, options.objective)
    probe = ValidationProbe(
        model.encoder,
        {set_name(path): path for path in options.valid_cuts},
        options.probe,
        processes,
        (max(options.data.min_duration, shortest), options.data.max_duration),
    )
    if processes.is_main:
        first_screen("Pre-training", run_facts(options, processes, task, train_data, valid_data, probe))
    train(
        task,
        train_data,
        valid_data,
        options.training,
        options.experiment_dir,
        batch_seconds=options.data.batch_seconds,
        world=processes,
        options=options,
        probe=probe,
    )


def set_name(path: str) -> str:
    """``data/cuts/librispeech_cuts_dev.jsonl.gz`` -> ``dev``; other names without their endings."""
    name = re.sub(r"\.jsonl(\.gz)?$", "", Path(path).name)
    return name.split("_cuts_", 1)[-1]


if __name__ == "__main__":
    run(main)
