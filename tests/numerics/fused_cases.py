"""The fused kernels against eager PyTorch, under Triton's interpreter: run by test_fused_kernels.py, in a
process of its own, since the interpreter must be chosen before Triton is first imported."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fused_tools import CPU, a_device, both_ways, gradients, normal  # noqa: F401
from zipformer_fixtures import TINY

from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.encoders.zipformer.activations import pointwise_network, swoosh_linear
from spear_lib.encoders.zipformer.convolution import gated
from spear_lib.encoders.zipformer.fused import zipformer_kernels
from spear_lib.encoders.zipformer.modules import add, bias_norm, interpolate
from spear_lib.encoders.zipformer.regularisers import BalancerLimits, apply_limits
from spear_lib.kernels import balancer as balancer_module
from spear_lib.kernels import choice, select
from spear_lib.kernels import swoosh as swoosh_module
from spear_lib.kernels.weights import WEIGHTS
from spear_lib.optim.fused import SCALED_ADAM
from spear_lib.pretraining.heads import HEADS
from spear_lib.runtime import keyed_random

CONFIG = ZipformerConfig(**TINY)
KERNELS = {kernel.name: kernel for kernel in [*zipformer_kernels(CONFIG), WEIGHTS, HEADS, SCALED_ADAM]}
FORMATS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": pytest.param(torch.float16, marks=pytest.mark.slow),
}


@pytest.mark.parametrize("dtype", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_agrees_with_the_eager_path(name, dtype):
    """Values and gradients, at widths and lengths that are no multiple of a block."""
    if KERNELS[name].dtype not in (None, dtype):
        pytest.skip("it has one number format")
    assert choice.compare(KERNELS[name], CPU, dtype) == ""


SHAPES = {
    "one frame": (1, 1, 3),
    "odd": (3, 7, 13),
    "wider than a tile": (2, 3, 130),
    "more rows than a tile": (2, 700, 3),
    "empty": (2, 0, 4),
}


@pytest.mark.parametrize("kind", ["L", "R"])
@pytest.mark.parametrize("shape", [shape for name, shape in SHAPES.items() if name != "empty"])
def test_swoosh_of_any_shape(shape, kind):
    """Beside torch's own derivative of the formula, far into both tails."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 20
    weight, bias = torch.randn(5, shape[-1]), torch.randn(5)
    keep = (torch.rand(shape[0], 1, shape[2], generator=torch.Generator().manual_seed(2)) > 0.3) / 0.7
    shift, offset = {"L": (4.0, 0.035), "R": (1.0, 0.313261687)}[kind]

    def formula(x, weight, bias):
        y = F.softplus(x.double() - shift, threshold=200) - 0.08 * x.double() - offset
        return F.linear((y * keep).float(), weight, bias)

    found = both_ways("swoosh", lambda *leaves: swoosh_linear(*leaves, kind, keep), x, weight, bias)
    for ours, theirs in zip(found, gradients(formula, x, weight, bias)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_swoosh_of_a_frozen_layer_and_of_a_transposed_input():
    x, weight, bias = torch.randn(2, 6, 5).transpose(1, 2), torch.randn(4, 6), torch.randn(4)
    both_ways("swoosh", lambda x: swoosh_linear(x, weight, bias, "R"), x)
    both_ways("swoosh", lambda weight: swoosh_linear(x, weight, bias, "R"), weight)
    two = torch.randn(7, 6), torch.randn(7), torch.randn(3, 7), torch.randn(3)
    both_ways("swoosh", lambda *two: pointwise_network(x, *two), *two)


def test_kernels_leave_alone_what_they_do_not_know():
    """float64, and multipliers of other shapes, take the eager path: the same bits."""
    x, weight, bias = torch.randn(2, 5, 6), torch.randn(4, 6), torch.randn(4)
    for values, multiplier in ((x.double(), None), (x, torch.tensor(2.0)), (x, torch.rand(2, 5, 6))):
        inputs = [values, weight.to(values.dtype), bias.to(values.dtype)]
        layer = partial(swoosh_linear, kind="L", multiplier=multiplier)
        eager = gradients(layer, *inputs)
        with choice.running(["swoosh"]):
            found = gradients(layer, *inputs)
        assert all(map(torch.equal, found, eager))


@pytest.mark.parametrize("shape", [shape for name, shape in SHAPES.items() if name != "one frame"])
def test_balancer_of_any_shape(shape):
    if 0 in shape:
        shape = (2, 65, 3)
    scale = torch.tensor([0.01, 1.0, 30.0]).repeat(50)[: shape[-1]]
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.5) * scale
    limits = BalancerLimits.of((0.4, 0.6), (0.2, 4.0), 0.5)
    grads = both_ways("balancer", lambda x: apply_limits(x, -1, limits), x)
    assert not torch.allclose(grads[1], gradients(lambda x: x * 1, x)[1])  # the limits act
    both_ways("balancer", lambda x: apply_limits(x[..., 1:], -1, limits) * 1, x)  # rows with a stride
    both_ways("balancer", lambda x: apply_limits(x.transpose(1, 2), -1, limits) * 1, x)
    both_ways("balancer", lambda x: apply_limits(x, 1, limits) * 1, x)  # another axis: the eager path


