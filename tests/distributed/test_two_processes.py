"""Two gloo processes and one process see the same global batches: equal losses."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from pretraining_fixtures import (
    AUDIO_FIELD,
    FIELD,
    command,
    make_corpus,
    run,
    write_config,
    write_two_domain_config,
)

from spear_lib.runtime.metrics_log import read_metrics


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    train, valid = make_corpus(folder, 16), make_corpus(folder, 5, "dev")
    # Dropouts, layer skipping and the limiter of parameters stay on: they are keyed by the utterance or the
    # step, not by the process. Off are Balancer and Whiten, whose statistics are those of one process.
    return folder, write_config(folder, train, valid, max_steps=20, save_interval=7, valid_interval=10)


def losses(experiment_dir, name="loss"):
    lines = read_metrics(experiment_dir / "metrics.jsonl")
    return {(line["kind"], line["step"]): line[name] for line in lines if name in line}


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


def test_two_processes_equal_one_where_each_batch_of_a_process_has_one_domain(tmp_path):
    """A head without work gets a gradient of zero, so DDP waits for nothing."""
    config = write_two_domain_config(tmp_path, "disjoint", max_steps=6)
    # Two cuts per global batch, one per process: most shares hold one domain, and some batches too.
    few = ("--data.max_cuts", "2")
    run(command(config, tmp_path / "one", *few))
    run(command(config, tmp_path / "two", *few, processes=2))
    for name in ("loss", f"{FIELD}/masked_loss", f"{AUDIO_FIELD}/masked_loss"):
        one, two = losses(tmp_path / "one", name), losses(tmp_path / "two", name)
        assert list(one) == list(two) and one == pytest.approx(two, abs=1e-4), name
