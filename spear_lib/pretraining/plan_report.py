"""The lines of a dry run: what a pre-training run will take on given machines (ours)."""

from functools import partial
from typing import Any, NamedTuple

import torch

from spear_lib.data.manifests import Manifest
from spear_lib.encoders.kinds import EncoderConfig
from spear_lib.pretraining import TokenField
from spear_lib.pretraining.alignment import frames_per_student_frame
from spear_lib.pretraining.heads import GPU_CHUNK_ELEMENTS
from spear_lib.pretraining.paper_runs import PAPER_GPU, paper_runs
from spear_lib.pretraining.plan import assumed_fields, part_sizes, pretend_batch, task_of
from spear_lib.training.planning.machines import PlanConfig
from spear_lib.training.planning.memory import Pretence, StepMemory
from spear_lib.training.planning.report import Run, gigabytes, task_costs
from spear_lib.training.planning.step import Shape, step_seconds, worst_shape

_CUTS_LOOKED_AT = 100


class Corpus(NamedTuple):
    """What the manifests say."""

    hours: float
    longest: float
    fields: list[TokenField]


def read_corpus(data: Any) -> Corpus | None:
    """Hours and longest cut of ``data.train_cuts`` within the limits of duration, and what their tokens are.

    Args:
      data: PretrainingDataConfig; None without train_cuts.

    Raises:
      ValueError: a manifest is missing or holds no usable cut.
    """
    from spear_lib.tokens.fields import token_facts

    if not data.train_cuts:
        return None
    manifest = Manifest(data.train_cuts)
    durations = manifest.durations
    durations = durations[(durations >= data.min_duration) & (durations <= data.max_duration)]
    if not len(durations):
        raise ValueError(
            f"none of the {len(manifest)} cuts of {manifest.describe()} lasts between {data.min_duration} "
            f"and {data.max_duration} s: change data.min_duration or data.max_duration"
        )
    fields = []
    for name in data.token_fields:
        cuts = (manifest[index] for index in range(min(len(manifest), _CUTS_LOOKED_AT)))
        cut = next((cut for cut in cuts if cut.has_custom(name)), None)
        if cut is not None:
            fields.append(TokenField.from_facts(name, token_facts(cut, name)))
    return Corpus(float(durations.sum()) / 3600, float(durations.max()), fields)


def plan_lines(options: Any) -> dict[str, object]:
    """What ``options`` (PretrainOptions) and their ``plan`` amount to, for ``first_screen``."""
    plan, data = options.plan, options.data
    corpus = read_corpus(data)
    fields = corpus.fields if corpus and corpus.fields else []
    if len(fields) != len(assumed_fields(options.objective)):
        fields = assumed_fields(options.objective, plan)
    longest = corpus.longest if corpus else data.max_duration
    run = Run(
        plan,
        options.training,
        options.encoder_config,
        data.batch_seconds,
        corpus.hours if corpus else plan.hours,
        worst_shape(data.batch_seconds, longest, max(plan.gpus, data.shares)),
    )
    batch = pretend_batch(Pretence(), run.worst, fields, data.masking, options.objective.strategy)
    make_task = partial(task_of, fields=fields, objective=options.objective)
    costs, late = task_costs(run, batch, make_task)
    with torch.device("meta"):
        encoder_size, head_size = part_sizes(make_task(run.encoder))
    return {
        "encoder": f"{encoder_size:,} parameters",
        "heads": f"{head_size:,} parameters: " + ", ".join(_describe(field) for field in fields),
        "logits": _logits(run, fields),
        **costs,
        **paper_lines(run.encoder, len(fields), late, run.worst, plan),
    }


def _describe(field: TokenField) -> str:
    origin = "assumed: no training cuts are given" if field.quantizer_id == "assumed" else field.quantizer_id
    return f"{field.num_codebooks} codebooks x {field.codebook_size} at {field.frame_rate:g} Hz ({origin})"


def _logits(run: Run, fields: list[TokenField]) -> str:
    """How much of the logits exists at once."""
    rate = 50 / getattr(run.encoder, "output_downsampling_factor", 1)
    classes = sum(
        frames_per_student_frame(field.frame_rate, rate) * field.num_codebooks * field.codebook_size
        for field in fields
    )
    elements = run.worst.audio * rate * classes
    return (
        f"{gigabytes(4 * elements)} if they were made at once; made in parts of "
        f"{gigabytes(4 * min(GPU_CHUNK_ELEMENTS, elements))}"
    )


def paper_lines(
    encoder: EncoderConfig, num_teachers: int, memory: StepMemory, shape: Shape, plan: PlanConfig
) -> dict[str, str]:
    """The GPU-hours of the paper's runs of this size, beside the estimate for the paper's GPU and audio."""
    runs = paper_runs(encoder, num_teachers)
    if not runs:
        return {"paper": "has no run of this size (Table 9: Base, Large, XLarge)"}
    rate = shape.audio / step_seconds(memory, plan, PAPER_GPU)
    lines = {}
    for run in runs:
        where = f"{run.steps:,} steps of {run.batch_seconds:,} s on {run.gpus} {PAPER_GPU.name}"
        lines[f"paper, {run.domain}"] = (
            f"{run.gpu_hours:,} GPU-hours for {where}, {run.audio_rate:,.0f} audio seconds per second on one "
            f"(Table 9); this estimate for the same: {run.audio_hours / rate:,.0f} GPU-hours, {rate:,.0f}"
        )
    return lines
