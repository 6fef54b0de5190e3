"""Self-distillation against the reference: targets, labels, loss, gradients, codebooks, teacher, DinoSR."""

import json

import pytest
import torch
from spidr_fixtures import (
    GOLDEN,
    assert_codebooks,
    assert_near,
    batch_of,
    begin,
    golden,
    labels_of,
    meta,
    raw_of,
    toy_task,
)

from spear_lib.optim import tri_stage_factor
from spear_lib.self_distillation.codebooks import target_vectors
from spear_lib.self_distillation.objective import perplexity
from spear_lib.self_distillation.teacher import TeacherConfig, follow
from spear_lib.training.freezing import finish
from spear_lib.training.optimisers import mean_gradients, new_optimizer, new_scheduler
from spear_lib.training.options import AdamWConfig, TrainingConfig


def alone(tensor):
    """The sum over the ranks of one."""
    return tensor


@pytest.fixture
def equal():
    inputs = golden("equal_inputs")
    return batch_of(inputs["waveform_raw"], inputs["mask"])


def gradients(task, batch):
    """Of the mean over masked frames; returns the result too."""
    begin(task, batch)
    result = task.compute(batch)
    result.loss_sum.backward()
    mean_gradients(task.model.parameters(), result.num_frames, alone)
    named = task.model.named_parameters()
    return result, {name.removeprefix("encoder."): p.grad for name, p in named if p.grad is not None}


def test_targets_labels_and_losses(equal):
    expected, facts, task = golden("equal_outputs"), meta()["equal"], toy_task()
    begin(task, equal)
    seen = task.model.view.forward(task.model.teacher, equal)
    for number, pair in enumerate(seen.pairs):
        assert_near(pair.teacher, expected[f"teacher.layer{number + 2}.ffn_out"], "teacher")
        assert_near(target_vectors(pair.teacher, pair.valid), expected[f"target{number}"], "target")
        assert_near(target_vectors(pair.teacher, None), expected[f"target{number}"], "target")
        scored = task.score(number, pair, equal)
        assert_near(scored.losses, expected["loss_per_codebook_and_frame"][number], "losses")
        log_probs = task.model.head(number, pair.student[pair.masked]).log_softmax(-1)
        assert_near(log_probs, expected["log_probs"][number], "log_probs")
    assert torch.equal(labels_of(task, equal), expected["labels_at"])
    result = task.compute(equal)
    assert result.num_frames == facts["masked"]
    assert result.loss_sum.item() / result.num_frames == pytest.approx(facts["loss"], rel=1e-5)
    values = task.summarise(result.stats)
    for number, name in enumerate(task.model.view.names):
        assert values[f"loss_{name}"] == pytest.approx(facts["loss_per_codebook"][number], rel=1e-5)
        assert values[f"target_perplexity_{name}"] == pytest.approx(facts["target_ppl"][number], rel=1e-4)
        assert values[f"prediction_perplexity_{name}"] == pytest.approx(facts["pred_ppl"][number], rel=1e-4)
        assert values[f"active_codes_{name}"] == facts["codes_used"][number]


def test_gradients(equal):
    expected, task = golden("equal_gradients"), toy_task()
    _, found = gradients(task, equal)
    assert set(found) == set(expected)
    for name, gradient in found.items():
        assert_near(gradient, expected[name], name)
    norm = torch.nn.utils.get_total_norm(found.values()).item()
    assert norm == pytest.approx(meta()["equal"]["grad_norm"], rel=1e-5)
    without = [name for name, p in task.model.named_parameters() if p.grad is None]
    assert [name for name in without if not name.startswith("teacher.")] == [
        f"encoder.{name}" for name in meta()["no_gradient"]
    ]


def test_codebooks_after_a_step_and_the_code_that_never_wins(equal):
    expected, task = golden("equal_outputs"), toy_task()
    before = {name: buffer.clone() for name, buffer in task.model.named_buffers()}
    gradients(task, equal)
    assert all(torch.equal(buffer, before[name]) for name, buffer in task.model.named_buffers())
    task.after_step(1, alone)
    assert_codebooks(task, expected, "after.")
    for number in range(3):
        for name in ("codebook", "counts"):
            after = task.model.get_buffer(f"codebooks.{number}.{name}")
            assert torch.equal(after[3], before[f"codebooks.{number}.{name}"][3])


