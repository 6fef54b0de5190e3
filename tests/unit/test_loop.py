"""The training loop: same command, same numbers; gradients of sums; freezing; limits; clear ends."""

import math
from dataclasses import replace

import pytest
import torch
from toy_task import BATCH_SECONDS, ToyData, ToyTask, losses, toy_config

from spear_lib.runtime.metrics_log import read_metrics
from spear_lib.runtime.task_file import read_task
from spear_lib.runtime.world import World
from spear_lib.training.interfaces import TrainingData
from spear_lib.training.loop import Trainer, train
from spear_lib.training.options import AdamWConfig


def run(folder, config=None, task=None, data=None, **changes):
    config = config or toy_config(**changes)
    task = task or ToyTask()
    valid = {"dev": ToyData(size=8)}
    train(task, data or ToyData(), valid, config, folder, batch_seconds=BATCH_SECONDS)
    return task


class Only:
    """Stands before an object and notes which of its public names are asked for."""

    def __init__(self, inner, asked: set[str]) -> None:
        self._inner, self._asked = inner, asked

    def __getattr__(self, name):
        self._asked.add(name)
        return getattr(self._inner, name)

    def epoch_batches(self, epoch, start_batch):
        self._asked.add("epoch_batches")
        return self._inner.epoch_batches(epoch, start_batch)


def test_the_loop_asks_its_data_for_what_the_protocol_says_and_no_more(tmp_path):
    asked: set[str] = set()
    config = toy_config(max_steps=0, max_epochs=2, memory_scan="always")
    valid = {"dev": Only(ToyData(8), validation := set())}
    train(ToyTask(), Only(ToyData(), asked), valid, config, tmp_path, batch_seconds=BATCH_SECONDS)
    promised = {name for name in vars(TrainingData) if not name.startswith("_")} | {
        "fingerprint",
        "targets_fingerprint",
    }
    assert asked == promised | {"epoch_batches"} and validation == {"epoch_batches"}


def test_a_run_says_what_it_trains(tmp_path):
    run(tmp_path, max_steps=1)
    assert read_task(tmp_path) == ToyTask.description
    # One that was made before the file was: it is written when the command is started again.
    (tmp_path / "task.json").unlink()
    run(tmp_path, max_steps=1)
    assert read_task(tmp_path).kind == "toy"


def test_the_same_command_gives_the_same_losses_and_they_fall(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b")
    first, second = losses(tmp_path / "a"), losses(tmp_path / "b")
    assert list(first) == list(range(1, 13)) and first == second
    assert losses(tmp_path / "a", "valid/dev")[12] < losses(tmp_path / "a", "valid/dev")[6]


def test_another_seed_gives_other_draws(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", seed=1)
    assert losses(tmp_path / "a")[1] != losses(tmp_path / "b")[1]


def test_clock_of_the_schedules(tmp_path):
    task = run(tmp_path, schedule_offset_batches=1000.0, accumulate_batches=2, max_steps=3)
    assert [clock.step for clock in task.clocks] == [1, 1, 2, 2, 3, 3]
    expected = [1000 + step * 2 * BATCH_SECONDS / 600 for step in (0, 0, 1, 1, 2, 2)]
    assert [clock.batch_count for clock in task.clocks] == pytest.approx(expected)
    assert [clock.hours for clock in task.clocks][-1] == pytest.approx(2 * 2 * BATCH_SECONDS / 3600)
    assert len({clock.step_key for clock in task.clocks}) == 6


def test_learning_rate_follows_eden(tmp_path):
    from spear_lib.optim import eden_factor

    run(tmp_path, lr_hours=0.05)
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    for line in lines:
        factor = eden_factor(line["step"], line["step"] * BATCH_SECONDS / 3600, 7500, 0.05, 2.0, 0.5)
        assert line["learning_rate"] == pytest.approx(0.045 * factor, rel=1e-9)


def test_gradient_is_that_of_the_sum_over_accumulated_batches(tmp_path):
    task, data = ToyTask(), ToyData()
    config = toy_config(accumulate_batches=3)
    trainer = Trainer(task, data, {}, config, tmp_path, BATCH_SECONDS, World(), None)
    weights = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    seen = {}
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.update({name: p.grad.clone() for name, p in task.model.named_parameters()})
    )
    trainer._step(trainer._batches())
    reference = ToyTask()
    reference.model.load_state_dict(weights)
    for batch, clock in zip(ToyData().epoch_batches(0), task.clocks):
        reference.begin_step(batch, clock)
        reference.compute(batch).loss_sum.backward()
    for name, parameter in reference.model.named_parameters():
        torch.testing.assert_close(seen[name], parameter.grad, msg=name)


def test_accumulated_batches_are_one_larger_batch(tmp_path):
    class NoDropout(ToyTask):
        """Its draws belong to the utterance and the step's key, which differs between micro-batches."""

        def begin_step(self, batch, clock):
            super().begin_step(batch, clock)
            self.keys = batch.keys

    values = {}
    for name, size, pieces in (("pieces", 4, 3), ("whole", 12, 1)):
        task, data = NoDropout(), ToyData(size=24, batch_size=size)
        config = toy_config(accumulate_batches=pieces, max_steps=6, log_interval=1)
        train(task, data, {}, config, tmp_path / name, batch_seconds=BATCH_SECONDS * size / 4)
        values[name] = (losses(tmp_path / name), [p.detach() for p in task.model.parameters()])
        assert [clock.hours for clock in task.clocks][-1] == pytest.approx(5 * 3 * BATCH_SECONDS / 3600)
    assert values["pieces"][0] == pytest.approx(values["whole"][0], rel=1e-5)
    for one, other in zip(values["pieces"][1], values["whole"][1]):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_metrics_line_has_what_the_report_reads(tmp_path):
    run(tmp_path, log_interval=4)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 4, 8, 12]
    last = [line for line in lines if line["kind"] == "train"][-1]
    names = "epoch loss learning_rate audio_seconds_per_second audio_hours seconds"
    assert set(names.split()) <= set(last)
    assert last["audio_hours"] == pytest.approx(12 * 15 / 3600)
    assert (tmp_path / "config.yaml").is_file() and list((tmp_path / "tensorboard").iterdir())
    assert "step 12/12" in (tmp_path / "log.txt").read_text()


