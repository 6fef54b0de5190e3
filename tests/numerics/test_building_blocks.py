"""Building blocks of the Zipformer against the golden numbers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from spear_lib.encoders.base import MASKED_SCORE
from spear_lib.encoders.step_context import Schedule, StepContext
from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.encoders.zipformer.activations import swoosh
from spear_lib.encoders.zipformer.layer import ZipformerLayer
from spear_lib.encoders.zipformer.modules import Downsample, bias_norm, upsample
from spear_lib.encoders.zipformer.positions import positional_table
from spear_lib.encoders.zipformer.regularisers import (
    Balancer,
    ScaleGrad,
    balance,
    limit_gradient,
    mean_over_std_limit,
    score_penalty,
)
from spear_lib.encoders.zipformer.whitening import Whiten, whiten, whitening_metric

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "building_blocks.safetensors")


@pytest.fixture(scope="module")
def notes():
    with safe_open(GOLDEN / "building_blocks.safetensors", "pt") as file:
        return json.loads(file.metadata()["notes"])


@pytest.mark.parametrize("kind", ["L", "R"])
def test_swoosh_value_and_derivative(golden, kind):
    x = golden["swoosh.x"].clone().requires_grad_()
    y = swoosh(x, kind)
    y.sum().backward()
    tolerance = 1e-6 + 1e-6 * x.detach().abs()
    assert ((y - golden[f"swoosh.{kind.lower()}.y"]).abs() <= tolerance).all()
    torch.testing.assert_close(x.grad, golden[f"swoosh.{kind.lower()}.dy"], atol=1e-6, rtol=1e-6)


def test_swoosh_dropout_multiplier_equals_unfused():
    x = torch.randn(3, 7, 5, requires_grad=True)
    multiplier = torch.tensor([0.0, 2.0, 1.0]).view(3, 1, 1).expand(3, 1, 5)
    (swoosh(x, "L", multiplier) ** 2).sum().backward()
    fused = x.grad.clone()
    x.grad = None
    ((swoosh(x, "L") * multiplier) ** 2).sum().backward()
    torch.testing.assert_close(fused, x.grad, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["bias_norm", "bias_norm_cd1"])
def test_bias_norm(golden, name):
    def arrange(tensor):
        return tensor.movedim(1, -1).contiguous() if name == "bias_norm_cd1" else tensor

    x = arrange(golden[f"{name}.x"]).clone().requires_grad_()
    bias = golden[f"{name}.bias"].clone().requires_grad_()
    log_scale = golden[f"{name}.log_scale"].clone().requires_grad_()
    y = bias_norm(x, bias, log_scale)
    y.backward(arrange(golden[f"{name}.grad_y"]))
    for value, key in ((y, "y"), (x.grad, "grad_x")):
        torch.testing.assert_close(value, arrange(golden[f"{name}.{key}"]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(bias.grad, golden[f"{name}.grad_bias"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_scale.grad, golden[f"{name}.grad_log_scale"], atol=1e-5, rtol=1e-5)


def test_bias_norm_of_an_all_zero_frame_is_finite():
    x = torch.zeros(1, 1, 4, requires_grad=True)
    bias, log_scale = torch.zeros(4, requires_grad=True), torch.zeros((), requires_grad=True)
    y = bias_norm(x, bias, log_scale)
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all() and torch.isfinite(bias.grad).all()


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_downsample_and_upsample(golden, factor):
    module = Downsample(factor)
    with torch.no_grad():
        module.bias.copy_(golden[f"downsample.{factor}.bias"])
    x = golden["downsample.x"].transpose(0, 1).clone().requires_grad_()
    y = module(x)
    y.backward(golden[f"downsample.{factor}.grad_y"].transpose(0, 1))
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(y, golden[f"downsample.{factor}.y"].transpose(0, 1), **close)
    torch.testing.assert_close(x.grad, golden[f"downsample.{factor}.grad_x"].transpose(0, 1), **close)
    torch.testing.assert_close(module.bias.grad, golden[f"downsample.{factor}.grad_bias"], **close)
    repeated = upsample(x[:, :3].detach(), factor, 3 * factor)
    assert torch.equal(repeated.transpose(0, 1), golden[f"upsample.{factor}.y"])


def test_positional_table(golden):
    close = {"atol": 5e-6, "rtol": 0}
    torch.testing.assert_close(positional_table(20, 48), golden["pos_enc.a"][0], **close)
    torch.testing.assert_close(
        positional_table(20, 48, left_context=12), golden["pos_enc.b_left"][0], **close
    )
    torch.testing.assert_close(positional_table(1500, 48)[::50], golden["pos_enc.T1500_rows"][0], **close)


@pytest.fixture(scope="module")
def layer(golden):
    layer = ZipformerLayer(StepContext(), 48, 96, 4, 8, 4, 6, 48, 31).eval()
    prefix = "layer.param."
    layer.load_state_dict({k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)})
    return layer


def _layer_inputs(golden):
    x = golden["layer.src"].transpose(0, 1).contiguous()
    valid = torch.arange(x.shape[1]) < golden["layer.lens"].unsqueeze(1)
    mask = (~valid[:, None, None]).float() * MASKED_SCORE
    return x, golden["layer.pos_emb"][0], mask, valid.unsqueeze(-1)


def test_layer_parts(golden, layer):
    x, table, mask, valid = _layer_inputs(golden)
    masked = torch.minimum(mask, golden["layer.attn_mask"].float() * MASKED_SCORE)
    weights, _, first_head = layer.self_attn_weights(x, table, mask)
    assert torch.equal(first_head, weights[:, 0])

    def check(value, key, atol=5e-6):
        torch.testing.assert_close(value, golden[f"layer.{key}"].transpose(0, 1), atol=atol, rtol=0)

    check(weights, "attn_weights")
    check(layer.self_attn_weights(x, table, masked)[0], "attn_weights_masked")
    check(layer.self_attn1(x, weights), "self_attn1", 1e-5)
    check(layer.nonlin_attention(x, first_head), "nonlin_attention", 1e-5)
    check(layer.feed_forward1(x), "feed_forward1")
    check(layer.feed_forward2(x), "feed_forward2")
    check(layer.feed_forward3(x), "feed_forward3")
    check(layer.conv_module1(x, valid), "conv_module1")
    check(layer.conv_module1(x), "conv_module1_nomask")
    check(layer.norm(x), "norm")
    check(layer.bypass_mid(x, layer.feed_forward1(x)), "bypass_mid")
    check(layer(x, table, mask, valid), "out", 1e-5)
    check(layer(x, table, masked, valid), "out_attn_mask", 1e-5)


def test_layer_gradients(golden, layer):
    x, table, mask, valid = _layer_inputs(golden)
    x.requires_grad_()
    layer(x, table, mask, valid).backward(golden["layer.grad_out"].transpose(0, 1))
    torch.testing.assert_close(x.grad, golden["layer.grad_src"].transpose(0, 1), atol=1e-4, rtol=0)
    x.grad = None
    weights, *_ = layer.self_attn_weights(x, table, mask)
    weights.backward(golden["layer.grad_attn_weights"].transpose(0, 1))
    expected = golden["layer.grad_src_from_attn_weights"].transpose(0, 1)
    torch.testing.assert_close(x.grad, expected, atol=1e-4, rtol=0)


CASES = ["layer_balancer1", "conv_balancer1", "conv_balancer2", "ff_hidden", "embed_conv", "keys"]


@pytest.mark.parametrize("case", CASES)
def test_balancer(golden, notes, case):
    limits = notes["balancer"][case]
    x = golden[f"balancer.{case}.x"].clone().requires_grad_()
    y = balance(
        x,
        limits["channel_dim"],
        (limits["min_positive"], limits["max_positive"]),
        (limits["min_abs"], limits["max_abs"]),
    )
    assert torch.equal(y, x)
    y.backward(golden[f"balancer.{case}.grad_y"])
    torch.testing.assert_close(x.grad, golden[f"balancer.{case}.grad_x"], atol=1e-6, rtol=0)
    change = (x.grad - golden[f"balancer.{case}.grad_y"]).abs() > 0
    assert change.any()  # the identity would not pass


def test_balancer_leaves_gradients_inside_the_limits_alone():
    x = torch.randn(4000, 3, requires_grad=True)
    grad = torch.randn(4000, 3)
    balance(x, -1, (0.3, 0.7), (0.2, 4.0)).backward(grad)
    assert torch.equal(x.grad, grad)


@pytest.mark.parametrize(
    ("proportion", "limit"),
    [(0.05, -1.1983), (0.1, -0.8942), (0.25, -0.4471), (0.45, -0.0817), (0.5, 0.0), (1.0, 9.6531)],
)
def test_mean_over_std_limit(proportion, limit):
    assert mean_over_std_limit(proportion) == pytest.approx(limit, abs=1e-4)


@pytest.mark.parametrize("case", ["layer", "keys", "below_limit", "embed_out"])
def test_whiten(golden, notes, case):
    settings = notes["whiten"][case]
    x = golden[f"whiten.{case}.x"].clone().requires_grad_()
    metric = whitening_metric(x, settings["num_groups"])
    torch.testing.assert_close(metric, golden[f"whiten.{case}.metric"], atol=0, rtol=1e-5)
    y = whiten(x, settings["num_groups"], settings["whitening_limit"], settings["grad_scale"])
    y.backward(golden[f"whiten.{case}.grad_y"])
    torch.testing.assert_close(x.grad, golden[f"whiten.{case}.grad_x"], atol=1e-6, rtol=0)
    assert torch.equal(x.grad, golden[f"whiten.{case}.grad_y"]) == (not settings["changed"])


def test_limit_gradient(golden):
    limited = limit_gradient(golden["limit_param.x"], golden["limit_param.grad_y"], 0.2, 1.0)
    assert torch.equal(limited, golden["limit_param.grad_x"])


def test_score_penalty(golden):
    total = golden["penalize_abs.grad_y"] + score_penalty(golden["penalize_abs.x"])
    torch.testing.assert_close(total, golden["penalize_abs.grad_x"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_scale_grad(golden, mode):
    x = torch.zeros(4, 5, requires_grad=True)
    module = ScaleGrad(0.2).train(mode == "train")
    module(x).backward(golden["scale_grad.grad_y"])
    torch.testing.assert_close(x.grad, golden[f"scale_grad.grad_x_{mode}"], atol=1e-7, rtol=0)


def test_schedules():
    for case in json.loads((GOLDEN / "schedules.json").read_text())["scheduled_float"]:
        schedule = Schedule(*[tuple(point) for point in case["points"]], default=case["default"])
        values = [schedule(batch_count) for batch_count in case["batch_count"]]
        assert values == pytest.approx(case["value_train"], abs=1e-9)
        assert schedule(None) == pytest.approx(case["value_batch_count_unset"], abs=1e-9)


def test_piecewise_linear_functions_of_the_reference():
    """Ours has no algebra of schedules (no module needs it): its values obey the reference's operations."""
    case = json.loads((GOLDEN / "schedules.json").read_text())["piecewise_linear_ops"]
    p, q = (Schedule(*[tuple(point) for point in case[name]]) for name in ("p", "q"))
    values = [(p(x), q(x)) for x in case["x"]]
    operations = {
        "p(x)": lambda p, q: p,
        "q(x)": lambda p, q: q,
        "(p+q)(x)": lambda p, q: p + q,
        "p.max(q)(x)": max,
        "p.min(q)(x)": min,
        "(p*0.5)(x)": lambda p, q: 0.5 * p,
        "p.max(3)(x)": lambda p, q: max(p, 3.0),
    }
    assert set(case) == {"p", "q", "x", *operations}
    for name, operation in operations.items():
        assert [operation(*pair) for pair in values] == pytest.approx(case[name], abs=1e-9), name


