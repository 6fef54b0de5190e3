"""Resuming exactly or with a new data order: what may change, what is refused, and what goes on."""

from dataclasses import replace

import pytest
from toy_task import BATCH_SECONDS, ToyData, ToyTask, losses, toy_config

from spear_lib.runtime.metrics_log import read_metrics
from spear_lib.training.loop import train
from spear_lib.training.resuming import AudioClock, check_same_options


class NamedData(ToyData):
    """Toy data that say what they are."""

    def __init__(self, size: int = 20, fingerprint: str = "a") -> None:
        super().__init__(size)
        self.fingerprint = fingerprint


def run(folder, data=None, seconds=BATCH_SECONDS, options=None, **changes):
    task = ToyTask()
    config = toy_config(**changes)
    train(task, data or NamedData(), {}, config, folder, batch_seconds=seconds, options=options or config)
    return task


def test_changed_manifests_are_refused_and_the_message_names_reseed(tmp_path):
    run(tmp_path, max_steps=7)
    with pytest.raises(ValueError, match="made on other data: .* had a, .*--training.resume reseed"):
        run(tmp_path, NamedData(fingerprint="b"))
    run(tmp_path)  # the same data go on exactly
    run(tmp_path / "whole")
    assert losses(tmp_path) == losses(tmp_path / "whole")


def test_reseed_goes_on_with_other_data_from_the_next_epoch(tmp_path, caplog):
    first = run(tmp_path, max_steps=7)
    data = NamedData(size=28, fingerprint="b")
    with caplog.at_level("INFO"):
        second = run(tmp_path, data, resume="reseed", max_steps=12)
    assert data.seen[0] == (2, 0) and first.clocks[-1].step == 7 and second.clocks[0].step == 8
    assert "weights, optimiser and schedules go on; the data begin epoch 2 in a new order" in caplog.text
    assert sorted(losses(tmp_path)) == list(range(1, 13))
    # Killed and resumed exactly from there: the same as without.
    unbroken = losses(tmp_path)
    run(tmp_path / "b", max_steps=7)
    run(tmp_path / "b", NamedData(size=28, fingerprint="b"), resume="reseed", max_steps=9)
    run(tmp_path / "b", NamedData(size=28, fingerprint="b"), max_steps=12)
    assert losses(tmp_path / "b") == unbroken


def test_schedules_go_on_from_the_audio_seen_when_the_batch_changes(tmp_path):
    options = {"data": {"batch_seconds": 60.0}}
    run(tmp_path, max_steps=6, options=options)
    changed = {"data": {"batch_seconds": 240.0}}
    with pytest.raises(ValueError, match="batch_seconds was 60.0 and is now 240.0.*--training.resume reseed"):
        run(tmp_path, max_steps=9, options=changed, seconds=240.0)
    task = run(tmp_path, max_steps=9, options=changed, seconds=240.0, resume="reseed")
    assert [clock.hours * 3600 for clock in task.clocks] == pytest.approx([360.0, 600.0, 840.0])
    # Exactly resumed, the clock keeps its bend.
    task = run(tmp_path, max_steps=10, options=changed, seconds=240.0)
    assert task.clocks[0].hours * 3600 == pytest.approx(360 + 3 * 240)
    rates = {line["step"]: line["learning_rate"] for line in read_metrics(tmp_path / "metrics.jsonl")}
    assert rates[9] > rates[10]


def test_reseed_does_not_let_the_model_change(tmp_path):
    before = {"data": {"batch_seconds": 6}, "training": {"learning_rate": 0.1}}
    after = {"data": {"batch_seconds": 7}, "training": {"learning_rate": 0.2}}
    with pytest.raises(
        ValueError, match="learning_rate was 0.1 and is now 0.2. Give the old values"
    ) as error:
        check_same_options(before, after, "reseed", tmp_path)
    assert "batch_seconds" not in str(error.value) and "--training.resume" not in str(error.value)
    same = {**after, "training": before["training"]}
    assert check_same_options(before, same, "reseed", tmp_path) == ["data.batch_seconds was 6 and is now 7"]
    assert check_same_options(before, {**before, "probe": {"every": 3}}, "exact", tmp_path) == []


def test_other_batches_of_the_same_cuts_are_refused(tmp_path):
    class Divided(NamedData):
        """The same cuts, of which more processes make larger batches."""

        division = "5 batches, abc"

        def batching(self, epoch):
            return self.division

    larger = Divided()
    larger.division = "4 batches, def"
    run(tmp_path, Divided(), max_steps=7)
    with pytest.raises(ValueError, match="on 1 processes .4 batches, def. than on 1 .5 batches, abc.*reseed"):
        run(tmp_path, larger)
    run(tmp_path, Divided())


def test_unknown_policy_is_explained():
    with pytest.raises(ValueError, match="resume must be exact or reseed, it is 'anyhow'"):
        toy_config(resume="anyhow")


def test_clock_without_change_is_plain_multiplication():
    clock = AudioClock(0.1)
    assert [clock.seconds(step) for step in (3, 7)] == [3 * 0.1, 7 * 0.1]
    assert clock.continued(replace(clock).state_dict(), 7, reseed=False) == clock
