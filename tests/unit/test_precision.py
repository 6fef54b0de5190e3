"""fp16's loss scale: overflow skips the step and halves it; small scales are doubled (spec optim §4)."""

import math

import pytest
import torch
from toy_task import BATCH_SECONDS, ToyData, ToyTask, toy_config

from spear_lib.runtime.world import World
from spear_lib.training.loop import Trainer
from spear_lib.training.precision import Precision


def scaled(init_scale: float = 1.0) -> Precision:
    """The policy of fp16 on a CPU: autocast stays off, the scale is real."""
    precision = Precision("fp32", torch.device("cpu"))
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    return precision


def trainer_of(tmp_path, task=None) -> Trainer:
    trainer = Trainer(task or ToyTask(), ToyData(), {}, toy_config(), tmp_path, BATCH_SECONDS, World(), None)
    trainer.precision = scaled(4.0)
    return trainer


class OverflowingTask(ToyTask):
    """The gradient of one weight overflows at step 3; its loss stays finite."""

    def after_backward(self):
        if self.clocks[-1].step == 3:
            self.model.output.weight.grad[0, 0] = math.inf


def test_overflow_skips_the_step_halves_the_scale_and_the_schedules_go_on(tmp_path):
    trainer = trainer_of(tmp_path, OverflowingTask())
    batches = trainer._batches()
    for step in range(1, 5):
        before = {name: p.detach().clone() for name, p in trainer.task.model.named_parameters()}
        trainer._step(batches)
        same = all(torch.equal(before[name], p) for name, p in trainer.task.model.named_parameters())
        assert same == (step == 3)
        assert trainer.precision.scaler.get_scale() == (4.0 if step < 3 else 2.0)
        assert trainer.scheduler.state_dict()["batch"] == step
    state = trainer.optimizer.state_dict()["state"]
    assert {values["step"] for values in state.values() if "step" in values} == {3}


def test_the_scale_does_not_change_the_weights(tmp_path):
    weights = []
    for name, precision in (("with", scaled(4.0)), ("without", Precision("fp32", torch.device("cpu")))):
        trainer = trainer_of(tmp_path / name)
        trainer.precision = precision
        batches = trainer._batches()
        for _ in range(4):
            trainer._step(batches)
        weights.append([p.detach().clone() for p in trainer.task.model.parameters()])
    for one, other in zip(*weights):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "scale, step, expected",
    [
        (4.0, 100, 8.0),
        (4.0, 99, 4.0),
        (8.0, 100, 8.0),
        (16.0, 300, 16.0),
        (16.0, 400, 32.0),
        (32.0, 400, 32.0),
    ],
)
def test_a_small_scale_is_doubled(scale, step, expected):
    precision = scaled(scale)
    precision.scaler.scale(torch.ones(()))  # the scale becomes a tensor
    precision.after_step(step)
    assert precision.scaler.get_scale() == expected


def test_a_tiny_scale_warns_and_then_ends_the_run(caplog):
    precision = scaled(0.004)
    precision.scaler.scale(torch.ones(()))
    precision.after_step(100)
    assert "the fp16 loss scale is 0.004 at step 100" in caplog.text
    precision = scaled(1e-6)
    precision.scaler.scale(torch.ones(()))
    with pytest.raises(RuntimeError, match="fell to 1e-06 .limit 1e-5. at step 200.*Use precision bf16"):
        precision.after_step(200)


def test_the_scale_is_saved_and_loaded():
    precision, other = scaled(64.0), scaled(1.0)
    precision.scaler.scale(torch.ones(()))
    other.load_state_dict(precision.state_dict())
    assert other.scaler.get_scale() == 64.0


def test_defaults_are_those_of_the_reference(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    state = torch.amp.GradScaler("cpu", init_scale=1.0).state_dict()
    assert (state["growth_factor"], state["backoff_factor"], state["growth_interval"]) == (2.0, 0.5, 2000)
    precision = Precision("fp16", torch.device("cuda"))
    assert precision.dtype == torch.float16 and precision.scaler.state_dict()["scale"] == 1.0
