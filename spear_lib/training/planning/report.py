"""The lines of a dry run that every task has: length, memory, speed, hours (ours)."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from spear_lib.data.batch import Batch
from spear_lib.encoders.kinds import EncoderConfig
from spear_lib.training.kernels import fused_kernels
from spear_lib.training.options import TrainingConfig
from spear_lib.training.planning.machines import PlanConfig
from spear_lib.training.planning.memory import Pretence, StepMemory
from spear_lib.training.planning.step import (
    LATE_BATCH_COUNT,
    Shape,
    count_task,
    step_seconds,
    with_checkpoints,
)
from spear_lib.training.task import Task

Counter = Callable[[EncoderConfig, float], StepMemory]
"""(encoder, batch count) -> the cost of a step on the worst batch."""


class Run(NamedTuple):
    """What is planned."""

    plan: PlanConfig
    training: TrainingConfig
    encoder: EncoderConfig
    batch_seconds: float
    """Padded audio of a global batch, s."""
    hours: float
    """Of the training data; 0: not known."""
    worst: Shape
    """The largest batch of one process."""
    epoch_batches: int = 0
    """Global batches of an epoch, where the data are there to count them."""

    @property
    def precision(self) -> str:
        """Number format of the matrix products."""
        return self.plan.precision if self.training.precision == "auto" else self.training.precision

    @property
    def step_audio(self) -> float:
        """Padded audio of a step over all processes, s."""
        return self.batch_seconds * self.training.accumulate_batches

    @property
    def steps(self) -> int:
        """Optimiser steps; 0: not known."""
        limits = [self.training.max_steps] if self.training.max_steps else []
        epoch = self.epoch_batches / self.training.accumulate_batches or self.hours * 3600 / self.step_audio
        if self.training.max_epochs and epoch:
            limits.append(round(self.training.max_epochs * epoch))
        return min(limits, default=0)


def cost_lines(run: Run, count: Counter) -> tuple[dict[str, str], StepMemory]:
    """Lines for ``first_screen``, and the cost of a late step, from which the time was told."""
    chosen = count(run.encoder, 0.0)
    lines = length_lines(run)
    lines["worst batch"] = (
        f"{run.worst.utterances} cuts of {run.worst.seconds:g} s on one GPU, {run.precision}"
    )
    lines |= _parts(chosen, run)
    checkpointed = any(getattr(run.encoder, "checkpoint_activations", [False]))
    other = with_checkpoints(run.encoder, not checkpointed)
    if other is None:
        lines["memory"] = _peak(chosen, run.plan)
    else:
        for used, memory in ((checkpointed, chosen), (not checkpointed, count(other, 0.0))):
            mark = "this run" if memory is chosen else "for comparison"
            name = f"memory, checkpoint_activations {str(used).lower()}"
            lines[name] = f"{_peak(memory, run.plan)} ({mark})"
    late = count(run.encoder, LATE_BATCH_COUNT)
    return lines | time_lines(run, late), late


def task_costs(
    run: Run, batch: Batch, make_task: Callable[[EncoderConfig], Task]
) -> tuple[dict[str, str], StepMemory]:
    """``cost_lines`` of a task.

    Args:
      batch: the largest of one process; of its waveforms only the shape is used.
      make_task: makes a new model, on torch's meta device.
    """

    def count(encoder: EncoderConfig, batch_count: float) -> StepMemory:
        pretence = Pretence()
        return count_task(
            pretence.task(lambda: make_task(encoder)),
            replace(batch, waveforms=pretence.empty(*batch.waveforms.shape)),
            run.training,
            run.precision,
            run.plan.gpus,
            for_accelerator=run.plan.for_accelerator,
            batch_count=batch_count,
        )

    return cost_lines(run, count)


def length_lines(run: Run) -> dict[str, str]:
    """Steps, hours and epochs."""
    lines = {
        "batch": f"{run.step_audio:g} s of audio per step, {run.batch_seconds / run.plan.gpus:g} s per GPU"
    }
    if run.training.accumulate_batches > 1:
        lines["batch"] += f", {run.training.accumulate_batches} batches per step"
    if run.steps:
        hours = run.steps * run.step_audio / 3600
        lines["length"] = f"{run.steps} steps, {hours:,.1f} hours of audio"
        if run.hours:
            lines["length"] += f" = {hours / run.hours:.1f} epochs of {run.hours:,.1f} h"
    else:
        lines["length"] = "not known: max_steps is 0" + (
            "" if run.hours else ", and neither data.train_cuts nor plan.hours are given"
        )
    return lines


def gigabytes(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _parts(memory: StepMemory, run: Run) -> dict[str, str]:
    stay = "kept in DDP's buckets" if run.plan.gpus > 1 else "freed by each step"
    optimizer = {"scaled_adam": "ScaledAdam", "adamw": "AdamW"}[run.training.optimizer]
    parts = {
        "weights": gigabytes(memory.weights),
        "gradients": f"{gigabytes(memory.gradients)}, {stay}",
        optimizer: f"{gigabytes(memory.optimizer)}; its update reaches {gigabytes(memory.update)} in all",
        "activations": f"{gigabytes(memory.kept)} kept for the backward pass; highest in forward "
        f"{gigabytes(memory.forward)}, in backward {gigabytes(memory.backward)}, all included",
    }
    if run.training.average_period:
        average = f"{gigabytes(2 * memory.weights)} of the first process's host memory (float64)"
        parts["model average"] = average
    return {f"memory, {name}": text for name, text in parts.items()}


def _peak(memory: StepMemory, plan: PlanConfig) -> str:
    limit = plan.machine.memory_gb * 1e9
    share = (
        f"{gigabytes(memory.peak)} at the highest, {100 * memory.peak / limit:.0f} % of {limit / 1e9:g} GB"
    )
    if memory.peak > limit:
        share += ": DOES NOT FIT, use more GPUs, or lower data.batch_seconds and raise accumulate_batches"
    return share


def time_lines(run: Run, memory: StepMemory) -> dict[str, str]:
    """Arithmetic, speed and hours of a run whose step on its worst batch was counted."""
    plan, gpu, audio = run.plan, run.plan.machine, run.worst.audio
    gflops = memory.flops / audio / 1e9
    eager = run.training.kernels == "eager" or not plan.for_accelerator
    kernels = "PyTorch's" if eager or not fused_kernels(run.training, run.encoder) else "fused"
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
    if run.steps:
        hours = run.steps * run.step_audio / rate / 3600
        lines["time"] = f"{hours:,.1f} GPU-hours, {hours / plan.gpus:,.1f} hours on {plan.gpus} GPUs"
    return lines