def test_epoch_limit(tmp_path):
    data = ToyData()
    run(tmp_path, max_steps=0, max_epochs=2, data=data)
    assert data.seen == [(epoch, batch) for epoch in (0, 1) for batch in range(5)]


def test_minutes_limit(tmp_path):
    run(tmp_path, max_steps=0, max_minutes=1e-9)
    assert losses(tmp_path) == {} or max(losses(tmp_path)) <= 1


def test_keeps_the_last_checkpoints(tmp_path):
    run(tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["last.pt", "step-00000010.pt", "step-00000012.pt"]


def test_finished_run_does_nothing_more(tmp_path):
    run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    data = ToyData()
    run(tmp_path, data=data)
    assert data.seen == [] and (tmp_path / "metrics.jsonl").read_text() == before


def test_frozen_parameters_do_not_move_and_then_train(tmp_path):
    task = ToyTask()
    start = task.model.encoder.weight.detach().clone()
    embed = task.model.encoder_embed.weight.detach().clone()
    config = toy_config(freeze=["encoder"], freeze_steps=4, max_steps=4)
    run(tmp_path, config, task)
    assert torch.equal(task.model.encoder.weight, start)
    assert not torch.equal(task.model.encoder_embed.weight, embed)  # "encoder" does not mean "encoder_embed"
    resumed = ToyTask()
    run(tmp_path, replace(config, max_steps=9), resumed)
    moved = (resumed.model.encoder.weight - start).abs().max()
    assert moved > 0
    # The first update after the thaw is an ordinary one: (1 - beta1) * lr * rms per element.
    once = ToyTask()
    run(tmp_path / "once", replace(config, max_steps=5), once)
    change = (once.model.encoder.weight - start).square().mean().sqrt() / start.square().mean().sqrt()
    assert change < 0.1 * 0.045 * 1.5


class Undoing(ToyTask):
    """What ``after_backward`` does to the gradients of the global batch is what the optimiser gets."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def after_backward(self) -> None:
        self.calls += 1
        for parameter in self.model.encoder.parameters():
            parameter.grad.zero_()


def test_the_task_changes_the_gradients_once_per_step_before_the_optimiser(tmp_path):
    task = Undoing()
    start = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    run(tmp_path, toy_config(max_steps=3, accumulate_batches=2), task)
    assert task.calls == 3
    for name, parameter in task.model.named_parameters():
        assert torch.equal(parameter, start[name]) == name.startswith("encoder."), name


def test_the_average_takes_in_the_model_after_its_step(tmp_path):
    task = ToyTask()
    run(tmp_path, toy_config(max_steps=1, average_period=1), task)
    state = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    for name, mean in state["model_average"]["state"].items():
        torch.testing.assert_close(mean.float(), task.model.state_dict()[name], msg=name)


def test_the_learning_rate_scale_of_a_module_holds_when_it_thaws(tmp_path):
    rates = {}
    for scale in (1.0, 0.1):
        config = toy_config(
            freeze=["encoder"], freeze_steps=2, max_steps=3, lr_scales={"encoder": scale}, average_period=0
        )
        trainer = Trainer(
            ToyTask(), ToyData(), {}, config, tmp_path / str(scale), BATCH_SECONDS, World(), None
        )
        batches, encoder = trainer._batches(), trainer.task.model.encoder.weight
        for _ in range(3):
            before = encoder.detach().clone()
            trainer._step(batches)
        rates[scale] = (encoder - before).abs().max().item()
    assert rates[0.1] == pytest.approx(0.1 * rates[1.0], rel=1e-3)


def test_resume_across_the_thaw_is_exact(tmp_path):
    config = toy_config(freeze=["encoder"], freeze_steps=4, save_interval=3, max_steps=9)
    run(tmp_path / "whole", config)
    for steps in (3, 6, 9):
        run(tmp_path / "parts", replace(config, max_steps=steps))
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"freeze": ["decoder"], "freeze_steps": 3}, "freeze names 'decoder'.*it has encoder, encoder_embed"),
        ({"freeze": ["encoder", "encoder_embed", "output"], "freeze_steps": 3}, "leaves nothing to train"),
        ({"freeze": ["encoder"]}, "freeze_steps is 0"),
        ({"max_steps": 0}, "nothing ends this run"),
        ({"precision": "fp64"}, "precision must be auto, fp32, bf16 or fp16"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"save_interval": 0}, "save_interval must be at least 1"),
        ({"device": "tpu"}, "device must be auto, cpu or cuda"),
        ({"optimizer": "sgd"}, "optimizer must be scaled_adam or adamw"),
        ({"finish": ["encoder"], "optimizer": "adamw"}, "give both, or neither"),
        ({"finish": ["encoder"], "finish_steps": 3}, "finish needs optimizer adamw"),
        ({"finish": ["x"], "finish_steps": 99, "optimizer": "adamw"}, "finish names 'x'"),
    ],
)
def test_wrong_options_are_explained(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **changes)


def adamw(**changes):
    settings = AdamWConfig(warmup_steps=2, hold_steps=3, decay_steps=3, max_norm=0.0)
    values = {"optimizer": "adamw", "adamw": settings, "learning_rate": 0.01, "lr_scales": {}}
    return toy_config(**(values | changes))


def test_adamw_takes_the_mean_over_frames_and_follows_its_schedule(tmp_path):
    """Against torch's own AdamW, from the mean over three accumulated batches."""
    config = adamw(accumulate_batches=3, max_steps=4)
    task = ToyTask()
    trainer = Trainer(task, ToyData(size=24), {}, config, tmp_path, BATCH_SECONDS, World(), None)
    reference = ToyTask()
    parameters = list(reference.model.parameters())
    theirs = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.01)
    batches, data = trainer._batches(), iter([*ToyData(24).epoch_batches(0), *ToyData(24).epoch_batches(1)])
    for factor in (0.01, 0.505, 1.0, 1.0):
        trainer._step(batches)
        theirs.zero_grad()
        for clock in task.clocks[-3:]:
            batch = next(data)
            reference.begin_step(batch, clock)
            (reference.compute(batch).loss_sum / 12).backward()
        theirs.param_groups[0]["lr"] = 0.01 * factor
        theirs.step()
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * factor)
    for one, other in zip(task.model.parameters(), parameters):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_parameters_that_finish_stand_still_and_resuming_there_is_exact(tmp_path):
    config = adamw(finish=["encoder"], finish_steps=4, save_interval=2, keep_checkpoints=0, max_steps=8)
    run(tmp_path / "whole", config)
    for steps in (3, 4, 5, 8):
        run(tmp_path / "parts", replace(config, max_steps=steps))
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    models = {
        step: torch.load(tmp_path / "whole" / "checkpoints" / f"step-{step:08d}.pt")["model"]
        for step in (2, 4, 8)
    }
    assert not torch.equal(models[2]["encoder.weight"], models[4]["encoder.weight"])
    assert torch.equal(models[4]["encoder.weight"], models[8]["encoder.weight"]), "no decay either"
    assert not torch.equal(models[4]["encoder_embed.weight"], models[8]["encoder_embed.weight"])


