"""ScaledAdam, Eden and parameter groups: exact resume, skipped steps, late starts, errors."""

import copy
import io
import logging

import pytest
import torch
from torch import nn

from spear_lib.optim import Eden, ScaledAdam, parameter_groups


def _model(seed=0):
    torch.manual_seed(seed)
    model = nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)),
            "encoder_embed": nn.Linear(4, 4),
            "head": nn.Linear(6, 3),
        }
    )
    model.register_parameter("log_scale", nn.Parameter(torch.tensor(0.3)))
    return model


def _set_gradients(model, step, scale=1.0):
    generator = torch.Generator().manual_seed(1000 + step)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator) * scale


def _values(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _equal_state(first, second):
    assert first.keys() == second.keys()
    for index, state in first.items():
        assert state.keys() == second[index].keys()
        for name, value in state.items():
            other = second[index][name]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


@pytest.mark.parametrize("variant", ["spear", "master"])
@pytest.mark.parametrize("broken_at", [7, 115])
def test_resume_is_bit_exact(variant, broken_at):
    """State through a file with weights_only loading; 130 steps pass a clipping threshold."""
    runs = []
    for interrupted in (False, True):
        model = _model()
        optimizer = ScaledAdam(parameter_groups(model, 0.04, {"encoder": 0.1}), lr=0.04, variant=variant)
        schedule = Eden(optimizer, 50, 10)
        for step in range(130):
            if interrupted and step == broken_at:
                file = io.BytesIO()
                torch.save([model.state_dict(), optimizer.state_dict(), schedule.state_dict()], file)
                file.seek(0)
                saved = torch.load(file, weights_only=True)
                model = _model(seed=99)
                model.load_state_dict(saved[0])
                # Another learning rate on the command line: the run keeps its own.
                optimizer = ScaledAdam(
                    parameter_groups(model, 0.01, {"encoder": 0.1}), lr=0.01, variant=variant
                )
                schedule = Eden(optimizer, 50, 10)
                optimizer.load_state_dict(saved[1])
                schedule.load_state_dict(saved[2])
            schedule.step_batch(step + 1)
            schedule.step_epoch(step / 20)
            _set_gradients(model, step, 10.0 if step % 9 == 5 else 1.0)
            optimizer.step()
        runs.append((_values(model), optimizer.state_dict()))
    assert torch.equal(runs[0][0], runs[1][0])
    _equal_state(runs[0][1]["state"], runs[1][1]["state"])
    assert [group["lr"] for group in runs[0][1]["param_groups"]] == [
        group["lr"] for group in runs[1][1]["param_groups"]
    ]
    assert any(int(state.get("num_clipped", 0)) > 0 for state in runs[0][1]["state"].values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("at_step", [0, 3, 105])
def test_step_with_a_norm_that_is_not_finite_changes_nothing(bad, at_step, caplog):
    model, witness = _model(), _model()
    groups = parameter_groups(model, 0.04, {"encoder": 0.1})
    optimizer = ScaledAdam(groups, lr=0.04)
    reference = ScaledAdam(parameter_groups(witness, 0.04, {"encoder": 0.1}), lr=0.04)
    for step in range(at_step + 6):
        if step == at_step:
            before = _values(model)
            saved = copy.deepcopy(optimizer.state_dict()["state"])
            _set_gradients(model, step)
            model["head"].weight.grad[1, 2] = bad
            with caplog.at_level(logging.WARNING):
                optimizer.step()
            assert optimizer.num_skipped == 1 and optimizer.state_dict()["num_skipped"] == 1
            assert torch.equal(_values(model), before)
            if at_step:
                _equal_state(saved, optimizer.state_dict()["state"])
            assert "step skipped (1 so far)" in caplog.text
            assert ("head.weight" if bad != 1e30 else "overflows") in caplog.text
        _set_gradients(model, step)
        _set_gradients(witness, step)
        optimizer.step()
        reference.step()
    assert torch.equal(_values(model), _values(witness))


@pytest.mark.parametrize("name", ["encoder.1.weight", "log_scale", "head.bias"])
@pytest.mark.parametrize(("scale", "reported"), [(3.0, False), (10000.0, True)])
def test_an_exploding_gradient_names_its_tensor(name, scale, reported, caplog):
    model = _model()
    model.register_parameter("another_scale", nn.Parameter(torch.tensor(0.1)))
    optimizer = ScaledAdam(parameter_groups(model, 0.04), lr=0.04)
    for step in range(103):
        _set_gradients(model, step)
        if step == 102:
            dict(model.named_parameters())[name].grad.mul_(scale)
        with caplog.at_level(logging.WARNING):
            optimizer.step()
    text = f"of its square is that of {name}"
    assert (text in caplog.text) == reported and (float(optimizer.last_clip_factors[0]) < 0.1) == reported


def test_group_that_starts_late_is_treated_as_new():
    """spec optim §5: un-freezing after many steps must not give updates that are too large."""
    late, fresh = _model(), _model()
    optimizer = ScaledAdam(parameter_groups(late, 0.04, {"encoder": 0.1}), lr=0.04)
    for step in range(150):
        _set_gradients(late, step)
        for parameter in late["encoder"].parameters():
            parameter.grad = None if step % 2 else torch.zeros_like(parameter)
        optimizer.step()
    assert torch.equal(late["encoder"][0].weight, fresh["encoder"][0].weight)
    reference = ScaledAdam(parameter_groups(fresh, 0.04, {"encoder": 0.1}), lr=0.04)
    for step in range(5):
        _set_gradients(late, step)
        _set_gradients(fresh, step)
        optimizer.step()
        reference.step()
        assert float(optimizer.last_clip_factors[0]) == 1.0
    for name, value in fresh["encoder"].state_dict().items():
        assert torch.equal(late["encoder"].state_dict()[name], value)


def test_missing_gradient_is_a_zero_gradient():
    first, second = _model(), _model()
    optimizers = [ScaledAdam(parameter_groups(model, 0.04), lr=0.04) for model in (first, second)]
    for step in range(12):
        for model in (first, second):
            _set_gradients(model, step)
        if step > 5:
            first["encoder"][1].weight.grad = None
            second["encoder"][1].weight.grad.zero_()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(_values(first), _values(second))
    assert not torch.equal(first["encoder"][1].weight, _model()["encoder"][1].weight)


def test_scale_of_the_loss_does_not_matter():
    results = []
    for scale in (1.0, 1024.0):
        model = _model()
        optimizer = ScaledAdam(parameter_groups(model, 0.04), lr=0.04, eps=1e-30)
        for step in range(120):
            _set_gradients(model, step, scale * (5.0 if step % 7 == 3 else 1.0))
            optimizer.step()
        results.append(_values(model))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_stacking_changes_nothing():
    """Three tensors of one shape give what three optimisers with one tensor each give."""
    torch.manual_seed(4)
    tensors = [nn.Parameter(torch.randn(5, 3)) for _ in range(3)]
    alone = [nn.Parameter(t.detach().clone()) for t in tensors]
    together = ScaledAdam(tensors, lr=0.04, clipping_scale=None)
    separate = [ScaledAdam([t], lr=0.04, clipping_scale=None) for t in alone]
    for _ in range(25):
        for a, b in zip(tensors, alone):
            a.grad = torch.randn(5, 3)
            b.grad = a.grad.clone()
        kept = tensors[0].grad.clone()
        together.step()
        assert torch.equal(tensors[0].grad, kept)  # the caller's gradients stay what they were
        for optimizer in separate:
            optimizer.step()
    for a, b in zip(tensors, alone):
        torch.testing.assert_close(a, b)


def test_training_lowers_a_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(64, 8)
    y = x[:, :1] * x[:, 1:2]
    optimizer = ScaledAdam(parameter_groups(model, 0.02), lr=0.02)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (model(x) - y).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_parameter_groups():
    model = _model()
    model["head"].bias.requires_grad_(False)
    groups = parameter_groups(model, 0.1, {"encoder": 0.5, "encoder.1": 0.1, "head.weight": 0.05})
    names = [group["names"] for group in groups]
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.05, 0.005])
    assert names[0] == ["log_scale", "encoder_embed.weight", "encoder_embed.bias"]
    assert names[1] == ["encoder.0.weight", "encoder.0.bias", "encoder.2.weight", "encoder.2.bias"]
    # Equal products fall together: 0.5 * 0.1 = 0.05.
    assert names[2] == ["encoder.1.weight", "encoder.1.bias", "head.weight"]
    parameters = dict(model.named_parameters())
    for group in groups:
        assert all(parameters[name] is p for name, p in zip(group["names"], group["params"]))
    assert [group["lr"] for group in parameter_groups(model, 0.1, {"": 0.5})] == [0.05]
    with pytest.raises(
        ValueError, match="no parameter lies under 'decoder'; the model has encoder, encoder_embed"
    ):
        parameter_groups(model, 0.1, {"decoder": 0.5})
    with pytest.raises(ValueError, match="'enc'"):
        parameter_groups(model, 0.1, {"enc": 0.5})
    with pytest.raises(ValueError, match="'head' has the factor 0"):
        parameter_groups(model, 0.1, {"head": 0})
    with pytest.raises(ValueError, match="every one of them is frozen"):
        parameter_groups(model.requires_grad_(False), 0.1)


