"""The memory scan before the first step: it leaves no trace, and running out says what to change."""

from dataclasses import replace

import pytest
import torch
from toy_task import BATCH_SECONDS, ToyData, ToyTask, losses, toy_config

from spear_lib.training import worst_batch
from spear_lib.training.loop import train


class ScannedData(ToyData):
    """Counts how often its largest batch is asked for."""

    scanned: int = 0

    def largest_batch(self, epoch):
        self.scanned += 1
        return replace(super().largest_batch(epoch), padded_seconds=4.0)


class DrawingTask(ToyTask):
    """Draws from torch's own generator and counts in a buffer, as our models never do."""

    def __init__(self) -> None:
        super().__init__()
        self.model.register_buffer("count", torch.zeros(()))

    def compute(self, batch):
        self.model.count += 1
        result = super().compute(batch)
        result.loss_sum = result.loss_sum * (1 + torch.rand(()))
        return result


def run(folder, task=None, **changes):
    data, task = ScannedData(), task or DrawingTask()
    torch.manual_seed(5)
    train(task, data, {}, toy_config(**changes), folder, batch_seconds=BATCH_SECONDS)
    return data, task


def test_the_scan_leaves_no_trace(tmp_path, caplog):
    with caplog.at_level("INFO"):
        data, with_scan = run(tmp_path / "with", memory_scan="always")
    assert data.scanned == 1
    assert "memory scan: the largest batch of epoch 0 (4 utterances of up to 1.0 s, 4 s" in caplog.text
    assert "GB of this process (resident memory)" in caplog.text
    _, without = run(tmp_path / "without", memory_scan="never")
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    for name, value in without.model.state_dict().items():
        assert torch.equal(with_scan.model.state_dict()[name], value), name


def test_a_resumed_run_scans_its_epoch_and_goes_on_exactly(tmp_path):
    run(tmp_path / "a", ToyTask(), memory_scan="always", max_steps=7)
    data, _ = run(tmp_path / "a", ToyTask(), memory_scan="always")
    assert data.scanned == 1
    run(tmp_path / "b", ToyTask(), memory_scan="never")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    data, _ = run(tmp_path / "a", ToyTask(), memory_scan="always")
    assert data.scanned == 0  # nothing was left to train


def test_auto_scans_on_gpus_alone(tmp_path):
    assert run(tmp_path, max_steps=1)[0].scanned == 0
    assert worst_batch.wanted("auto", torch.device("cuda"))
    assert not worst_batch.wanted("never", torch.device("cuda"))
    with pytest.raises(ValueError, match="memory_scan must be auto, always or never, it is 'on'"):
        toy_config(memory_scan="on")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_says_what_to_change(tmp_path, error):
    class Greedy(ToyTask):
        def compute(self, batch):
            raise error

    with pytest.raises(RuntimeError, match="largest batch of epoch 0 .4 utterances of up to 1.0 s") as caught:
        run(tmp_path, Greedy(), memory_scan="always")
    text = str(caught.value)
    for piece in ("batch_seconds", "accumulate_batches", "checkpoint_activations", "does not fit"):
        assert piece in text
    assert "and more" not in text


def test_other_errors_are_not_called_memory(tmp_path):
    class Broken(ToyTask):
        def compute(self, batch):
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="^shapes differ"):
        run(tmp_path, Broken(), memory_scan="always")


def test_optimiser_state_to_come_is_held():
    model = ToyTask().model
    optimizer = torch.optim.Adam(model.parameters())
    held = worst_batch._optimizer_memory(model, optimizer)
    assert sum(t.numel() for t in held) == 2 * sum(p.numel() for p in model.parameters())
    model(torch.zeros(1, 6), torch.ones(1, 16)).sum().backward()
    optimizer.step()
    assert worst_batch._optimizer_memory(model, optimizer) == []
