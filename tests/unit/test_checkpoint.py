"""Checkpoints: whole or not there; exact resume; refusals that say what differs."""

import errno
import json
from dataclasses import replace

import pytest
import torch
from toy_task import BATCH_SECONDS, ToyData, ToyTask, losses, toy_config

from spear_lib.runtime.metrics_log import read_metrics
from spear_lib.training import checkpoint
from spear_lib.training.checkpoint import CheckpointFolder
from spear_lib.training.loop import train


def run(folder, config, task=None, data=None):
    task = task or ToyTask()
    train(task, data or ToyData(), {"dev": ToyData(8)}, config, folder, batch_seconds=BATCH_SECONDS)
    return task


class Killed(BaseException):
    """Stands for kill -9: nothing in the product catches it."""


class KilledData(ToyData):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def epoch_batches(self, epoch, start_batch=0):
        for batch in super().epoch_batches(epoch, start_batch):
            if len(self.seen) > self.after:
                raise Killed
            yield batch


@pytest.mark.parametrize("killed_after", [2, 7, 9, 11])
@pytest.mark.parametrize("log_interval", [1, 4])
def test_killed_and_rerun_equals_unbroken(tmp_path, killed_after, log_interval):
    config = toy_config(log_interval=log_interval, save_interval=3, accumulate_batches=1)
    whole = run(tmp_path / "whole", config)
    with pytest.raises(Killed):
        run(tmp_path / "killed", config, data=KilledData(killed_after))
    rerun = run(tmp_path / "killed", config)
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    assert losses(tmp_path / "whole", "valid/dev") == losses(tmp_path / "killed", "valid/dev")
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, dict(rerun.model.named_parameters())[name]), name
    first, second = (
        checkpoint.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "killed")
    )
    for name, value in first["model_average"]["state"].items():
        assert torch.equal(value, second["model_average"]["state"][name])
    assert first["audio_hours"] == second["audio_hours"]


def test_resume_does_not_read_again_what_was_read(tmp_path):
    run(tmp_path, toy_config(max_steps=7))
    data = ToyData()
    run(tmp_path, toy_config(max_steps=9), data=data)
    assert data.seen == [(1, 2), (1, 3)]


def test_resume_with_accumulation_in_the_middle_of_an_epoch(tmp_path):
    config = toy_config(accumulate_batches=3)
    run(tmp_path / "whole", config)
    run(tmp_path / "parts", replace(config, max_steps=4))
    run(tmp_path / "parts", config)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_checkpoint_is_plain_data_with_the_documented_fields(tmp_path):
    run(tmp_path, toy_config())
    state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    fields = (
        "version kind config model model_average optimizer scheduler precision sampler step hours seconds"
    )
    assert set(fields.split()) | {"quantizer_ids"} <= set(state)
    assert (state["kind"], state["step"], state["sampler"]) == ("toy", 12, {"epoch": 2, "batch": 2})
    assert state["model_average"]["state"]["encoder.weight"].dtype == torch.float64
    assert state["config"]["learning_rate"] == 0.045


def test_other_options_are_refused_and_harmless_ones_are_not(tmp_path):
    run(tmp_path, toy_config())
    with pytest.raises(ValueError, match="learning_rate was 0.045 and is now 0.01"):
        run(tmp_path, toy_config(learning_rate=0.01))
    run(tmp_path, toy_config(max_steps=13, log_interval=2, keep_checkpoints=0))
    assert max(losses(tmp_path)) == 13


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with checkpoint.lock(tmp_path), pytest.raises(RuntimeError, match="another process is training in"):
        run(tmp_path, toy_config())
    run(tmp_path, toy_config(max_steps=1))


def test_tokens_of_another_quantiser_are_refused(tmp_path):
    run(tmp_path, toy_config())
    with pytest.raises(ValueError, match="quantizer_ids quantiser-a and this run has quantiser-b"):
        run(tmp_path, toy_config(max_steps=20), task=ToyTask("quantiser-b"))


def test_torn_and_damaged_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    path.write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_metrics(path)


def test_full_disk_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    folder.save({"kind": "toy", "step": 1, "model": {}}, keep_step=True)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(RuntimeError, match="could not be written .*No space left on device.*make room"):
        folder.save({"kind": "toy", "step": 2, "model": {}}, keep_step=True)
    assert checkpoint.load(folder.last)["step"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "step-00000001.pt"]


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "there is no checkpoint"),
        (b"not a checkpoint", "cannot be read as a checkpoint"),
        ({"weights": 1}, "is no checkpoint of a spear_lib training run"),
        ({"version": 99, "model": {}}, "has layout version 99, this code reads 1"),
        ({"version": 1, "model": {}, "kind": "asr"}, "is a checkpoint of 'asr', expected 'toy'"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content, message):
    path = tmp_path / "last.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(path, "toy")


def test_progress_without_a_terminal_logs_lines(monkeypatch, caplog):
    from spear_lib.runtime import progress

    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    with caplog.at_level("INFO"):
        assert list(progress.progress([1, 2, 3], description="dumping", unit="cuts")) == [1, 2, 3]
    assert "dumping: 3/3 cuts (100 %)" in caplog.text and "dumping: done, 3 cuts" in caplog.text
    assert progress.format_seconds(7384) == "2 h 03 min"


def test_metrics_are_json_numbers(tmp_path):
    run(tmp_path, toy_config(max_steps=2))
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert all(isinstance(value, (int, float, str)) for value in json.loads(line).values())