def test_added_group_takes_part():
    model = _model()
    groups = parameter_groups(model, 0.04, {"encoder": 0.1})
    optimizer = ScaledAdam(groups[:1], lr=0.04)
    _set_gradients(model, 0)
    optimizer.step()
    before = model["encoder"][0].weight.detach().clone()
    optimizer.add_param_group(groups[1])
    schedule = Eden(optimizer, 100, 10, warmup_batches=0)
    optimizer.step()
    assert len(optimizer.last_clip_factors) == len(schedule.get_last_lr()) == 2
    assert schedule.get_last_lr() == pytest.approx([groups[0]["lr"], groups[1]["lr"]])
    assert not torch.equal(before, model["encoder"][0].weight)


def test_errors():
    parameter = [nn.Parameter(torch.ones(3))]
    with pytest.raises(ValueError, match="variant is 'adam'; choose one of spear, master"):
        ScaledAdam(parameter, variant="adam")
    with pytest.raises(ValueError, match="lr is 3"):
        ScaledAdam(parameter, lr=3)
    with pytest.raises(ValueError, match="betas"):
        ScaledAdam(parameter, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="clipping_scale is -2"):
        ScaledAdam(parameter, clipping_scale=-2)
    with pytest.raises(ValueError, match="size_update_period 0"):
        ScaledAdam(parameter, size_update_period=0)
    spear, master = ScaledAdam(parameter), ScaledAdam(parameter, variant="master")
    with pytest.raises(ValueError, match="variant 'master', this one is 'spear'"):
        spear.load_state_dict(master.state_dict())
    with pytest.raises(ValueError, match="lr_batches 0"):
        Eden(spear, 0, 10)
    with pytest.raises(ValueError, match="warmup_start 2"):
        Eden(spear, 10, 10, warmup_start=2)
    with pytest.raises(ValueError, match="has 2 learning rates, the optimiser 1 groups"):
        Eden(spear, 10, 10).load_state_dict({"base_lrs": [0.1, 0.2], "epoch": 0, "batch": 0})
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        ScaledAdam(embedding.parameters()).step()
