"""The lines of a dry run: what self-distillation will take on given machines (ours)."""

import torch

from spear_lib.data.batch import Batch
from spear_lib.encoders.kinds import KINDS, EncoderConfig, build_encoder
from spear_lib.features.masking import MaskingConfig
from spear_lib.pretraining import TokenField, token_fields
from spear_lib.pretraining.plan import assumed_fields, pretend_batch
from spear_lib.runtime.devices import plan_for_accelerator
from spear_lib.self_distillation.data import SelfDistillationData, hide_frames
from spear_lib.self_distillation.options import SelfDistillOptions
from spear_lib.self_distillation.task import SelfDistillationTask
from spear_lib.self_distillation.with_tokens import new_task
from spear_lib.training.planning.memory import Pretence
from spear_lib.training.planning.report import Run, task_costs
from spear_lib.training.planning.step import Shape, worst_shape


def plan_lines(options: SelfDistillOptions) -> dict[str, object]:
    """What ``options`` and their ``plan`` amount to, for ``first_screen``; the largest batch is that of the
    data or, where no cuts are given, one of cuts of the greatest length."""
    plan, config = options.plan, options.encoder_config
    data = _open(options) if options.data.train_cuts else None
    fields: list[TokenField] = []
    if options.data.token_fields:
        fields = token_fields(data, {}) if data else assumed_fields(options.tokens.objective)
    batch = data.largest_batch(0) if data else _pretended(options, fields)
    run = Run(
        plan,
        options.training,
        config,
        options.data.batch_seconds,
        data.total_seconds / 3600 if data else plan.hours,
        Shape.of(batch),
        data.num_batches(0) if data else 0,
    )

    def task_of(encoder: EncoderConfig) -> SelfDistillationTask:
        return new_task(build_encoder(encoder), options.objective, fields, options.tokens)

    costs, _ = task_costs(run, batch, task_of)
    with torch.device("meta"), plan_for_accelerator(plan.for_accelerator):
        return {**task_of(config).facts(), **costs}


def _open(options: SelfDistillOptions) -> SelfDistillationData:
    """The data as the first process of the plan has them."""
    fields = options.data.token_fields
    return SelfDistillationData(
        options.data,
        KINDS[options.encoder_type].encoder.input_kind,
        seed=options.training.seed,
        world_size=options.plan.gpus,
        needed_fields=options.tokens.objective.fields_by_domain(fields) if fields else None,
    )


def _pretended(options: SelfDistillOptions, fields: list[TokenField]) -> Batch:
    data = options.data
    shape = worst_shape(data.batch_seconds, data.max_duration, max(options.plan.gpus, data.shares))
    unmasked, strategy = MaskingConfig(enabled=False), options.tokens.objective.strategy
    batch = pretend_batch(Pretence(), shape, fields, unmasked, strategy)
    hide_frames(batch, data.masking, KINDS[options.encoder_type].encoder.input_kind)
    return batch
