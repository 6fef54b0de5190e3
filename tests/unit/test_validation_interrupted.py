"""Saving comes before validating: what happens within a validation costs no step, and a signal is answered
between its batches."""

import signal
from dataclasses import replace

import pytest
import torch
from toy_task import BATCH_SECONDS, ToyData, ToyTask, losses, toy_config

from spear_lib.runtime.metrics_log import read_metrics
from spear_lib.training import checkpoint
from spear_lib.training.health import STATUS_INTERRUPTED
from spear_lib.training.loop import train


class BreaksOff(ToyData):
    """A validation set that raises, or sends a signal, while batch ``at`` (counted over the run) is made."""

    def __init__(self, at: int, number: int | None = None) -> None:
        super().__init__(12)
        self.at, self.number, self.made = at, number, 0

    def epoch_batches(self, epoch, start_batch=0):
        for batch in super().epoch_batches(epoch, start_batch):
            self.made += 1
            if self.made == self.at:
                if self.number is None:
                    raise RuntimeError("a file is gone")
                signal.raise_signal(self.number)
            yield batch


def run(folder, valid=None, data=None, **changes):
    config = toy_config(**{"save_interval": 100, "valid_interval": 6, "max_steps": 12, **changes})
    valid = {"dev": valid or ToyData(12)}
    train(ToyTask(), data or ToyData(), valid, config, folder, batch_seconds=BATCH_SECONDS)


def last_step(folder) -> int:
    return checkpoint.load(folder / "checkpoints" / "last.pt")["step"]


@pytest.mark.parametrize("at, step", [(2, 6), (5, 12)])
def test_a_validation_that_fails_costs_no_step(tmp_path, at, step):
    with pytest.raises(RuntimeError, match="a file is gone"):
        run(tmp_path / "a", BreaksOff(at))
    assert last_step(tmp_path / "a") == step
    run(tmp_path / "a")
    run(tmp_path / "b")
    for kind in ("train", "valid/dev"):
        assert losses(tmp_path / "a", kind) == losses(tmp_path / "b", kind)
    assert list(losses(tmp_path / "a", "valid/dev")) == [6, 12]


@pytest.mark.parametrize("at, step", [(2, 6), (5, 12)])
def test_a_signal_is_answered_between_the_batches(tmp_path, at, step, caplog):
    valid = BreaksOff(at, signal.SIGTERM)
    with pytest.raises(SystemExit) as stop, caplog.at_level("INFO"):
        run(tmp_path / "a", valid)
    assert stop.value.code == STATUS_INTERRUPTED and valid.made == at
    assert f"SIGTERM: saved step {step}, exit status 75" in caplog.text
    assert last_step(tmp_path / "a") == step
    run(tmp_path / "a")
    run(tmp_path / "b")
    for kind in ("train", "valid/dev"):
        assert losses(tmp_path / "a", kind) == losses(tmp_path / "b", kind)


class SlowProbe:
    """Asks between its batches, as it must."""

    every = 1

    def __init__(self, at: int) -> None:
        self.at, self.batches = at, 0

    def measure(self, between_batches):
        for _ in range(3):
            between_batches()
            self.batches += 1
            if self.batches == self.at:
                signal.raise_signal(signal.SIGTERM)
        return {"dev": {"accuracy": 50.0}}

    def describe(self, values):
        return "words"


def test_a_signal_is_answered_within_a_probe(tmp_path):
    def run_probed(folder, at):
        config = toy_config(save_interval=100, valid_interval=6, max_steps=12)
        valid = {"dev": ToyData(12)}
        arguments = (ToyTask(), ToyData(), valid, config, folder)
        train(*arguments, batch_seconds=BATCH_SECONDS, probe=SlowProbe(at))

    with pytest.raises(SystemExit):
        run_probed(tmp_path / "a", at=4)  # the second probe, at step 6
    assert last_step(tmp_path / "a") == 6
    run_probed(tmp_path / "a", at=0)
    lines = [(line["step"], line["kind"]) for line in read_metrics(tmp_path / "a" / "metrics.jsonl")]
    assert [step for step, kind in lines if kind == "probe/dev"] == [0, 6, 12]
    assert [step for step, kind in lines if kind == "valid/dev"] == [6, 12]


def test_what_is_done_is_not_done_again(tmp_path):
    run(tmp_path)
    valid = BreaksOff(1)
    run(tmp_path, valid)
    assert valid.made == 0


class Idle(ToyData):
    """The batch at ``index`` does not count, or is empty."""

    def __init__(self, index: int, empty: bool) -> None:
        super().__init__()
        self.index, self.empty = index, empty

    def epoch_batches(self, epoch, start_batch=0):
        for index, batch in enumerate(super().epoch_batches(epoch, start_batch), start_batch):
            if index == self.index and epoch == 0:
                batch = replace(batch, ids=[]) if self.empty else replace(batch, counts=False)
            yield batch


def test_a_batch_that_does_not_count_changes_no_weight_and_no_number(tmp_path):
    task = ToyTask()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    data, config = Idle(0, empty=False), toy_config(max_steps=1)
    train(task, data, {"dev": ToyData(8)}, config, tmp_path, batch_seconds=BATCH_SECONDS)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    (line,) = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    assert "loss" not in line and line["audio_hours"] == 0


def test_an_empty_batch_is_passed_over_and_counted_in_the_epoch(tmp_path):
    run(tmp_path / "a", data=Idle(2, empty=True), max_steps=7)
    saved = checkpoint.load(tmp_path / "a" / "checkpoints" / "last.pt")
    assert saved["sampler"] == {"epoch": 1, "batch": 3} and saved["step"] == 7  # 4 + 3 of 5 batches each
