"""Resuming on another number of processes, both domains and every augmentation on: the same batches, or a
refusal that says what to do."""

import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from pretraining_fixtures import command, make_corpus, run, write_two_domain_config

from spear_lib.runtime.metrics_log import read_metrics

pytestmark = pytest.mark.slow

TIMES = ("seconds", "audio_seconds_per_second")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("changed")
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
