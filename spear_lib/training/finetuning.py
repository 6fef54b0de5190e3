"""Fine-tuning: what it starts from and how the encoder trains, the same for every task (spec optim §5)."""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spear_lib.config import MAY_CHANGE, RESEED_MAY_CHANGE
from spear_lib.data.datasets import CutData, LoadingConfig
from spear_lib.encoders import load_encoder
from spear_lib.encoders.kinds import EncoderConfig
from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.runtime import keyed_random
from spear_lib.runtime.devices import plan_for_accelerator
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.task_file import TaskDescription
from spear_lib.runtime.world import world as open_world
from spear_lib.training.kernels import use_kernels
from spear_lib.training.loop import train
from spear_lib.training.metrics import describe_batch, describe_length
from spear_lib.training.options import TrainingConfig
from spear_lib.training.planning.machines import PlanConfig
from spear_lib.training.planning.report import Run, task_costs
from spear_lib.training.planning.step import Shape
from spear_lib.training.task import Task


@dataclass(frozen=True, kw_only=True)
class FinetuningOptions:
    """Options of every command that fine-tunes an encoder; the tasks add theirs, among them a narrower
    ``data``."""

    experiment_dir: str = field(metadata=MAY_CHANGE)
    """Receives config.yaml, log, metrics.jsonl, tensorboard and checkpoints; a run goes on there."""
    encoder: str = ""
    """Pre-trained encoder: a folder of stage 11 or a checkpoint. With scratch: only its shape is used."""
    scratch: bool = False
    """Start from random weights (the comparison); then encoder_lr_scale, freeze_encoder_steps and
    schedule_offset_batches do not apply: a random encoder trains like the head, from the first step on."""
    encoder_config: ZipformerConfig = field(default_factory=ZipformerConfig)
    """Shape of the encoder with scratch and without encoder."""
    encoder_lr_scale: float = 0.1
    """Factor on the learning rate of the encoder (reference: 0.05 or 0.1)."""
    encoder_layer_decay: float = 1.0
    """Further factor per layer, from the last one down: the first layers move least (ours; 1: none)."""
    freeze_encoder_steps: int = 2000
    """Steps during which only the head trains (reference: 2000)."""
    schedule_offset_batches: float = 100_000.0
    """Added to the clock of the encoder's schedules, so that they are in their final state (reference)."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Optimiser, schedule, intervals."""
    dev_cuts: list[str] = field(metadata=MAY_CHANGE)
    """Manifests of the validation set (loss, and what the task is judged by)."""
    data: LoadingConfig = field(default_factory=LoadingConfig, metadata=RESEED_MAY_CHANGE)
    """Training data."""
    dry_run: bool = field(default=False, metadata=MAY_CHANGE)
    """Train nothing: open the data and print what the run would take (memory, epochs, steps, GPU-hours)."""
    plan: PlanConfig = field(default_factory=lambda: PlanConfig(gpus=8), metadata=MAY_CHANGE)
    """The machines of dry_run (8 GPUs: ours)."""


def finetune(
    options: FinetuningOptions,
    description: TaskDescription,
    make_task: Callable[[nn.Module], Task],
    make_data: Callable[..., CutData],
    facts: Callable[[Any], dict[str, object]] = lambda data: {},
    keep: Callable[[Path], None] = lambda experiment_dir: None,
) -> dict[str, dict[str, float]]:
    """One fine-tuning run, from the options to the last checkpoint: what its command ends with.

    Args:
      options: of the command.
      description: of the task; its kind also keys the random weights of the head.
      make_task: encoder -> the task, with its model; called once, with torch's generator seeded.
      make_data: opens the training set with ``seed``, ``rank`` and ``world_size``, and the validation set
        with ``training`` False and ``cuts`` besides.
      facts: of the training data, for the first screen.
      keep: writes into the experiment's folder what a copy of it needs elsewhere, in the main process.

    Returns:
      Set name -> values of the last validation.
    """
    encoder = build_encoder(options)
    training = training_config(options, encoder)
    if options.dry_run:
        lines = plan_facts(options, training, encoder.config, make_task, make_data, facts)
        first_screen(f"{description.title}: a plan; nothing is trained", lines)
        return {}
    torch.manual_seed(keyed_random.key(f"{description.kind} head", training.seed))
    task = make_task(encoder)
    with open_world(training.device) as world:
        share = {"seed": training.seed, "rank": world.rank, "world_size": world.world_size}
        train_data = make_data(**share)
        valid_data = make_data(**share, training=False, cuts=options.dev_cuts)
        kernels = use_kernels(training, world.device, encoder, task.kernels)
        if world.is_main:
            keep(Path(options.experiment_dir))
            lines = run_facts(options, training, task, train_data, valid_data, world.world_size)
            lines |= {"kernels": kernels, **facts(train_data), "experiment": options.experiment_dir}
            first_screen(description.title, lines)
        return train(
            task,
            train_data,
            {"dev": valid_data},
            training,
            options.experiment_dir,
            batch_seconds=options.data.batch_seconds,
            world=world,
            options=options,
        )