def test_schedule_points_must_increase():
    with pytest.raises(ValueError, match="increasing batch counts"):
        Schedule((0, 1.0), (0, 2.0))


def _same_schedule(own: Schedule, expected) -> bool:
    if not isinstance(expected, dict):
        return own.points == [(0.0, float(expected))]
    points = [tuple(point) for point in expected["points"]]
    return (
        len(points) == len(own.points)
        and all(a == pytest.approx(b, abs=1e-9) for a, b in zip(own.points, points))
        and own.default == expected["default"]
    )


def test_constants_and_schedules_of_every_training_time_module():
    golden = json.loads((GOLDEN / "zipformer_regularisers.json").read_text())
    with torch.device("meta"):
        encoder = SpearEncoder(ZipformerConfig.base(num_heads=4))
    modules = dict(encoder.named_modules())
    # Ours that stand for a module of the reference which holds a number only.
    seen = 0
    for name, expected in golden["modules"].items():
        kind = expected["type"]
        if kind == "Balancer":
            own = modules[name]
            assert isinstance(own, Balancer)
            assert own.channel_dim == -1  # ours is channels-last everywhere
            for field in ("min_positive", "max_positive", "min_abs", "max_abs", "prob"):
                schedule, points = getattr(own, field), expected[field]
                # The reference's defaults serve evaluation, where ours are off.
                value = Schedule(*[tuple(p) for p in points["points"]]) if isinstance(points, dict) else None
                wanted = value.points if value else [(0.0, float(points))]
                assert schedule.points == wanted, (name, field)
            assert own.grad_scale == expected["grad_scale"]
        elif kind == "Whiten":
            own = modules[name]
            assert isinstance(own, Whiten)
            assert _same_schedule(own.limit, expected["whitening_limit"]), name
            assert own.grad_scale == expected["grad_scale"] and own.num_groups == expected["num_groups"]
        elif kind == "BypassModule":
            own = modules[name]
            assert _same_schedule(own.limiter.minimum, expected["scale_min"]), name
            assert own.limiter.maximum == expected["scale_max"]
            if expected["skip_rate"] == 0.0:
                assert own.skip_rate is None, name
            else:
                assert _same_schedule(own.skip_rate, expected["skip_rate"]), name
        elif kind == "BiasNorm":
            own = modules[name].limiter
            low, high = own.minimum.points[0][1], own.maximum
            assert (low, high) == (expected["log_scale_min"], expected["log_scale_max"])
            assert own.parameter_name == "log_scale" and own.probability == 0.6
        elif kind == "Zipformer2EncoderLayer":
            for field in ("attention_skip_rate", "conv_skip_rate", "ff2_skip_rate", "ff3_skip_rate"):
                assert _same_schedule(getattr(modules[name], field), expected[field]), (name, field)
        elif kind == "RelPositionMultiheadAttentionWeights":
            assert _same_schedule(modules[name].pos_emb_skip_rate, expected["pos_emb_skip_rate"])
        elif kind == "ConvNeXt":
            assert _same_schedule(modules[name].layerdrop_rate, expected["layerdrop_rate"])
        elif kind == "ScaleGrad":
            assert modules[name].scale == expected["alpha"]
        elif kind == "Dropout2":
            assert modules[name.removesuffix(".dropout")].dropout == expected["p"]
        elif kind == "Dropout3":
            assert _same_schedule(modules["encoder_embed"].dropout, expected["p"])
        elif kind == "ActivationDropoutAndLinear":
            parent = modules[name.removesuffix(".out_proj")]
            if expected["activation"] == "SwooshL":
                assert _same_schedule(parent.dropout, expected["dropout_p"]), name
            else:
                assert expected["dropout_p"] == 0.0
        else:
            pytest.fail(f"{name}: unknown module type {kind}")
        seen += 1
    assert seen == golden["num_entries"] == 443
    own_counts = [sum(isinstance(m, kind) for m in modules.values()) for kind in (Balancer, Whiten)]
    assert own_counts == [173, 134]
