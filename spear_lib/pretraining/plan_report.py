"""The lines of a dry run: what a pre-training run will take on given machines (ours)."""

import logging
from typing import Any, NamedTuple

from spear_lib.data.manifests import Manifest
from spear_lib.encoders.kinds import EncoderConfig
from spear_lib.pretraining import TokenField
from spear_lib.pretraining.alignment import frames_per_student_frame
from spear_lib.pretraining.heads import GPU_CHUNK_ELEMENTS
from spear_lib.pretraining.plan import (
    LATE_BATCH_COUNT,
    PlanConfig,
    Shape,
    assumed_fields,
    count_pretraining_step,
    step_seconds,
    with_checkpoints,
    worst_shape,
)
from spear_lib.pretraining.plan_data import PAPER_GPU, paper_runs
from spear_lib.pretraining.plan_memory import StepMemory

logger = logging.getLogger(__name__)

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
    plan, training, data = options.plan, options.training, options.data
    corpus = read_corpus(data)
    fields = corpus.fields if corpus and corpus.fields else []
    if len(fields) != len(assumed_fields(options.objective, PlanConfig())):
        fields = assumed_fields(options.objective, plan)
    longest = corpus.longest if corpus else data.max_duration
    shape = worst_shape(data.batch_seconds, longest, max(plan.gpus, data.shares))
    encoder = options.encoder_config
    precision = plan.precision if training.precision == "auto" else training.precision

    def count(config: EncoderConfig, batch_count: float = 0.0) -> tuple[StepMemory, int, int]:
        return count_pretraining_step(
            config,
            fields,
            options.objective,
            data.masking,
            training,
            shape,
            precision,
            plan.gpus,
            for_accelerator=plan.device == "gpu",
            batch_count=batch_count,
        )

    chosen, encoder_size, head_size = count(encoder)
    lines: dict[str, object] = {
        "encoder": f"{encoder_size:,} parameters",
        "heads": f"{head_size:,} parameters: " + ", ".join(_describe(field) for field in fields),
        **_lengths(options, corpus),
        "worst batch": f"{shape.utterances} cuts of {shape.seconds:g} s on one GPU, {precision}",
        "logits": _logits(encoder, options, fields, shape),
    }
    lines |= {f"memory, {name}": text for name, text in _parts(chosen, plan, training).items()}
    checkpointed = any(getattr(encoder, "checkpoint_activations", [False]))
    alternative = with_checkpoints(encoder, not checkpointed)
    for used, memory in ((checkpointed, chosen), (not checkpointed, alternative and count(alternative)[0])):
        if memory:
            mark = "this run" if memory is chosen else "for comparison"
            name = f"memory, checkpoint_activations {str(used).lower()}"
            lines[name] = f"{_peak(memory, plan)} ({mark})"
    late, *_ = count(encoder, LATE_BATCH_COUNT)
    lines |= time_lines(options, late, shape, corpus)
    return lines | paper_lines(encoder, len(fields), late, shape, plan)


def _describe(field: TokenField) -> str:
    origin = "assumed: no training cuts are given" if field.quantizer_id == "assumed" else field.quantizer_id
    return f"{field.num_codebooks} codebooks x {field.codebook_size} at {field.frame_rate:g} Hz ({origin})"


def _lengths(options: Any, corpus: Corpus | None) -> dict[str, str]:
    """Steps, hours and epochs."""
    training, data = options.training, options.data
    seconds = data.batch_seconds * training.accumulate_batches
    steps = _steps(options, corpus)
    lines = {
        "batch": f"{seconds:g} s of audio per step, {data.batch_seconds / options.plan.gpus:g} s per GPU"
    }
    if training.accumulate_batches > 1:
        lines["batch"] += f", {training.accumulate_batches} batches per step"
    if steps:
        hours = steps * seconds / 3600
        lines["length"] = f"{steps} steps, {hours:,.1f} hours of audio"
        available = _hours(options, corpus)
        if available:
            lines["length"] += f" = {hours / available:.1f} epochs of {available:,.1f} h"
    else:
        lines["length"] = "not known: max_steps is 0" + (
            "" if _hours(options, corpus) else ", and neither data.train_cuts nor plan.hours are given"
        )
    return lines


def _hours(options: Any, corpus: Corpus | None) -> float:
    """Of the training data; 0: not known."""
    return corpus.hours if corpus else options.plan.hours


