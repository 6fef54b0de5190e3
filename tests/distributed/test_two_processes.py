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

from spear_lib.bin import pretrain
from spear_lib.pretraining.data import PretrainingData
from spear_lib.runtime.metrics_log import read_metrics
from spear_lib.training import loop


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


def trained(values):
    """Those of training steps alone: a validation is shared by the processes that there are."""
    return {key: loss for key, loss in values.items() if key[0] == "train"}


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
    # The one process takes the shares of both, so it gives what both would have given.
    assert trained(mixed) == trained(losses(folder / "two"))


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


class SharesOfTwo:
    """What two processes get of each batch, one after the other."""

    def __init__(self, *arguments, **options) -> None:
        self.shares = [PretrainingData(*arguments, **options | {"rank": r, "world_size": 2}) for r in (0, 1)]

    def __getattr__(self, name):
        return getattr(self.shares[0], name)

    def epoch_batches(self, epoch, start_batch=0):
        for pair in zip(*(share.epoch_batches(epoch, start_batch) for share in self.shares)):
            yield from pair


def test_two_processes_with_everything_on_equal_one_that_takes_their_shares_in_turn(tmp_path, monkeypatch):
    """Balancer and Whiten measure the share of a process. Nothing else may tell two processes from one."""
    config = write_config(tmp_path, make_corpus(tmp_path, 16), make_corpus(tmp_path, 2, "dev"), max_steps=15)
    everything = ("--encoder.balancer", "true", "--encoder.whiten", "true", "--training.valid_interval", "0")
    said = run(command(config, tmp_path / "two", *everything, processes=2))
    assert "Balancer and Whiten measure each process's share of a batch" in said
    assert "measure each process" not in run(command(config, tmp_path / "one", *everything))

    make, clock, audio = PretrainingData, loop.Trainer._step_clock, loop.AudioClock
    monkeypatch.setattr(
        pretrain,
        "PretrainingData",
        lambda *a, training=True, **k: SharesOfTwo(*a, **k) if training else make(*a, training=False, **k),
    )
    # Both shares are of one step: the same draws, and the audio of one batch.
    monkeypatch.setattr(loop.Trainer, "_step_clock", lambda self, micro: clock(self, 0))
    monkeypatch.setattr(loop, "AudioClock", lambda seconds, *rest: audio(seconds / 2, *rest))
    options = ["--config", str(config), "--experiment_dir", str(tmp_path / "shares"), *everything]
    pretrain.main([*options, "--training.accumulate_batches", "2"])
    one, two, shares = (losses(tmp_path / name) for name in ("one", "two", "shares"))
    assert shares == pytest.approx(two, abs=1e-5)
    assert one != pytest.approx(two, abs=1e-4)  # so the regularisers do act
    # So does data.shares, without any of these detours (and to the last bit).
    monkeypatch.undo()
    pretrain.main([*options[:3], str(tmp_path / "own"), *everything, "--data.shares", "2"])
    assert trained(losses(tmp_path / "own")) == trained(two)
