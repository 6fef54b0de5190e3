"""Whiten, convolutions and what a step does beside its encoder, fused, against eager PyTorch; see
fused_cases.py."""

import copy
import io

import pytest
import torch
from fused_tools import CPU, a_device, both_ways, gradients, normal  # noqa: F401

from spear_lib.encoders.step_context import Schedule, StepContext
from spear_lib.encoders.zipformer.convolution import convolve
from spear_lib.encoders.zipformer.modules import fork
from spear_lib.encoders.zipformer.whitening import whiten
from spear_lib.kernels import choice
from spear_lib.kernels.weights import on_working_copies
from spear_lib.optim import ScaledAdam
from spear_lib.pretraining.heads import MaskedPredictionHead
from spear_lib.runtime import keyed_random


@pytest.mark.parametrize(("shape", "groups"), [((1, 40, 3), 1), ((3, 37, 12), 4), ((2, 300, 5), 1)])
def test_whiten_of_any_shape(shape, groups):
    """Far from zero, where products of the values themselves would lose the covariance."""
    x = normal(*shape) @ torch.linspace(-1, 1, shape[2] ** 2).view(shape[2], shape[2]) + 30.0
    acting = both_ways("whiten", lambda x: whiten(x, groups, 1.0, 0.5), x, rtol=1e-4)[1]
    idle = both_ways("whiten", lambda x: whiten(x, groups, 1e6, 0.5), x)[1]
    assert torch.equal(idle, gradients(lambda x: x * 1, x)[1])
    size = float((acting - idle).norm() / idle.norm())
    assert size == pytest.approx(0.5, rel=1e-3)
    both_ways("whiten", lambda x: whiten(x[..., 1:], 1, 1.0, 0.5) * 1, x, rtol=1e-4)  # rows with a stride


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 70, 13), (1, 5, 70)])
@pytest.mark.parametrize("kernel", [1, 9, 31])
def test_depthwise_convolution_of_any_shape(shape, kernel):
    weight, bias = normal(shape[2], 1, kernel, seed=2), normal(shape[2], seed=3)
    both_ways("depthwise", convolve, normal(*shape), weight, bias)


def test_gradients_of_the_consumers_that_there_are():
    x = normal(2, 5, 6)
    with choice.running(["residual"]):
        for used in ([0], [1, 4], [0, 1, 2, 3, 4]):
            leaf = x.clone().requires_grad_()
            parts = fork(leaf)
            sum((parts[index] * (index + 1.0)).sum() for index in used).backward()
            assert torch.equal(leaf.grad, torch.full_like(x, sum(index + 1.0 for index in used)))


def test_draws_are_those_of_the_host_to_the_bit():
    keys = keyed_random.keys("draws", ids=["a", "b"]) * torch.tensor([1, -1])
    for site in (2, 1000, 1017):
        found = torch.ops.spear.keyed_uniform(keys, keyed_random.constants(site), 1500)
        assert torch.equal(found, keyed_random.uniform(keys, site, 1500))


def context_of(kernels):
    context = StepContext()
    parts = [context.new_draws(3), context.new_draws(7, Schedule((0, 0.5), (10, 0.1)), scaled=True)]
    parts.append(context.new_draws(1, Schedule(0.4)))
    context.begin(5.0, 1, keyed_random.keys("step", ids=["a", "b", "c"]))
    with choice.running(kernels):
        context.prepare(CPU)
        foreseen = context.dropout(parts[1], 0.3), context.keep(parts[2], 0.4)
        return [*foreseen, context.keep(parts[0], 0.5), context.dropout(parts[2], 0.7)]


def test_masks_made_at_once_are_those_made_one_by_one():
    """Also those of other rates, and of draws whose rate nobody foretold."""
    for found, expected in zip(context_of(["draws"]), context_of([])):
        torch.testing.assert_close(found, expected)


def trained_on_copies(kernels, steps=2):
    """A frozen bias, a parameter that autocast leaves alone, gradients of two passes added up."""
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.PReLU(9), torch.nn.Linear(9, 4))
    network[2].bias.requires_grad_(False)
    with choice.running(kernels):
        for seed in range(steps):
            with torch.autocast("cpu", torch.bfloat16):
                output = on_working_copies(network, normal(5, 6, seed=seed))
            output.float().square().sum().backward()
    assert all(type(each) is torch.nn.Parameter for each in network.parameters())
    return [output, *(each.grad for each in network.parameters() if each.requires_grad)]


def test_working_copies_give_autocasts_numbers_to_the_bit():
    found, expected = trained_on_copies(["weights"]), trained_on_copies([])
    assert all(map(torch.equal, found, expected)) and len(found) == 5


def test_the_head_on_few_classes_and_without_gradients():
    head = MaskedPredictionHead(6, 3, 5)
    hidden, targets = normal(130, 6), torch.arange(390).view(130, 3) % 7 - 1
    targets[targets == 5] = -100
    targets[targets == -1] = -100
    with torch.no_grad():
        expected = head(hidden, targets)
        with choice.running(["heads"]):
            found = head(hidden, targets)
    torch.testing.assert_close(found.loss, expected.loss)
    assert torch.equal(found.correct, expected.correct) and 0 < int(found.correct.sum()) < 390
    both_ways("heads", lambda x: head(x, targets, hidden[:, 0].abs()).total, hidden)


def optimised(kernels, state=None, steps=5):
    """Parameters and state after some steps, from ``state`` on."""
    generator = torch.Generator().manual_seed(3)
    params = [torch.nn.Parameter(normal(*shape)) for shape in ((7, 4), (9,), (7, 4), ())]
    optimizer = ScaledAdam(params, lr=0.045, size_update_period=2, clipping_update_period=3)
    if state is not None:
        optimizer.load_state_dict(copy.deepcopy(state))
    with choice.running(kernels):
        for _ in range(steps):
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()
    return params, optimizer.state_dict()


def test_a_run_goes_on_with_and_without_the_optimisers_kernels():
    """The state is the same, and a part of it that lies in common memory is saved and loaded as itself."""
    _, eager = optimised([])
    _, joint = optimised(["scaled_adam"])
    buffer = io.BytesIO()
    torch.save(joint, buffer)
    joint = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    for index, values in eager["state"].items():
        for name, value in values.items():
            torch.testing.assert_close(joint["state"][index][name], value, rtol=1e-4, atol=1e-6)
    ends = [optimised(kernels, state)[0] for kernels in ([], ["scaled_adam"]) for state in (eager, joint)]
    for end in ends[1:]:
        for found, expected in zip(end, ends[0]):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
