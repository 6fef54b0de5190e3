"""The dry run: what it counts on tensors without data against closed forms and against a real step."""

import dataclasses
import json
import math
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny_encoder import TINY
from torch import nn
from toy_task import SumTask

from spear_lib.config import load
from spear_lib.features.masking import MaskingConfig
from spear_lib.optim import ScaledAdam, parameter_groups
from spear_lib.pretraining import ObjectiveConfig
from spear_lib.pretraining.options import PretrainOptions
from spear_lib.pretraining.paper_runs import PAPER_RUNS
from spear_lib.pretraining.plan import PretrainingPlanConfig, assumed_fields, count_pretraining_step
from spear_lib.pretraining.plan_report import plan_lines
from spear_lib.runtime.devices import on_host, plan_for_accelerator
from spear_lib.runtime.overlays import read_overlays
from spear_lib.training.options import TrainingConfig
from spear_lib.training.planning.kernels import Work
from spear_lib.training.planning.machines import PlanConfig
from spear_lib.training.planning.memory import MemoryCounter, Pretence, count_step
from spear_lib.training.planning.report import Run, time_lines
from spear_lib.training.planning.step import Shape, step_seconds, with_checkpoints, worst_shape
from spear_lib.training.task import StepClock

REPOSITORY = Path(__file__).resolve().parents[2]


SHORT = Shape(2, 3.0)


@cache
def count(encoder=TINY, shape=SHORT, precision="fp32", processes=1, strategy="single", gpu=True):
    objective = ObjectiveConfig(strategy=strategy)
    return count_pretraining_step(
        encoder,
        assumed_fields(objective),
        objective,
        MaskingConfig(),
        TrainingConfig(),
        shape,
        precision,
        processes,
        for_accelerator=gpu,
    )


def test_bytes_of_two_linear_layers_are_those_of_the_closed_form():
    pretence = Pretence()
    build = lambda: nn.Sequential(nn.Linear(64, 128, bias=False), nn.Linear(128, 32, bias=False))  # noqa: E731
    model = pretence.module(build)
    weights = 4 * (64 * 128 + 128 * 32)
    optimizer = ScaledAdam(parameter_groups(model, 0.045))
    batch = pretence.empty(1000, 64)
    memory = count_step(SumTask(model), batch, StepClock(1, 0.0, 0.0, 1), optimizer)
    assert memory.weights == weights and memory.gradients == weights
    # Momentum and second moment, and a few numbers for each tensor.
    assert 2 * weights <= memory.optimizer <= 2 * weights + 4096
    # W1 x, kept for the gradient of W2; the loss; nothing else (the batch is not the step's).
    assert memory.kept == 4 * 1000 * 128 + 4
    # Of the batch and the weights to the sum, and back; the update.
    assert sum(each.bytes for each in memory.work) > 1000 * 4 * (64 + 2 * 128 + 2 * 32)
    assert memory.flops == 2 * (2 * 1000 * (64 * 128 + 128 * 32)) + 2 * 1000 * 128 * 32


def test_storages_are_counted_once_and_forgotten():
    first = Pretence().empty(1000)
    with MemoryCounter() as counter:
        second = first + 1
        view = second[10:20]
        assert counter.live == 4000  # made outside of it, ``first`` is not counted
        del second
        assert counter.live == 4000 and view.shape == (10,)
        del view
        assert counter.live == 0 and counter.peak == 4000
        counter.restart()
        assert counter.peak == 0


def test_two_teachers_are_counted():
    memory, encoder, heads = count(strategy="asymmetrical")
    assert heads == 24 * 256 * 33  # 16 codebooks of the speech teacher, 8 of the audio teacher
    assert heads > count()[2] == 16 * 256 * 33
    assert memory.weights == 4 * (encoder + heads)
    assert memory.peak > memory.kept + memory.weights + memory.optimizer