def test_evaluation_without_a_mask(equal):
    task = toy_task()
    task.model.eval()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    equal.time_mask = None
    result = task.compute(equal)
    assert result.num_frames == 3 * 62
    assert_near(result.loss_sum / result.num_frames, golden("equal_outputs")["loss_eval_unmasked"])
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


def test_dinosr(equal):
    expected, task = golden("dinosr"), toy_task(heads_on="output")
    result, found = gradients(task, equal)
    assert_near(result.loss_sum / result.num_frames, expected["loss"], "loss")
    values = task.summarise(result.stats)
    for kind, name in (("target", "target_ppl_mean"), ("prediction", "pred_ppl_mean")):
        assert values[f"{kind}_perplexity"] == pytest.approx(expected[name].item(), rel=1e-4)
    names = [name.removeprefix("grad.") for name in expected if name.startswith("grad.")]
    assert len(names) == 8 and "student.layers.3.final_layer_norm.weight" in names
    for name in names:
        assert_near(found[name], expected[f"grad.{name}"], name)
    task.after_step(1, alone)
    assert_codebooks(task, golden("equal_outputs"), "after.")


def ragged_batch(padding=0):
    expected = golden("ragged")
    waveforms = [expected[f"u{j}.waveform_raw"] for j in range(3)]
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    stacked = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    masks = torch.nn.utils.rnn.pad_sequence([expected[f"u{j}.mask"] for j in range(3)], batch_first=True)
    return expected, batch_of(torch.nn.functional.pad(stacked, (0, padding)), masks, lengths)


@pytest.mark.parametrize("padding", [0, 5000])
def test_a_ragged_batch_is_its_utterances_alone(padding):
    expected, batch = ragged_batch(padding)
    task = toy_task()
    begin(task, batch)
    found = labels_of(task, batch)
    for j, frames in enumerate(meta()["ragged"]["frames"]):
        assert torch.equal(found[:, j, :frames], expected[f"u{j}.labels_at"])
        assert (found[:, j, frames:] == -1).all()
    result, named = gradients(task, batch)
    assert_near(result.loss_sum / result.num_frames, expected["loss"], "loss")
    for name in [name for name in expected if name.startswith("grad.")]:
        assert_near(named[name.removeprefix("grad.")], expected[name], name)
    task.after_step(1, alone)
    assert_codebooks(task, expected, "after.")


def test_statistics_over_padding_are_an_option_with_the_reference_s_damage():
    expected, batch = ragged_batch()
    task = toy_task(target_statistics="tensor")
    begin(task, batch)
    found = labels_of(task, batch)
    alone_labels = torch.full_like(found, -1)
    for j, frames in enumerate(meta()["ragged"]["frames"]):
        alone_labels[:, j, :frames] = expected[f"u{j}.labels_at"]
    facts = meta()["ragged"]["reference_with_padding"]
    assert (alone_labels >= 0).sum() == facts["labels"]
    assert (found != alone_labels).sum() == facts["labels_changed"]


def step_batches():
    inputs = golden("steps_inputs")
    return [batch_of(raw_of(inputs[f"step{s}.waveform"]), inputs[f"step{s}.mask"]) for s in (1, 2, 3)]


def assert_step(task, result, expected, step):
    assert_near(result.loss_sum.detach() / result.num_frames, expected[f"step{step}.loss"], "loss")
    assert_codebooks(task, expected, f"step{step}.")
    for name in [name for name in expected if name.startswith(f"step{step}.teacher.")]:
        assert_near(task.model.state_dict()[name.removeprefix(f"step{step}.")], expected[name], name)


def assert_final(task, expected):
    for name, value in task.model.state_dict().items():
        assert_near(value, expected[name.removeprefix("encoder.")], name)


def test_three_steps_of_sgd():
    expected, task = golden("steps_sgd"), toy_task()
    for step, batch in enumerate(step_batches(), 1):
        task.model.zero_grad(set_to_none=True)
        begin(task, batch, step)
        assert torch.equal(labels_of(task, batch), expected[f"step{step}.labels_at"])
        result, _ = gradients(task, batch)
        with torch.no_grad():
            for parameter in task.model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad
        task.after_step(step, alone)
        assert_step(task, result, expected, step)
    assert_final(task, golden("steps_sgd_final"))


