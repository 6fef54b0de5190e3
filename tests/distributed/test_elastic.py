"""docs/elastic.md: a run that goes on with another number of processes gives the losses that it would have
given with the old one, everything on (Balancer, Whiten, mixing, accumulation)."""

import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from pretraining_fixtures import command, make_corpus, run, write_config

from spear_lib.runtime.metrics_log import read_metrics

pytestmark = pytest.mark.slow

STEPS = 9


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elastic")
    path = write_config(folder, make_corpus(folder, 22), make_corpus(folder, 3, "dev"), max_steps=STEPS)
    options = yaml.safe_load(path.read_text())
    options["encoder"] |= {"balancer": True, "whiten": True}
    options["data"] |= {
        "noise_cuts": [str(make_corpus(folder, 3, "noise"))],
        "mixing": {"enabled": True, "noise_probability": 0.3, "token_probability": 0.3},
    }
    options["training"] |= {"valid_interval": 0, "accumulate_batches": 2}
    path.write_text(yaml.safe_dump(options))
    return path


def equal(expected: list[float]):
    """To rounding: with accumulation the same gradients are summed in another order. (Without it two shares
    are equal to the last bit: test_two_processes.py.)"""
    return pytest.approx(expected, abs=2e-5)


def losses(folder: Path) -> list[float]:
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def two(config):
    """Losses of two processes that nothing interrupts, over two and a half epochs."""
    run(command(config, config.parent / "two", processes=2))
    return losses(config.parent / "two")


@pytest.mark.parametrize("stop", [3, 4])
def test_two_then_one(config, two, tmp_path, stop):
    run(command(config, tmp_path, "--training.max_steps", str(stop), processes=2))
    log = run(command(config, tmp_path))
    assert "saved on 2 processes, going on with 1: the same 2 shares of each batch, 2 in turn" in log
    assert losses(tmp_path) == equal(two)


def test_one_with_two_shares_then_two_then_one(config, two, tmp_path):
    shares = ("--data.shares", "2")
    run(command(config, tmp_path, *shares, "--training.max_steps", "3"))
    run(command(config, tmp_path, *shares, "--training.max_steps", "6", processes=2))
    run(command(config, tmp_path, *shares))
    assert losses(tmp_path) == equal(two)


def test_three_shares_on_two_processes(config, tmp_path):
    run(command(config, tmp_path / "three", processes=3))
    run(command(config, tmp_path / "mixed", "--training.max_steps", "4", processes=3))
    log = run(command(config, tmp_path / "mixed", processes=2))
    assert "the same 3 shares of each batch, 1 or 2 in turn" in log
    assert losses(tmp_path / "mixed") == equal(losses(tmp_path / "three"))


def test_one_then_two_measures_other_shares(config, two, tmp_path):
    run(command(config, tmp_path, "--training.max_steps", "3"))
    log = run(command(config, tmp_path, processes=2))
    assert "the same batches, but what each process measures by itself (Balancer, Whiten) changes" in log
    found = losses(tmp_path)
    assert found == pytest.approx(two, abs=0.05) and found != equal(two)


def test_more_processes_than_shares_are_refused(config, tmp_path):
    log = run(command(config, tmp_path, "--data.shares", "1", processes=2), expected_status=1)
    assert "data.shares divides batches into 1 shares, which 2 processes cannot have" in log
    few = ("--data.batch_seconds", "3.6")  # the smallest batch has 2 cuts
    run(command(config, tmp_path, *few, "--training.max_steps", "2"))
    log = run(command(config, tmp_path, *few, processes=3), expected_status=1)
    assert "into other batches on 3 processes" in log and "Use 1 to 2 processes to go on exactly" in log
