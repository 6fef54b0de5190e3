"""What the encoder keeps for its backward pass, and compiled layers: the gradients are the same."""

import pytest
import torch
import torch.nn.functional as F
from zipformer_fixtures import TINY as THREE_STACKS

from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig, activations
from spear_lib.encoders.zipformer.activations import pointwise_network, swoosh, swoosh_linear
from spear_lib.encoders.zipformer.regularisers import BalancerLimits, balance
from spear_lib.runtime import keyed_random

TINY = {**THREE_STACKS, "downsampling_factor": (1, 2), "num_encoder_layers": (1, 2)}


@pytest.fixture
def recompute(monkeypatch):
    """Recompute as on a device, in parts of seven rows, the last of which is shorter."""
    monkeypatch.setattr(activations, "_recomputes", lambda x: True)
    monkeypatch.setattr(activations, "_ROWS", 7)


def _kept_bytes(function):
    """The result of ``function`` and the bytes of distinct storages that autograd keeps after it."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    return result, sum(kept.values())


def _inputs(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def _same(one, other, inputs, tolerance):
    weights = torch.randn(one.shape, generator=torch.Generator().manual_seed(4), dtype=one.dtype)
    torch.testing.assert_close(one, other, atol=tolerance, rtol=0)
    grads = torch.autograd.grad((one * weights).sum(), inputs)
    expected = torch.autograd.grad((other * weights).sum(), inputs)
    for grad, wanted in zip(grads, expected):
        torch.testing.assert_close(grad, wanted, atol=tolerance * wanted.abs().max().item(), rtol=0)


@pytest.mark.parametrize("kind", ["L", "R"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-13)])
def test_swoosh_linear_equals_its_parts_and_keeps_only_its_input(kind, dtype, tolerance, recompute):
    inputs = _inputs((2, 30, 12), (5, 12), (5,), dtype=dtype)
    multiplier = torch.tensor([0.0, 1.5], dtype=dtype).repeat(2, 1, 6)
    x, weight, bias = inputs
    fused, kept = _kept_bytes(lambda: swoosh_linear(x, weight, bias, kind, multiplier))
    parts, kept_by_parts = _kept_bytes(lambda: F.linear(swoosh(x, kind, multiplier), weight, bias))
    _same(fused, parts, inputs, tolerance)
    assert kept_by_parts - kept == x.untyped_storage().nbytes()


def test_k2_kernels_are_used_where_they_suit(monkeypatch, recompute):
    """k2's contract, by a stand-in: value, and (value, derivative), both float32."""
    calls = []

    class K2:
        def __getattr__(self, name):
            _, kind, *what = name.split("_")

            def kernel(x):
                calls.append(name)
                assert x.is_contiguous()
                x = x.detach().float().requires_grad_()
                with torch.enable_grad():
                    y = torch.nn.functional.softplus(x - {"l": 4.0, "r": 1.0}[kind])
                    y = y - 0.08 * x - {"l": 0.035, "r": 0.313261687}[kind]
                    (slope,) = torch.autograd.grad(y.sum(), x)
                return y.detach() if what == ["forward"] else (y.detach(), slope)

            return kernel

    x, weight, bias = _inputs((6, 12), (5, 12), (5,))
    own = swoosh_linear(x, weight, bias, "R")
    monkeypatch.setattr(activations, "_k2", lambda: None)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert "k2 is not installed" in activations.swoosh_kernels(cuda)
    assert activations.swoosh_kernels(cpu) == "PyTorch's Swoosh (k2's are used on cuda)"
    monkeypatch.setattr(activations, "_k2", K2)
    assert activations.swoosh_kernels(cuda) == "k2's Swoosh"
    swoosh(x, "L")
    assert not calls  # a CPU tensor
    monkeypatch.setattr(activations, "_K2_DEVICES", ("cpu",))
    _same(swoosh_linear(x, weight, bias, "R"), own, [x, weight, bias], 1e-6)
    assert calls.count("swoosh_r_forward") == 3 and calls.count("swoosh_r_forward_and_deriv") == 2


def test_swoosh_linear_gives_frozen_weights_no_gradient(recompute):
    x, weight, bias = _inputs((3, 4), (2, 4), (2,))
    weight.requires_grad_(False)
    swoosh_linear(x, weight, bias, "L").sum().backward()
    assert weight.grad is None and x.grad is not None and bias.grad is not None


@pytest.mark.parametrize("balanced", [False, True])
def test_pointwise_network_equals_its_parts_and_keeps_no_hidden_values(balanced, recompute):
    inputs = _inputs((2, 5, 3, 4), (12, 4), (12,), (4, 12), (4,))
    x, weight1, bias1, weight2, bias2 = inputs
    positive, absolute = (0.3, 0.55), (0.2, 1.0)

    def parts():
        hidden = F.linear(x, weight1, bias1)
        if balanced:
            hidden = balance(hidden, -1, positive, absolute, 0.5)
        return F.linear(swoosh(hidden, "L"), weight2, bias2)

    limits = BalancerLimits.of(positive, absolute, 0.5) if balanced else None
    fused, kept = _kept_bytes(lambda: pointwise_network(*inputs, limits))
    expected, kept_by_parts = _kept_bytes(parts)
    _same(fused, expected, inputs, 5e-6)
    hidden_bytes = 2 * 5 * 3 * 12 * 4
    assert kept < hidden_bytes < kept_by_parts - kept
    if balanced:  # the limits are such that they act
        plain = pointwise_network(*inputs)
        grads = [
            torch.autograd.grad(y.sum(), weight1)[0] for y in (pointwise_network(*inputs, limits), plain)
        ]
        assert not torch.allclose(*grads, rtol=1e-2)