def run_facts(
    options: FinetuningOptions,
    training: TrainingConfig,
    task: Task,
    data: CutData,
    valid_data: CutData,
    processes: int,
) -> dict[str, object]:
    """What training starts from, what it is about, and how long it is."""
    seconds = options.data.batch_seconds * training.accumulate_batches
    return {
        **start_facts(options, training),
        **task.facts(),
        "training audio": describe_audio(data),
        "validation": describe_audio(valid_data),
        "batch": describe_batch(seconds, processes),
        "length": describe_length(training, data.num_batches(0)),
    }


def plan_facts(
    options: FinetuningOptions,
    training: TrainingConfig,
    encoder: EncoderConfig,
    make_task: Callable[[nn.Module], Task],
    make_data: Callable[..., CutData],
    facts: Callable[[Any], dict[str, object]],
) -> dict[str, object]:
    """What the run would take on the machines of ``options.plan``: the largest batch of the first epoch is
    counted, as the first of these processes gets it, with all weights trained."""
    plan = options.plan
    data = make_data(seed=training.seed, rank=0, world_size=plan.gpus)
    valid_data = make_data(seed=training.seed, rank=0, world_size=1, training=False, cuts=options.dev_cuts)
    batch = data.largest_batch(0)
    run = Run(
        plan,
        training,
        encoder,
        options.data.batch_seconds,
        data.total_seconds / 3600,
        Shape.of(batch),
        data.num_batches(0),
    )

    def task_of(config: EncoderConfig) -> Task:
        model = load_encoder(config)
        model.context.optional = False
        return make_task(model)

    costs, _ = task_costs(run, batch, task_of)
    with torch.device("meta"), plan_for_accelerator(plan.for_accelerator):
        known = run_facts(options, training, task_of(encoder), data, valid_data, plan.gpus)
    return {**known, **facts(data), **{name: line for name, line in costs.items() if name not in known}}


def build_encoder(options: FinetuningOptions) -> SpearEncoder:
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
        encoder = load_encoder(options.encoder)
    else:
        config: Any = load_encoder(options.encoder).config if options.encoder else options.encoder_config
        # After reading the other one, whose construction also draws numbers.
        torch.manual_seed(keyed_random.key("encoder", options.training.seed))
        encoder = load_encoder(config)
    encoder.context.optional = False  # here every forward has a step, and one without is a defect
    return encoder


def layer_lr_scales(encoder: nn.Module, decay: float) -> dict[str, float]:
    """Module path (from the model on) -> factor on the learning rate of each layer of an encoder.

    The last layer has 1, the one before it ``decay``, and what comes before all layers one power more than
    the first.

    Raises:
      ValueError: a decay outside (0, 1], or an encoder without layers.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"encoder_layer_decay is {decay:g}; it must be above 0 and at most 1")
    layers = [name for name, _ in encoder.named_modules() if re.search(r"(^|\.)layers\.\d+$", name)]
    if not layers:
        raise ValueError("encoder_layer_decay: this encoder has no layers by that name; leave it at 1")
    powers = {name: len(layers) - 1 - place for place, name in enumerate(layers)}
    for name, module in encoder.named_children():
        holds_layers = any(layer.startswith(f"{name}.") for layer in layers)
        if not holds_layers and next(module.parameters(), None) is not None:
            powers[name] = len(layers)
    return {f"encoder.{name}": decay**power for name, power in powers.items() if power}


def training_config(options: FinetuningOptions, encoder: nn.Module | None = None) -> TrainingConfig:
    """The options of the loop, with the encoder's own learning rate, freezing and clock filled in.

    Args:
      options: of the command.
      encoder: needed for ``encoder_layer_decay`` alone.
    """
    training = options.training
    if options.scratch:
        return training
    scales = {**training.lr_scales, "encoder": options.encoder_lr_scale}
    if options.encoder_layer_decay != 1.0 and encoder is not None:
        scales |= layer_lr_scales(encoder, options.encoder_layer_decay)
    freeze = ["encoder"] if options.freeze_encoder_steps > 0 else training.freeze
    return dataclasses.replace(
        training,
        lr_scales=scales,
        freeze=freeze,
        freeze_steps=options.freeze_encoder_steps if freeze == ["encoder"] else training.freeze_steps,
        schedule_offset_batches=options.schedule_offset_batches,
    )


def start_facts(options: FinetuningOptions, training: TrainingConfig) -> dict[str, str]:
    """Lines of the first screen: what training starts from, and how fast the encoder follows."""
    rate = training.lr_scales.get("encoder", 1.0)
    frozen = f", frozen for {training.freeze_steps} steps" if training.freeze else ""
    return {
        "starts from": "random weights" if options.scratch else options.encoder,
        "learning rate": f"{training.learning_rate:g}; encoder x {rate:g}{frozen}",
    }


def describe_audio(data: CutData) -> str:
    """How much there is of a set, for the first screen."""
    return f"{data.total_seconds / 60:.1f} min in {data.num_cuts} cuts"
