"""What Balancer, Whiten, limiter, score penalty and schedules do, as properties (spec scaling §1, §6-§9)."""

import math

import pytest
import torch

from spear_lib.encoders.step_context import Schedule, StepContext
from spear_lib.encoders.zipformer.regularisers import (
    Balancer,
    balance,
    limit_gradient,
    mean_over_std_limit,
    score_penalty,
)
from spear_lib.encoders.zipformer.whitening import Whiten, whiten, whitening_metric
from spear_lib.runtime import keyed_random

FRAMES, CHANNELS = 4000, 6


def _gaussian(mean=0.0, std=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(FRAMES, CHANNELS, generator=generator)


def _change(x, positive=(0.05, 0.95), absolute=(0.2, 4.0), grad=None, scale=0.04):
    """What the Balancer adds to the gradient, (FRAMES, CHANNELS)."""
    grad = torch.ones_like(x) if grad is None else grad
    x = x.clone().requires_grad_()
    balance(x, -1, positive, absolute, scale).backward(grad)
    return x.grad - grad


@pytest.mark.parametrize("grad_sign", [1.0, -1.0])
def test_balancer_moves_the_mean_into_the_range(grad_sign):
    """Descent on the added term raises what is too rarely positive, whatever the sign of the gradient."""
    grad = grad_sign * torch.ones(FRAMES, CHANNELS)
    too_low, too_high = _gaussian(-2.0), _gaussian(2.0)
    assert (_change(too_low, positive=(0.3, 0.7), grad=grad).mean(dim=0) < 0).all()
    assert (_change(too_high, positive=(0.3, 0.7), grad=grad).mean(dim=0) > 0).all()


@pytest.mark.parametrize(("std", "sign"), [(0.01, -1), (50.0, 1)])
def test_balancer_moves_the_size_into_the_range(std, sign):
    x = _gaussian(0.0, std)
    change = _change(x)
    # Along x the gradient grows (the values shrink under descent) where they are too large, and vice versa.
    assert (torch.sign((change * x).sum(dim=0)) == sign).all()


def test_descent_on_the_added_term_alone_ends_inside_the_limits():
    x = torch.cat([_gaussian(-2.0), _gaussian(3.0, 0.05, seed=1), _gaussian(0.0, 9.0, seed=2)], dim=1)
    positive, absolute = (0.3, 0.7), (0.2, 4.0)
    for _ in range(400):
        x = x - _change(x, positive, absolute, scale=1.0) * 0.05 * x.std(dim=0)
    ratio = x.mean(dim=0) / x.std(dim=0)
    low, high = (mean_over_std_limit(p) for p in positive)
    assert ((ratio > low - 0.1) & (ratio < high + 0.1)).all()
    rms = x.square().mean(dim=0).sqrt() / math.sqrt(math.pi / 2)
    assert ((rms > 0.9 * absolute[0]) & (rms < 1.1 * absolute[1])).all()
    assert torch.equal(_change(0.5 * _gaussian(), positive, absolute), torch.zeros(FRAMES, CHANNELS))


def test_size_of_what_the_balancer_adds():
    change = _change(_gaussian(-2.0), positive=(0.3, 0.7))
    torch.testing.assert_close(
        change.norm(dim=0), torch.full((CHANNELS,), 0.04 * FRAMES**0.5), rtol=1e-4, atol=0
    )
    assert torch.equal(
        _change(_gaussian(-2.0), (0.3, 0.7), grad=torch.zeros(FRAMES, CHANNELS)).abs().max(),
        torch.tensor(0.0),
    )
    one_bad = _gaussian()
    one_bad[:, 2] *= 100.0
    changed = _change(one_bad).abs().amax(dim=0) > 0
    assert changed.tolist() == [False, False, True, False, False, False]  # channels stand alone


def test_balancer_and_whiten_of_constant_and_zero_inputs_stay_finite():
    for x in (torch.zeros(50, 4), torch.full((50, 4), 3.0)):
        for act in (lambda v: balance(v, -1, (0.3, 0.7), (0.2, 4.0)), lambda v: whiten(v, 2, 1.5, 0.01)):
            value = x.clone().requires_grad_()
            act(value).backward(torch.ones_like(x))
            assert value.grad.isfinite().all()


def _correlated(groups=1):
    """Channels that all hold the same strong signal, in each group."""
    x = _gaussian()
    common = _gaussian(seed=3)[:, :groups].repeat_interleave(CHANNELS // groups, dim=1)
    return x + 3.0 * common


@pytest.mark.parametrize("groups", [1, 2])
def test_descent_on_what_whiten_adds_lowers_the_metric(groups):
    x = _correlated(groups)
    before = float(whitening_metric(x, groups))
    for _ in range(20):
        value = x.clone().requires_grad_()
        whiten(value, groups, 1.2, 0.01).backward(torch.ones_like(x))
        x = x - 10.0 * (value.grad - 1.0)
    assert float(whitening_metric(x, groups)) < 0.8 * before


def test_size_of_what_whiten_adds_and_nothing_below_the_limit():
    x, grad = _correlated(), _gaussian(seed=5)
    metric = float(whitening_metric(x))
    for limit, expected in ((0.99 * metric, 0.02 * float(grad.norm())), (1.01 * metric, 0.0)):
        value = x.clone().requires_grad_()
        whiten(value, 1, limit, 0.02).backward(grad)
        assert float((value.grad - grad).norm()) == pytest.approx(expected, rel=1e-3)
    assert float(whitening_metric(_gaussian())) == pytest.approx(1 + CHANNELS / FRAMES, abs=0.01)
    scaled = x * 7.0 + 100.0  # neither scale nor mean matters
    assert float(whitening_metric(scaled)) == pytest.approx(metric, rel=1e-3)


def test_padding_is_seen_by_both_only_as_values():
    """Statistics are over all frames given: the same set in another order gives the same changes."""
    x = _correlated()
    order = torch.randperm(FRAMES, generator=torch.Generator().manual_seed(1))
    for act in (lambda v: balance(v, -1, (0.45, 0.55), (0.1, 0.5)), lambda v: whiten(v, 1, 1.2, 0.01)):
        one, other = x.clone().requires_grad_(), x[order].clone().requires_grad_()
        act(one).sum().backward()
        act(other).sum().backward()
        torch.testing.assert_close(one.grad[order], other.grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_count", [0.0, 4000.0, 8000.0, 50000.0])
def test_coins_follow_the_schedule_of_the_balancer_and_the_share_of_whiten(batch_count):
    context = StepContext()
    balancer = Balancer(context, -1, 0.3, 0.7, 0.2, 4.0).train()
    whitener = Whiten(context, 1.1, 0.01).train()
    x = _correlated()[:50] + 5.0
    acted = torch.zeros(2)
    steps = 600
    for step in range(steps):
        context.begin(batch_count, keyed_random.key("step", step), torch.zeros(1, dtype=torch.int64))
        for index, module in enumerate((balancer, whitener)):
            value = x.clone().requires_grad_()
            module(value).sum().backward()
            acted[index] += bool((value.grad != 1.0).any())
    expected = torch.tensor([Schedule((0, 0.5), (8000, 0.125))(batch_count), 0.25])  # Whiten: a quarter
    assert (acted / steps - expected).abs().max() < 0.065
    for module in (balancer.eval(), whitener.eval()):
        value = x.clone().requires_grad_()
        module(value).sum().backward()
        assert (value.grad == 1.0).all()


def test_limiter_leads_values_back_and_leaves_the_rest_alone():
    value = torch.tensor([-1.0, 0.1, 0.5, 1.2, 1.2, -1.0])
    grad = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0])  # the example of spec scaling §6
    assert limit_gradient(value, grad, 0.2, 1.0).tolist() == [-1.0, -1.0, -1.0, 1.0, 1.0, -1.0]
    limited = limit_gradient(value, torch.randn(6), 0.2, 1.0)
    outside = (value < 0.2) | (value > 1.0)
    assert ((limited * (value - 0.6))[outside] >= 0).all()  # descent leads inside


def test_score_penalty_acts_above_its_limit_only():
    scores = torch.tensor([-30.0, -25.0, 3.0, 26.0])  # the example of spec scaling §9
    assert score_penalty(scores).tolist() == pytest.approx([-1e-4, 0.0, 0.0, 1e-4])


def test_schedule_values():
    schedule = Schedule((0, 0.3), (20000, 0.1))
    assert [schedule(b) for b in (-5, 0, 5000, 20000, 30000)] == pytest.approx([0.3, 0.3, 0.25, 0.1, 0.1])
    assert (
        schedule(None) == 0.0 and Schedule((0, 1.0), default=0.4)(None) == 0.4 and Schedule(3.0)(None) == 3.0
    )