def test_fused_layers_under_autocast_follow_their_parts(recompute):
    inputs = _inputs((2, 30, 12), (24, 12), (24,), (12, 24), (12,))
    x, weight1, bias1, weight2, bias2 = inputs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = pointwise_network(*inputs)
        parts = F.linear(swoosh(F.linear(x, weight1, bias1), "L"), weight2, bias2)
        alone = swoosh_linear(F.linear(x, weight1, bias1), weight2, bias2, "L")
    assert fused.dtype == parts.dtype == alone.dtype == torch.bfloat16
    _same(fused.float(), parts.float(), inputs, 0.02)
    fused = pointwise_network(*inputs)
    assert fused.dtype == torch.float32


def _batch():
    generator = torch.Generator().manual_seed(1)
    fbank = torch.randn(3, 140, 128, generator=generator) * 3 - 6
    return fbank, torch.tensor([140, 101, 60]), keyed_random.keys("test", ids=["a", "b", "c"])


def _encoder(**changes):
    torch.manual_seed(0)
    return SpearEncoder(ZipformerConfig(**{**TINY, **changes})).train()


def _step(encoder, step, autocast=False):
    fbank, lengths, keys = _batch()
    encoder.zero_grad()
    encoder.begin_step(500.0, step, keys)

    def forward():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return encoder(fbank, lengths).encoder_out

    output, kept = _kept_bytes(forward)
    output.square().sum().backward()
    return output.detach(), {n: p.grad for n, p in encoder.named_parameters() if p.requires_grad}, kept


@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointed_stacks_have_the_same_gradients(autocast):
    """With every dropout, skip, coin and regulariser: they are functions of the step, so they repeat."""
    plain, checkpointed = _encoder(), _encoder(checkpoint_activations=True)
    partly = _encoder(checkpoint_activations=(False, True))
    for step in range(3):
        output, grads, kept = _step(plain, step, autocast)
        again, same_grads, kept_less = _step(checkpointed, step, autocast)
        assert torch.equal(output, again)
        for name, grad in grads.items():
            assert torch.equal(grad, same_grads[name]), name
        between = _step(partly, step, autocast)[2]
        assert kept_less < 0.5 * kept and kept_less < between < kept


def test_a_step_with_recomputation_is_the_step_without(monkeypatch):
    encoder = _encoder()
    output, grads, kept = _step(encoder, 2)
    grads = {name: grad.clone() for name, grad in grads.items()}
    monkeypatch.setattr(activations, "_recomputes", lambda x: True)
    again, same_grads, kept_less = _step(encoder, 2)
    torch.testing.assert_close(again, output, atol=1e-5, rtol=0)
    assert kept_less < 0.9 * kept
    for name, grad in grads.items():
        # The gradient of a down-sampling bias is a small difference of large sums.
        tolerance = (2e-3 if name.endswith("downsample.bias") else 1e-4) * grad.abs().max().item() + 1e-9
        torch.testing.assert_close(same_grads[name], grad, atol=tolerance, rtol=0, msg=name)


def test_checkpointing_refuses_a_new_step_before_backward():
    fbank, lengths, keys = _batch()
    encoder = _encoder(checkpoint_activations=True)
    encoder.begin_step(0.0, 1, keys)
    output = encoder(fbank, lengths).encoder_out
    encoder.begin_step(0.0, 2, keys)
    with pytest.raises(RuntimeError, match=r"begin_step was called between.*call backward first"):
        output.sum().backward()
    encoder.eval()  # nothing is recomputed outside training
    encoder(fbank, lengths).encoder_out.sum().backward()


def test_bf16_gradients_follow_float32():
    # Regularisers multiply small differences, and are tested on their own.
    encoder = _encoder(balancer=False, whiten=False)
    _, exact, _ = _step(encoder, 1)
    exact = {name: grad.clone() for name, grad in exact.items()}
    _, rounded, _ = _step(encoder, 1, autocast=True)
    for name, grad in exact.items():
        if grad.numel() > 100 and grad.any():  # nothing is masked here: mask_emb has none
            similarity = F.cosine_similarity(grad.flatten(), rounded[name].flatten(), dim=0).item()
            assert similarity > 0.98, (name, similarity)


@pytest.mark.slow
def test_a_compiled_layer_keeps_its_regularisers():
    """Without a graph break: the layer as one graph has the gradients of the eager layer."""
    torch._dynamo.reset()
    changes = {"downsampling_factor": (1,), "num_encoder_layers": (1,)}
    eager, compiled, plain = (_encoder(**changes), _encoder(**changes), _encoder(**changes))
    compiled.encoder.encoders[0].layers[0].compile(backend="aot_eager", fullgraph=True)
    for module in plain.encoder.modules():
        if hasattr(module, "enabled"):
            module.enabled = False  # no Balancer, no Whiten in the layer
    fbank, lengths, keys = _batch()
    grads = []
    for encoder in (eager, compiled, plain):
        encoder.begin_step(500.0, 1, keys)
        encoder(fbank, lengths).encoder_out.square().sum().backward()
        grads.append({name: p.grad for name, p in encoder.named_parameters() if p.requires_grad})
    for name, grad in grads[0].items():
        tolerance = 1e-4 * grad.abs().max().item()
        torch.testing.assert_close(grads[1][name], grad, atol=tolerance, rtol=0, msg=name)
    name = "encoder.encoders.0.layers.0.feed_forward1.in_proj.weight"
    assert not torch.allclose(grads[2][name], grads[0][name], rtol=1e-2)
