"""kill -9 in the middle of an epoch of two processes with two workers each, both domains and every
augmentation: the same command again gives the batches and losses of the unbroken run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from pretraining_fixtures import command, environment, make_corpus, run, write_two_domain_config

from spear_lib.training.metrics import read_metrics

pytestmark = pytest.mark.slow

TIMES = ("seconds", "audio_seconds_per_second")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    path = write_two_domain_config(folder, "asymmetrical", max_steps=14, save_interval=4, valid_interval=7)
    options = yaml.safe_load(path.read_text())
    options["data"] |= {
        "num_workers": 2,
        "batch_seconds": 6.0,
        "noise_cuts": [str(make_corpus(folder, 3, "noise"))],
        "mixing": {
            "enabled": True,
            "noise_probability": 0.3,
            "utterance_probability": 0.2,
            "token_probability": 0.3,
        },
    }
    path.write_text(yaml.safe_dump(options))
    return path


def reported(folder: Path) -> list[dict]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def test_killed_in_the_middle_of_an_epoch(config, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(command(config, whole, processes=2))
    process = subprocess.Popen(
        command(config, broken, processes=2),
        env=environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + 300
    # After the checkpoint of step 4, whatever the step then is.
    while time.monotonic() < end and process.poll() is None:
        if (broken / "checkpoints" / "step-00000004.pt").exists() and len(reported(broken)) >= 6:
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert max(line["step"] for line in reported(broken)) < 14, "it ended before it could be killed"
    log = run(command(config, broken, processes=2))
    assert "going on from" in log
    lines = reported(whole)
    assert reported(broken) == lines
    # It was the middle of an epoch, and every augmentation was there.
    train = [line for line in lines if line["kind"] == "train"]
    assert {line["epoch"] for line in train if line["step"] in (4, 5)} != {line["epoch"] for line in train}
    for name in ("noise", "utterance", "tokens"):
        assert any(line.get(f"data/mixed_{name}", 0) > 0 for line in train), name


def test_another_number_of_processes_goes_on_with_the_same_batches(config, tmp_path):
    run(command(config, tmp_path / "one", "--training.max_steps", "5"))
    log = run(command(config, tmp_path / "one", "--training.max_steps", "8", processes=2))
    assert "going on from" in log
    run(command(config, tmp_path / "two", "--training.max_steps", "8", processes=2))
    changed, unchanged = reported(tmp_path / "one"), reported(tmp_path / "two")
    changed = [line for line in changed if line["kind"] == "train"]
    unchanged = [line for line in unchanged if line["kind"] == "train"]
    assert [line["step"] for line in changed] == [line["step"] for line in unchanged] == list(range(1, 9))
    for one, two in zip(changed, unchanged):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
        for name in ("data/mixed_tokens", "data/mixed_noise", "data/mixing_replaced_tokens"):
            assert two.get(name) == pytest.approx(one.get(name)), (one["step"], name)


def test_processes_that_need_larger_batches_are_refused(config, tmp_path):
    small = ("--data.batch_seconds", "1.5")
    run(command(config, tmp_path, *small, "--training.max_steps", "3"))
    log = run(command(config, tmp_path, *small, processes=2), expected_status=1)
    assert "epoch 0 is divided into other batches on 2 processes" in log and "--training.resume reseed" in log
    run(
        command(
            config, tmp_path, *small, "--training.resume", "reseed", "--training.max_steps", "5", processes=2
        )
    )
    steps = {line["step"]: line["epoch"] for line in reported(tmp_path) if line["kind"] == "train"}
    assert steps == {1: 0, 2: 0, 3: 0, 4: 1, 5: 1}