def test_activations_grow_with_the_batch_and_shrink_with_checkpoints_and_half_precision():
    plain, *_ = count()
    double, *_ = count(shape=Shape(4, 3.0))
    assert 1.8 * plain.kept < double.kept < 2.1 * plain.kept
    checkpointed, *_ = count(with_checkpoints(TINY, True))
    assert checkpointed.kept < plain.kept
    assert checkpointed.flops > plain.flops  # layers are computed twice
    half, *_ = count(precision="bf16")
    assert half.kept < plain.kept
    assert half.weights == plain.weights


def test_buckets_of_several_processes_stay_during_the_forward_pass():
    alone, *_ = count()
    together, *_ = count(processes=2)
    assert together.forward - alone.forward == alone.gradients
    assert together.gradients == alone.gradients


def test_the_code_of_a_gpu_is_followed_only_inside_the_plan():
    x = torch.zeros(1)
    assert on_host(x)
    with plan_for_accelerator():
        assert not on_host(x)
    assert on_host(x)
    # A GPU recomputes activations that a CPU keeps.
    assert count(gpu=True)[0].kept < count(gpu=False)[0].kept


def test_time_of_a_step_is_what_each_kernel_waits_for():
    plan = PlanConfig(gpu_tflops=1.0, gpu_terabytes_per_second=1.0, kernel_microseconds=1.0, efficiency=0.5)
    work = [Work(1e9, 1), Work(0.0, 4 * 10**9), Work(10.0, 10)]  # arithmetic, memory, start
    memory = dataclasses.replace(count()[0], work=work)
    assert step_seconds(memory, plan) == pytest.approx(2e-3 + 8e-3 + 1e-6)
    assert memory.flops == 1e9 + 10


def test_worst_shapes():
    assert worst_shape(6400, 30, 16) == Shape(14, 30)  # 213 cuts
    assert worst_shape(20, 30, 1) == Shape(1, 30)  # a cut is never cut
    assert worst_shape(100, 30, 8) == Shape(1, 30)  # at least one each
    assert worst_shape(90, 30, 1) == Shape(3, 30)


def test_lines_of_a_plan_name_what_is_assumed(tmp_path):
    options = PretrainOptions(experiment_dir=str(tmp_path / "never"), encoder=TINY)
    options = dataclasses.replace(
        options,
        data=dataclasses.replace(options.data, batch_seconds=60.0, max_duration=10.0),
        training=TrainingConfig(max_steps=1000, accumulate_batches=2),
        plan=PretrainingPlanConfig(gpus=2, gpu_memory_gb=0.028),
    )
    lines = plan_lines(options)
    assert lines["worst batch"] == "3 cuts of 10 s on one GPU, bf16"
    assert lines["length"] == "1000 steps, 33.3 hours of audio"
    assert "ESTIMATED, not measured" in lines["speed"] and "assumed" in lines["heads"]
    assert "the longest of its arithmetic at 70 % of 989 TFLOP/s" in lines["assumed"]
    assert "no run of this size" in lines["paper"]
    assert "DOES NOT FIT" in lines["memory, checkpoint_activations false"]
    assert "(this run)" in lines["memory, checkpoint_activations false"]
    assert "kept in DDP's buckets" in lines["memory, gradients"]
    assert not (tmp_path / "never").exists()


def test_hours_follow_a_measured_speed():
    training = TrainingConfig(max_steps=1000, accumulate_batches=2)
    plan = PlanConfig(gpus=2, audio_seconds_per_second=100.0)
    lines = time_lines(Run(plan, training, TINY, 60.0, 0.0, SHORT), count()[0])
    assert "measured, as given" in lines["speed"]
    assert lines["time"] == "0.3 GPU-hours, 0.2 hours on 2 GPUs"  # 120000 s at 100 per second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": 0}, "plan.gpus is 0; a run has at least 1"),
        ({"precision": "fp8"}, "plan.precision is 'fp8'; use fp32, bf16, fp16"),
        ({"device": "tpu"}, "plan.device is 'tpu'; use gpu or cpu"),
        ({"efficiency": 1.5}, "plan.efficiency is 1.5"),
        ({"codebooks": [16]}, "plan.codebooks has 1 values and plan.token_rates 0"),
    ],
)
def test_errors_of_the_options(changes, message):
    with pytest.raises(ValueError, match=message):
        PretrainingPlanConfig(**changes)