class MovedTask(ToyTask):
    """Counts the steps in which the optimiser moved."""

    def __init__(self):
        super().__init__()
        self.moved: list[int] = []

    def after_step(self, step, total):
        self.moved.append(step)
        assert total(torch.ones(1)) == 1


@pytest.mark.parametrize("config", [adamw(max_steps=4), toy_config(max_steps=4)])
def test_the_task_is_told_of_every_step_that_moved_the_weights(tmp_path, config):
    task = MovedTask()
    trainer = Trainer(task, ToyData(), {}, config, tmp_path, BATCH_SECONDS, World(), None)
    batches = trainer._batches()
    trainer._step(batches)
    hook = task.model.output.weight.register_hook(lambda gradient: gradient * float("inf"))
    trainer._step(batches)
    hook.remove()
    trainer._step(batches)
    assert task.moved == [1, 3] and trainer.optimizer.num_skipped == 1


def test_no_batches_at_all(tmp_path):
    with pytest.raises(ValueError, match="the training data gave no batch"):
        run(tmp_path, data=ToyData(size=0))


def test_bf16_autocast_trains(tmp_path):
    run(tmp_path, precision="bf16")
    values = losses(tmp_path)
    assert all(math.isfinite(value) for value in values.values()) and values[12] < values[1]
