"""Two gloo processes and one process see the same global batches: equal losses."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from pretraining_fixtures import command, make_corpus, run, write_config

from spear_lib.training.metrics import read_metrics


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    train, valid = make_corpus(folder, 16), make_corpus(folder, 5, "dev")
    # Dropouts, layer skipping and the limiter of parameters stay on: they are keyed by the utterance or the
    # step, not by the process. Off are Balancer and Whiten, whose statistics are those of one process.
    return folder, write_config(folder, train, valid, max_steps=20, save_interval=7, valid_interval=10)


def losses(experiment_dir, name="loss"):
    lines = read_metrics(experiment_dir / "metrics.jsonl")
    return {(line["kind"], line["step"]): line[name] for line in lines}


def test_two_processes_equal_one(corpus):
    folder, config = corpus
    run(command(config, folder / "one"))
    run(command(config, folder / "two", processes=2))
    for name in ("loss", "masked_loss", "masked_accuracy"):
        one, two = losses(folder / "one", name), losses(folder / "two", name)
        assert list(one) == list(two) and len(one) == 22
        assert one == pytest.approx(two, abs=1e-4), name
    # Resuming with another number of processes goes on with the same batches.
    run(command(config, folder / "mixed", "--training.max_steps", "10", processes=2))
    run(command(config, folder / "mixed"))
    steps = [step for kind, step in losses(folder / "mixed") if kind == "train"]
    assert steps == list(range(1, 21))
    one, mixed = losses(folder / "one"), losses(folder / "mixed")
    assert {key: mixed[key] for key in one} == pytest.approx(one, abs=1e-4)