ODD = [(1, 1, 3), (3, 37, 13), (2, 5, 130)]


@pytest.mark.parametrize("shape", ODD)
def test_gated_linear_units_of_any_shape(shape):
    batch, frames, channels = shape
    x = normal(batch, frames, 2 * channels)
    valid = torch.arange(frames) < torch.arange(frames, frames - batch, -1).clamp(min=1).unsqueeze(1)
    limits = BalancerLimits.of((0.5, 1.0), (1.1, 4.0), 0.5)
    both_ways("gated", gated, x)
    grads = both_ways("gated", partial(gated, valid=valid.unsqueeze(-1), limits=limits), x)
    assert not grads[0][~valid].any() and not grads[1][~valid].any()
    with choice.running(["gated", "balancer"]):
        found = gradients(partial(gated, limits=limits), x)
    torch.testing.assert_close(found, gradients(partial(gated, limits=limits), x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", ODD)
def test_bypass_and_norm_of_any_shape(shape):
    batch, _, channels = shape
    x, h = normal(*shape), normal(*shape, seed=2)
    dropped = torch.tensor([1.0, 0.0, 1.0])[:batch].view(-1, 1, 1)
    for mask in (None, dropped):
        found = both_ways("residual", lambda x, h, mask=mask: add(x, h, mask)[0], x, h)
    assert batch == 1 or torch.equal(found[0][1], x[1])

    def between(x, h, scale):
        return interpolate(x, h, scale)[0]

    both_ways("bypass", between, x, h, normal(channels, seed=3))
    skipped = torch.tensor([0.0, 1.0, 0.3])[:batch].view(-1, 1, 1) * torch.ones(channels)
    found = both_ways("bypass", between, x, h, skipped)
    assert torch.equal(found[0][0], x[0]) and (batch == 1 or torch.equal(found[0][1], h[1]))
    both_ways("bias_norm", bias_norm, x, normal(channels, seed=4), torch.tensor(0.7))
    silent = torch.zeros(shape)  # an all-zero frame stays finite
    with choice.running(["bias_norm"]):
        assert all(
            torch.isfinite(each).all() for each in gradients(bias_norm, silent, silent[0, 0], x[0, 0, 0])
        )


def test_a_branch_reads_what_autocast_would_make_of_the_sum():
    x, branch = normal(2, 5, 6), normal(2, 5, 6, seed=2).bfloat16()
    with choice.running(["residual"]):
        y, read = add(x, branch)
        assert read is y and y.dtype == torch.float32  # no autocast
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, read = add(x, branch)
            assert add(x, branch, is_read=False)[1].dtype == torch.float32
    assert torch.equal(y, x + branch) and torch.equal(read, y.bfloat16())


# ------------------------------------------------------------------------------------------ whole encoders
def step(changes, autocast, kernels):
    torch.manual_seed(0)
    changes = {"downsampling_factor": (1, 2), "num_encoder_layers": (1, 1), **changes}
    encoder = SpearEncoder(ZipformerConfig(**{**TINY, **changes})).train()
    generator = torch.Generator().manual_seed(1)
    fbank = torch.randn(2, 90, 128, generator=generator) * 3 - 6
    encoder.begin_step(500.0, 3, keyed_random.keys("test", ids=["a", "b"]))
    place = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext()
    with choice.running(kernels):
        with place:
            output = encoder(fbank, torch.tensor([90, 61])).encoder_out
        output.float().square().sum().backward()
    return output.detach(), {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}


CAUSAL = {"causal": True, "chunk_size": (16,), "left_context_frames": (32,)}
MODELS = {
    "padded": {},
    "chunks": CAUSAL,
    "reference padding": {"padding": "reference", "checkpoint_activations": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_has_the_gradients_of_the_eager_step(name):
    """With padding, every dropout, skip and regulariser; in float32: nothing hides behind rounding."""
    output, grads = step(MODELS[name], False, ())
    found, found_grads = step(MODELS[name], False, KERNELS)
    torch.testing.assert_close(found, output, atol=1e-5, rtol=0)
    assert found_grads.keys() == grads.keys()
    for each, grad in grads.items():
        # The gradient of a down-sampling bias is a small difference of large sums; so is the variance of the
        # front end's channels, which their Balancers divide by.
        differences = each.endswith("downsample.bias") or each.startswith("encoder_embed.")
        tolerance = (2e-3 if differences else 2e-4) * grad.abs().max().item() + 1e-9
        torch.testing.assert_close(found_grads[each], grad, atol=tolerance, rtol=0, msg=each)


@pytest.mark.slow
def test_a_training_step_in_bf16_follows_float32_as_the_eager_one_does():
    plain = {"balancer": False, "whiten": False}  # they multiply small differences, and are tested alone
    _, exact = step(plain, False, ())
    _, eager = step(plain, True, ())
    _, found = step(plain, True, KERNELS)
    for name, grad in exact.items():
        if grad.numel() > 100 and grad.any():
            near, ours = (
                F.cosine_similarity(grad.flatten(), other[name].float().flatten(), dim=0).item()
                for other in (eager, found)
            )
            assert ours > min(near, 0.995) - 0.01, (name, ours, near)


# ---------------------------------------------------------------------------------------- the comparison
TWO = [KERNELS["swoosh"], KERNELS["balancer"]]


def test_a_wrong_kernel_is_switched_off(monkeypatch, caplog):
    right = select("fused", CPU, torch.bfloat16, TWO)
    assert right == "fused swoosh, balancer (as asked; each agrees with eager PyTorch here)"
    monkeypatch.setattr(swoosh_module, "_CONSTANTS", {"L": (4.0, 0.135), "R": (1.0, 0.313261687)})
    line = select("fused", CPU, torch.bfloat16, TWO)
    assert "swoosh" not in choice._running and "balancer" in choice._running
    assert line.endswith("; switched off: swoosh (see the warnings)")
    assert (
        "the fused kernel swoosh is switched off: result 0 is" in caplog.text and "in bfloat16" in caplog.text
    )


def test_a_kernel_that_is_wrong_in_the_gradient_alone_is_switched_off(monkeypatch):
    honest = swoosh_module.swoosh_both

    def wrong(x, grad, multiplier, kind):
        grad_x, value = honest(x, grad, multiplier, kind)
        return grad_x * 1.05, value

    monkeypatch.setattr(swoosh_module, "swoosh_both", wrong)
    assert "off (RMS, relative)" in choice.compare(KERNELS["swoosh"], CPU, torch.bfloat16)


def test_a_kernel_that_does_not_compile_is_switched_off(monkeypatch, caplog):
    class Broken:
        def __getitem__(self, grid):
            raise RuntimeError("ptxas fatal: no such\n instruction")

    monkeypatch.setattr(balancer_module, "_gradient", Broken())
    line = select("fused", CPU, torch.float32, TWO)
    assert "balancer" not in choice._running and "switched off: balancer" in line
    assert "it fails here, RuntimeError: ptxas fatal: no such instruction" in caplog.text


def test_nan_does_not_pass(monkeypatch):
    monkeypatch.setattr(swoosh_module, "_CONSTANTS", {"L": (4.0, float("nan")), "R": (1.0, 0.313261687)})
    assert "nan off" in choice.compare(KERNELS["swoosh"], CPU, torch.float32)