def _steps(options: Any, corpus: Corpus | None) -> int:
    training = options.training
    limits = [training.max_steps] if training.max_steps else []
    hours = _hours(options, corpus)
    if training.max_epochs and hours:
        seconds = options.data.batch_seconds * training.accumulate_batches
        limits.append(round(training.max_epochs * hours * 3600 / seconds))
    return min(limits, default=0)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _parts(memory: StepMemory, plan: PlanConfig, training: Any) -> dict[str, str]:
    stay = "kept in DDP's buckets" if plan.gpus > 1 else "freed by each step"
    parts = {
        "weights": _gb(memory.weights),
        "gradients": f"{_gb(memory.gradients)}, {stay}",
        "ScaledAdam": f"{_gb(memory.optimizer)}; its update reaches {_gb(memory.update)} in all",
        "activations": f"{_gb(memory.kept)} kept for the backward pass; highest in forward "
        f"{_gb(memory.forward)}, in backward {_gb(memory.backward)}, all included",
    }
    if training.average_period:
        parts["model average"] = f"{_gb(2 * memory.weights)} of the first process's host memory (float64)"
    return parts


def _peak(memory: StepMemory, plan: PlanConfig) -> str:
    limit = plan.machine.memory_gb * 1e9
    share = f"{_gb(memory.peak)} at the highest, {100 * memory.peak / limit:.0f} % of {limit / 1e9:g} GB"
    if memory.peak > limit:
        share += ": DOES NOT FIT, use more GPUs, or lower data.batch_seconds and raise accumulate_batches"
    return share


def _logits(encoder: EncoderConfig, options: Any, fields: list[TokenField], shape: Shape) -> str:
    """How much of the logits exists at once."""
    factor = getattr(encoder, "output_downsampling_factor", 1)
    rate = 50 / factor
    classes = sum(
        frames_per_student_frame(field.frame_rate, rate) * field.num_codebooks * field.codebook_size
        for field in fields
    )
    frames = shape.utterances * shape.seconds * rate
    return (
        f"{_gb(4 * frames * classes)} if they were made at once; made in parts of "
        f"{_gb(4 * min(GPU_CHUNK_ELEMENTS, frames * classes))}"
    )


def time_lines(options: Any, memory: StepMemory, shape: Shape, corpus: Corpus | None) -> dict[str, str]:
    """Arithmetic, speed and hours of a run whose step on ``shape`` was counted."""
    plan, gpu, audio = options.plan, options.plan.machine, shape.utterances * shape.seconds
    gflops = memory.flops / audio / 1e9
    kernels = "PyTorch's" if options.training.kernels == "eager" or plan.device == "cpu" else "fused"
    megabytes = sum(each.bytes for each in memory.work) / audio / 1e6
    lines = {
        "work": f"{memory.kernels:,} kernels in a step ({kernels}), {gflops:.1f} GFLOP in matrix products "
        f"and {megabytes:.0f} MB of memory traffic per second of audio (worst batch, after "
        f"{LATE_BATCH_COUNT:g} batches)"
    }
    if plan.audio_seconds_per_second:
        rate = plan.audio_seconds_per_second
        why = "measured, as given"
    else:
        seconds, share = step_seconds(memory, plan), f"{100 * plan.efficiency:g} %"
        rate = audio / seconds
        of_peak = memory.flops / seconds / (gpu.tflops * 1e12)
        why = f"ESTIMATED, not measured; {of_peak:.0%} of the matrix peak"
        lines["assumed"] = (
            f"each kernel takes the longest of its arithmetic at {share} of {gpu.tflops:g} TFLOP/s, its "
            f"traffic at {share} of {gpu.terabytes_per_second:g} TB/s and {plan.kernel_microseconds:g} us "
            f"({gpu.name}); without communication and waiting for data"
        )
    lines["speed"] = f"{rate:,.0f} audio seconds per second on one GPU ({why})"
    steps = _steps(options, corpus)
    if steps:
        seconds = steps * options.data.batch_seconds * options.training.accumulate_batches
        hours = seconds / rate / 3600
        lines["time"] = f"{hours:,.1f} GPU-hours, {hours / plan.gpus:,.1f} hours on {plan.gpus} GPUs"
    return lines


def paper_lines(
    encoder: EncoderConfig, num_teachers: int, memory: StepMemory, shape: Shape, plan: PlanConfig
) -> dict[str, str]:
    """The GPU-hours of the paper's runs of this size, beside the estimate for the paper's GPU and audio."""
    runs = paper_runs(encoder, num_teachers)
    if not runs:
        return {"paper": "has no run of this size (Table 9: Base, Large, XLarge)"}
    rate = shape.utterances * shape.seconds / step_seconds(memory, plan, PAPER_GPU)
    lines = {}
    for run in runs:
        where = f"{run.steps:,} steps of {run.batch_seconds:,} s on {run.gpus} {PAPER_GPU.name}"
        lines[f"paper, {run.domain}"] = (
            f"{run.gpu_hours:,} GPU-hours for {where}, {run.audio_rate:,.0f} audio seconds per second on one "
            f"(Table 9); this estimate for the same: {run.audio_hours / rate:,.0f} GPU-hours, {rate:,.0f}"
        )
    return lines