def test_three_steps_of_adamw_with_freezing_and_a_teacher_that_stops():
    expected, facts, settings = (
        golden("steps_adamw"),
        meta()["steps_adamw"],
        meta()["steps_adamw"]["settings"],
    )
    task = toy_task(teacher={"threshold": settings["ema_threshold"]})
    config = TrainingConfig(
        optimizer="adamw",
        learning_rate=settings["lr"],
        adamw=AdamWConfig(
            betas=tuple(facts["betas"]),
            eps=facts["eps"],
            weight_decay=facts["weight_decay"],
            max_norm=settings["max_norm"],
            warmup_steps=settings["warmup_steps"],
            hold_steps=settings["hold_steps"],
            decay_steps=settings["decay_steps"],
        ),
        finish=["encoder.feature_extractor", "encoder.feature_projection"],
        finish_steps=settings["freeze_step"],
    )
    optimizer = new_optimizer(task.model, config)
    scheduler = new_scheduler(optimizer, config)
    for step, (batch, wanted) in enumerate(zip(step_batches(), facts["steps"]), 1):
        assert finish(task.model, config, step - 1) is wanted["extractor_frozen"]
        optimizer.zero_grad(set_to_none=True)
        begin(task, batch, step)
        assert torch.equal(labels_of(task, batch), expected[f"step{step}.labels_at"])
        result, _ = gradients(task, batch)
        scheduler.step_batch(step)
        optimizer.step()
        assert optimizer.last_norm == pytest.approx(wanted["grad_norm_before_clipping"], rel=3e-5)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(wanted["lr"], rel=1e-9)
        assert 1.0 - task.objective.teacher.weight(step) == pytest.approx(wanted["ema_decay"], rel=1e-9)
        task.after_step(step, alone)
        assert_step(task, result, expected, step)
    assert_final(task, golden("steps_adamw_final"))


def test_schedules():
    """Learning rate and both teachers' at the steps of the golden file, and the toy ones at every step."""
    content = json.loads((GOLDEN / "schedules.json").read_text())
    for name, steps in (("learning_rate", None), ("learning_rate_toy", range(60))):
        settings, values = content[name]["settings"], content[name]["values"]
        pairs = enumerate(values) if steps else ((each["step"], each["lr"]) for each in values)
        shape = [settings[f"{part}_steps"] for part in ("warmup", "hold", "decay")]
        shape += [settings["init_lr_scale"], settings["final_lr_scale"]]
        for step, rate in pairs:
            assert settings["lr"] * tri_stage_factor(step, *shape) == pytest.approx(rate, rel=1e-9), step
    teachers = {"spidr": TeacherConfig(), "dinosr": TeacherConfig(schedule="linear")}
    assert len(content["ema"]["values"]) == 42
    for each in content["ema"]["values"]:
        for name, teacher in teachers.items():
            weight = teacher.weight(each["step"])
            assert weight == pytest.approx(each[f"{name}_one_minus_decay"], rel=1e-9, abs=1e-15), each
            assert (weight == 0.0) == (each[f"{name}_decay"] == 1)
    assert TeacherConfig().weight(184_206) > 0 == TeacherConfig().weight(184_207)


def test_follow_copies_what_is_named_and_stands_still_at_zero():
    student, teacher = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before = {name: value.clone() for name, value in teacher.named_parameters()}
    follow(teacher, student, 0.0, ("bias",))
    assert all(torch.equal(value, before[name]) for name, value in teacher.named_parameters())
    follow(teacher, student, 0.25, ("bias",))
    assert torch.equal(teacher.bias, student.bias)
    assert torch.allclose(teacher.weight, 0.75 * before["weight"] + 0.25 * student.weight)


def test_perplexity_by_hand():
    assert perplexity(torch.tensor([5.0, 5.0, 0.0, 0.0]), 10) == pytest.approx(2.0, rel=1e-5)
    assert perplexity(torch.tensor([7.0, 0.0]), 7) == pytest.approx(1.0, rel=1e-5)


def test_the_teacher_schedules_refuse_what_makes_no_sense():
    for changes in ({"schedule": "cosine"}, {"start_decay": 1.5}, {"timescale": 0.0}):
        with pytest.raises(ValueError, match="teacher"):
            TeacherConfig(**changes)
