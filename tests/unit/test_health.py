"""What must not go on silently: non-finite losses and gradients, and requests to stop."""

import signal

import pytest
import torch
from toy_task import BATCH_SECONDS, ToyData, ToyTask, losses, toy_config

from spear_lib.training.health import STATUS_INTERRUPTED, LossGuard, SkippedSteps, stop_on_signal
from spear_lib.training.loop import train
from spear_lib.training.precision import Precision


def test_non_finite_loss_stops_before_the_step_and_saves_the_batch(tmp_path):
    task = ToyTask()
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    with pytest.raises(RuntimeError, match="the loss is nan at step 1, before the optimiser step") as error:
        train(task, ToyData(bad=0), {}, toy_config(), tmp_path, batch_seconds=BATCH_SECONDS)
    assert all(torch.equal(before[name], p) for name, p in task.model.named_parameters())
    (saved,) = tmp_path.glob("bad-batch-*.pt")
    assert saved.name in str(error.value)
    batch = torch.load(saved, weights_only=True)
    assert batch["inputs"].isnan().any() and len(batch["ids"]) == 4


def test_run_goes_on_from_the_last_checkpoint_after_a_bad_batch(tmp_path):
    with pytest.raises(RuntimeError, match="at step 3"):
        train(
            ToyTask(), ToyData(bad=2), {}, toy_config(save_interval=1), tmp_path, batch_seconds=BATCH_SECONDS
        )
    train(ToyTask(), ToyData(), {}, toy_config(save_interval=1), tmp_path, batch_seconds=BATCH_SECONDS)
    train(ToyTask(), ToyData(), {}, toy_config(), tmp_path / "sound", batch_seconds=BATCH_SECONDS)
    assert losses(tmp_path) == losses(tmp_path / "sound")


def test_infinite_loss_is_found_too(tmp_path):
    guard = LossGuard(tmp_path, rank=0)
    guard.watch(torch.tensor(1.0), {"ids": ["a"]})
    guard.check(1)
    guard.watch(torch.tensor(float("inf")), {"ids": ["a"], "other": object()})
    with pytest.raises(RuntimeError, match="the loss is inf at step 2"):
        guard.check(2)


def test_skipped_steps_end_a_run_only_when_there_is_nothing_else():
    skipped = SkippedSteps(limit=10)
    skipped.update(5, 5, step=5)
    skipped.update(9, 5, step=10)  # one good step among them
    skipped.update(14, 5, step=15)
    with pytest.raises(RuntimeError, match="10 steps in a row were skipped .* up to step 20"):
        skipped.update(19, 5, step=20)


class InterruptedData(ToyData):
    """Sends a signal to this process while batch number 7 is made."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def epoch_batches(self, epoch, start_batch=0):
        for batch in super().epoch_batches(epoch, start_batch):
            if len(self.seen) == 7:
                signal.raise_signal(self.number)
            yield batch


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_and_exits_and_the_run_goes_on_exactly(tmp_path, number):
    config = toy_config(save_interval=100)
    with pytest.raises(SystemExit) as error:
        train(ToyTask(), InterruptedData(number), {}, config, tmp_path / "a", batch_seconds=BATCH_SECONDS)
    assert error.value.code == STATUS_INTERRUPTED == 75
    assert sorted(losses(tmp_path / "a")) == list(range(1, 8))
    for name in ("a", "b"):
        train(ToyTask(), ToyData(), {}, config, tmp_path / name, batch_seconds=BATCH_SECONDS)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_signal_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal() as stop:
        assert not stop
        signal.raise_signal(signal.SIGTERM)
        assert stop and stop.signal_name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == before


def test_precision_of_another_run_is_refused():
    device = torch.device("cpu")
    with pytest.raises(ValueError, match="the checkpoint was made in bf16 and this run is in fp32"):
        Precision("fp32", device).load_state_dict(Precision("bf16", device).state_dict())
    assert Precision("auto", device).name == "fp32"