def test_a_strategy_of_two_teachers_wants_two_numbers_of_codebooks():
    plan = PretrainingPlanConfig(codebooks=[16], token_rates=[50.0])
    with pytest.raises(ValueError, match="joint has 2 token fields and plan.codebooks describes 1"):
        assumed_fields(ObjectiveConfig(strategy="joint"), plan)


def predicted_beside_measured(*arguments: str) -> float:
    done = subprocess.run(
        [
            sys.executable,
            str(REPOSITORY / "tools" / "benchmarks" / "memory.py"),
            "--threads",
            "1",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout.splitlines()[-1].split("|")[-2])


def test_predicted_memory_is_that_of_a_real_step():
    ratio = predicted_beside_measured("--sizes", "[mini]", "--utterances", "6", "--device", "cpu")
    assert 0.85 < ratio < 1.15


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", ["false", "true"])
def test_predicted_memory_of_base_is_that_of_a_real_step(checkpointed):
    ratio = predicted_beside_measured(
        "--sizes", "[base]", "--utterances", "3", "--device", "cpu", "--checkpointed", checkpointed
    )
    assert 0.85 < ratio < 1.15


CONFIGURATIONS = sorted(REPOSITORY.glob("egs/*/conf/pretrain/*.yaml"))
PUBLISHED = {"base": 93_289_489, "large": 326_951_472, "xlarge": 596_973_362}


def configurations():
    for path in CONFIGURATIONS:
        yield pytest.param(path, id=f"{path.parts[-4]}-{path.stem}")


@pytest.mark.slow
@pytest.mark.parametrize("path", list(configurations()))
def test_every_configuration_can_be_planned(path):
    values = read_overlays(path)
    values["data"].pop("train_repeats", None)  # belongs to train_cuts, which run.sh gives
    if path.parts[-4] == "mixed":
        values["objective"] = {**values.get("objective", {}), "strategy": "asymmetrical"}
    options = load(PretrainOptions, {"experiment_dir": "never", **values})
    lines = plan_lines(options)
    domain = {"librispeech": "speech", "audioset": "audio", "mixed": "speech and audio"}.get(path.parts[-4])
    run = next((run for run in PAPER_RUNS if (run.domain, run.size) == (domain, path.stem)), None)
    if run:
        assert lines["encoder"] == f"{PUBLISHED[path.stem]:,} parameters"
        assert lines["length"].startswith(f"{run.steps} steps, {run.audio_hours:,.1f} hours of audio = ")
        cuts = math.ceil(run.batch_seconds // 30 / run.gpus)
        assert lines["worst batch"] == f"{cuts} cuts of 30 s on one GPU, bf16"
        assert any(name.startswith("paper, ") and "GPU-hours" in text for name, text in lines.items())
    # A Transformer has no checkpoints.
    checkpointed = lines.get("memory, checkpoint_activations true") or lines["memory"]
    assert "at the highest" in checkpointed and "DOES NOT FIT" not in checkpointed
    assert "GPU-hours" in lines["time"]


def test_the_command_prints_the_plan_and_makes_nothing(tmp_path):
    arguments = {"experiment_dir": str(tmp_path / "exp"), "dry_run": True, "plan": {"gpus": 1}}
    config = tmp_path / "plan.yaml"
    config.write_text(json.dumps({**arguments, "data": {"batch_seconds": 40.0}}), encoding="utf-8")
    tiny = REPOSITORY / "egs" / "common" / "conf" / "pretrain" / "tiny.yaml"
    command = [sys.executable, "-m", "spear_lib.bin.pretrain", "--config", str(tiny), "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert "Plan of a pre-training run; nothing is trained" in done.stderr
    assert "65,629 parameters" in done.stderr and "GPU-hours" in done.stderr
    assert not (tmp_path / "exp").exists()
