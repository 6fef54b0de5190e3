"""Training mode of the encoder: keyed randomness, batch independence, initialisation."""

import math

import pytest
import torch
from zipformer_fixtures import tiny

from spear_lib.encoders.step_context import Schedule
from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.encoders.zipformer.modules import Bypass
from spear_lib.encoders.zipformer.regularisers import Balancer
from spear_lib.encoders.zipformer.stack import _FeatureMasks
from spear_lib.encoders.zipformer.whitening import Whiten
from spear_lib.runtime import keyed_random


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    fbank = torch.randn(4, 90, 128, generator=generator) * 3 - 6
    lengths = torch.tensor([90, 77, 60, 40])
    time_mask = torch.rand(4, 90, generator=generator) < 0.3
    keys = keyed_random.keys("test", ids=["a", "b", "c", "d"])
    return fbank, lengths, time_mask, keys


def _step(encoder, batch, rows=(0, 1, 2, 3), step_key=7, batch_count=100.0):
    fbank, lengths, time_mask, keys = batch
    rows = list(rows)
    encoder.zero_grad()
    encoder.begin_step(batch_count, step_key, keys[rows])
    output = encoder(fbank[rows], lengths[rows], time_mask[rows])
    frames = torch.arange(output.encoder_out.shape[1]) < output.lengths.unsqueeze(1)
    output.encoder_out[frames].square().sum().backward()
    return output, {name: p.grad for name, p in encoder.named_parameters() if p.requires_grad}


def test_a_step_is_a_function_of_its_keys(batch):
    encoder = tiny()
    state = torch.random.get_rng_state()
    first, first_grads = _step(encoder, batch)
    again, again_grads = _step(encoder, batch)
    assert torch.equal(torch.random.get_rng_state(), state)  # no draw from any global generator
    assert torch.equal(first.encoder_out, again.encoder_out)
    assert all(torch.equal(first_grads[name], again_grads[name]) for name in first_grads)
    other, _ = _step(encoder, batch, step_key=8)
    assert not torch.equal(first.encoder_out, other.encoder_out)


def test_draws_of_an_utterance_do_not_depend_on_its_batch_mates(batch):
    encoder = tiny()
    together, _ = _step(encoder, batch)
    alone, _ = _step(encoder, batch, rows=[2])
    length = int(together.lengths[2])
    torch.testing.assert_close(
        alone.encoder_out[0, :length], together.encoder_out[2, :length], atol=1e-5, rtol=0
    )
    backwards, _ = _step(encoder, batch, rows=[3, 2, 1, 0])
    torch.testing.assert_close(
        backwards.encoder_out[1, :length], alone.encoder_out[0, :length], atol=1e-5, rtol=0
    )


def test_two_half_batches_give_the_gradient_of_the_whole_batch(batch):
    # Statistics of Balancer and Whiten belong to the local batch by design.
    encoder = tiny(balancer=False, whiten=False)
    _, whole = _step(encoder, batch)
    whole = {name: grad.clone() for name, grad in whole.items()}
    _, half = _step(encoder, batch, rows=[0, 3])
    half = {name: grad.clone() for name, grad in half.items()}
    _, rest = _step(encoder, batch, rows=[1, 2])
    for name, grad in whole.items():
        # The gradient of a down-sampling bias is a small difference of large sums.
        tolerance = (2e-3 if name.endswith("downsample.bias") else 1e-4) * max(1e-2, grad.abs().max().item())
        torch.testing.assert_close(half[name] + rest[name], grad, atol=tolerance, rtol=0)


def test_limiter_turns_gradients_that_lead_out_of_range(batch):
    encoder = tiny()
    keys = batch[3]
    layer = encoder.encoder.encoders[0].layers[0]
    scale, norm, frozen = layer.bypass.bypass_scale, layer.norm.log_scale, layer.bypass_mid.bypass_scale
    torch.nn.init.constant_(norm, -1.6)
    with torch.no_grad():
        scale[:4] = torch.tensor([0.1, 0.1, 1.2, 0.5])
    frozen.requires_grad_(False)
    turned = []
    for step in range(300):
        encoder.begin_step(20000.0, keyed_random.key("step", step), keys)  # bypass scales from 0.2
        scale.grad = torch.ones_like(scale)
        scale.grad[1:3] = -1.0
        norm.grad = torch.tensor(2.0)
        encoder.limit_gradients()
        assert norm.grad.abs() == 2.0 and frozen.grad is None
        assert scale.grad[1] == -1.0 and (scale.grad[3:] == 1.0).all()  # leads back, and within range
        assert scale.grad[0] == -scale.grad[2]
        turned.append((scale.grad[0].item() == -1.0, norm.grad.item() == -2.0))
    shares = torch.tensor(turned).float()
    assert shares.mean(0).tolist() == pytest.approx([0.6, 0.6], abs=0.09)  # three standard deviations
    assert (shares[:, 0] != shares[:, 1]).any()  # each parameter has its own coin
    for limits, batch_count, expected in (
        (True, 0.0, {-1.0, 1.0}),
        (False, 0.0, {1.0}),
        (True, 20000.0, {1.0}),
    ):
        encoder = tiny(limit_gradients=limits)
        scale = encoder.encoder.encoders[0].layers[0].bypass.bypass_scale  # 0.5: below 0.9 early in training
        seen = set()
        for step in range(20):
            encoder.begin_step(batch_count, step, keys)
            scale.grad = torch.ones_like(scale)
            encoder.limit_gradients()
            seen |= set(scale.grad.tolist())
        assert seen == expected
    with pytest.raises(RuntimeError, match="before the first begin_step"):
        tiny().limit_gradients()


def test_score_penalty_weighs_what_the_loss_weighs(batch):
    """Ranks multiply the loss by their number and average gradients: the penalty must follow."""
    fbank, lengths, _, keys = batch
    encoder = tiny(stochastic=False, balancer=False, whiten=False)
    attention = encoder.encoder.encoders[0].layers[0].self_attn_weights
    with torch.no_grad():
        attention.in_proj.weight.mul_(20.0)  # scores far above the limit of 25
    weight, grads = attention.in_proj.weight, []
    key = next(step for step in range(100) if _coin(encoder, keys, step, attention.penalty_coin) < 0.1)
    for scale in (0.0, 1.0, 2.0):
        encoder.begin_step(0.0, key, keys, scale)
        encoder.zero_grad()
        encoder(fbank, lengths).encoder_out.sum().mul(0.0).backward()
        grads.append(weight.grad.clone())
    assert (grads[0] == 0).all() and grads[1].abs().max() > 0
    torch.testing.assert_close(grads[2], 2 * grads[1])


def _coin(encoder, keys, step_key, coin):
    encoder.begin_step(0.0, step_key, keys)
    return encoder.context.coin(coin)


@pytest.mark.parametrize("with_mask", [True, False])
def test_every_trainable_parameter_gets_a_gradient_in_every_step(batch, with_mask):
    encoder = tiny()
    fbank, lengths, time_mask, keys = batch
    skipped = False
    for step_key in range(6):  # with batch count 0 the positional term is skipped in half of the calls
        encoder.zero_grad(set_to_none=True)
        encoder.begin_step(0.0, step_key, keys)
        encoder(fbank, lengths, time_mask if with_mask else None).encoder_out.sum().backward()
        names = {name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None}
        assert not names
        weight = encoder.encoder.encoders[0].layers[0].self_attn_weights.linear_pos.weight
        skipped |= bool((weight.grad == 0).all())
    assert skipped
    frozen = [name for name, p in encoder.named_parameters() if not p.requires_grad]
    assert len(frozen) == 4 and all(name.endswith(".bypass_scale") for name in frozen)


def test_training_without_begin_step_is_refused(batch):
    encoder = tiny()
    fbank, lengths, time_mask, keys = batch
    with pytest.raises(RuntimeError, match=r"without begin_step.*encoder\.eval\(\)"):
        encoder(fbank, lengths)
    encoder.begin_step(0.0, 1, keys)
    encoder(fbank, lengths)
    with pytest.raises(RuntimeError, match="before every forward"):
        encoder(fbank, lengths)
    encoder.begin_step(0.0, 1, keys[:3])
    with pytest.raises(ValueError, match="3 utterance keys but the batch has 4"):
        encoder(fbank, lengths)


def test_training_mode_without_random_parts_equals_evaluation(batch):
    encoder = tiny(stochastic=False, balancer=False, whiten=False, limit_gradients=False)
    fbank, lengths, time_mask, _ = batch
    trained = encoder(fbank, lengths, time_mask).encoder_out
    evaluated = encoder.eval()(fbank, lengths, time_mask).encoder_out
    torch.testing.assert_close(trained, evaluated, atol=1e-6, rtol=0)


def test_regularisers_change_gradients_in_training_only(batch):
    fbank, lengths, time_mask, keys = batch

    def gradient(mode, **changes):
        encoder = tiny(stochastic=False, **changes)
        encoder.train(mode == "train")
        encoder.begin_step(3000.0, 5, keys)
        encoder(fbank, lengths, time_mask).encoder_out.square().sum().backward()
        return encoder.encoder.encoders[0].layers[0].feed_forward1.in_proj.weight.grad

    off = {"balancer": False, "whiten": False, "limit_gradients": False}
    plain = gradient("train", **off)
    assert torch.equal(gradient("eval"), gradient("eval", **off))
    assert not torch.allclose(gradient("train"), plain, rtol=1e-3)


def test_time_and_channel_masks(batch):
    fbank, lengths, time_mask, _ = batch
    encoder = tiny().eval()
    channel_mask = torch.zeros(4, 128, dtype=torch.bool)
    channel_mask[1, 30:50] = True
    output = encoder(fbank, lengths, time_mask, channel_mask).encoder_out
    by_hand = fbank.clone()
    by_hand[1, :, 30:50] = 0.0
    by_hand[time_mask] = encoder.mask_emb.detach()
    assert torch.equal(output, encoder(by_hand, lengths).encoder_out)
    output.sum().backward()
    assert encoder.mask_emb.grad.abs().sum() > 0


def test_feature_mask_drops_the_stated_shares_of_channels():
    encoder = tiny()
    stack = encoder.encoder.encoders[0]
    keys = keyed_random.keys("many", ids=[str(n) for n in range(20000)])
    encoder.begin_step(0.0, 1, keys)
    encoder.context.prepare(torch.device("cpu"))
    draws = (encoder.context.draws(encoder.encoder.feature_draws) < 0.875).float()
    mask = _FeatureMasks(draws).of(stack.unmasked, 32)[:, 0]
    assert (mask[:, :20] == 1).all()
    assert (1 - mask[:, 20:26]).mean().item() == pytest.approx(0.125, abs=0.01)
    assert (1 - mask[:, 26:]).mean().item() == pytest.approx(0.234, abs=0.01)


def test_feature_mask_keeps_seven_eighths_of_what_it_may_drop():
    encoder = tiny().train()
    keys = keyed_random.keys("many", ids=[str(n) for n in range(5000)])
    seen = []

    def watch(module, arguments):
        seen.append(arguments[2].draws)
        raise StopIteration  # the draws are made; the stacks need not run

    encoder.encoder.encoders[0].register_forward_pre_hook(watch)
    encoder.begin_step(0.0, 1, keys)
    with pytest.raises(StopIteration):
        encoder(torch.zeros(5000, 20, 128), torch.full((5000,), 20))
    assert set(seen[0].unique().tolist()) == {0.0, 1.0}
    assert seen[0].mean().item() == pytest.approx(0.875, abs=0.01)


@pytest.mark.parametrize(("batch_count", "expected"), [(0, 0.5), (1000, 0.5), (1500, 0.2675), (3000, 0.035)])
def test_layer_skip_follows_the_warm_up(batch_count, expected):
    encoder = tiny()
    bypass = encoder.encoder.encoders[0].layers[0].bypass
    assert bypass.skip_rate(batch_count) == pytest.approx(expected)
    keys = keyed_random.keys("many", ids=[str(n) for n in range(20000)])
    encoder.begin_step(batch_count, 1, keys)
    encoder.context.prepare(torch.device("cpu"))
    x = torch.zeros(20000, 1, 32)
    y = bypass(x, torch.ones_like(x))
    skipped = (y == 0).all(dim=2).float().mean().item()
    assert skipped == pytest.approx(expected, abs=0.015)
    assert set(y.unique().tolist()) <= {0.0, 0.5}


def test_bypass_keeps_the_input_or_the_layer_output():
    bypass = Bypass(tiny().context, 3).eval()
    x, h = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    for scale, expected in ((0.0, x), (1.0, h)):
        torch.nn.init.constant_(bypass.bypass_scale, scale)
        assert torch.equal(bypass(x, h), expected)


def test_dropouts_keep_their_rates(batch):
    encoder = tiny()
    forward = encoder.encoder.encoders[0].layers[0].feed_forward2
    keys = keyed_random.keys("many", ids=[str(n) for n in range(2000)])
    encoder.begin_step(5000.0, 1, keys)
    encoder.context.prepare(torch.device("cpu"))
    rate = forward.dropout(5000.0)
    assert rate == pytest.approx(0.25)
    assert 1 - encoder.context.keep(forward.draws, rate).mean().item() == pytest.approx(rate, abs=0.01)
    # Positional dropout is shared by the batch; the number of frames does not change the draws of an offset.
    position = encoder.encoder.encoders[0].encoder_pos
    long, short = position(torch.empty(1, 500, 4)), position(torch.empty(1, 20, 4))
    assert torch.equal(long[480 : 480 + 39], short)
    assert (long[:, -1] == 0).float().mean().item() == pytest.approx(0.15, abs=0.04)
    kept = long[long[:, -1] != 0, -1]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.85))


def test_coins_of_balancers_and_whiteners_follow_their_probabilities():
    encoder = tiny()
    keys = keyed_random.keys("x", ids=["a"])
    balancers = [m for m in encoder.modules() if isinstance(m, Balancer)]
    coins = {m.coin for m in encoder.modules() if isinstance(m, (Balancer, Whiten))}
    assert len(coins) == sum(isinstance(m, (Balancer, Whiten)) for m in encoder.modules())
    values = []
    for step in range(200):
        encoder.begin_step(0.0, keyed_random.key("step", step), keys)
        values += [encoder.context.coin(m.coin) for m in balancers]
    values = torch.tensor(values)
    assert (values < 0.5).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert values.min() >= 0.0 and values.max() < 1.0


def test_initial_weights():
    torch.manual_seed(0)
    encoder = SpearEncoder(ZipformerConfig.mini(num_encoder_layers=(1, 2, 2)))
    layers = encoder.encoder.encoders[1].encoder.layers
    for name, value in layers[0].state_dict().items():
        assert torch.equal(value, layers[1].state_dict()[name]), name  # layers of a stack start equal
    other = encoder.encoder.encoders[2].encoder.layers[0]
    assert not torch.equal(layers[0].feed_forward1.in_proj.weight, other.feed_forward1.in_proj.weight)
    dim = 128

    def bounds(weight, limit):
        assert weight.abs().max().item() == pytest.approx(limit, rel=0.05)

    layer = layers[0]
    bounds(layer.feed_forward2.in_proj.weight, 1 / math.sqrt(dim))
    hidden = layer.feed_forward2.out_proj.weight.shape[1]
    bounds(layer.feed_forward2.out_proj.weight, 0.1 / math.sqrt(hidden))
    bounds(layer.feed_forward2.out_proj.bias, 0.1 * 0.1)
    query = layer.self_attn_weights.query_head_dim
    bounds(layer.self_attn_weights.in_proj.weight, query**-0.25 / math.sqrt(dim))
    bounds(layer.self_attn_weights.linear_pos.weight, 0.05 / math.sqrt(48))
    bounds(layer.conv_module1.out_proj.weight, 0.05 / math.sqrt(dim))
    bounds(layer.self_attn1.out_proj.weight, 0.05 / math.sqrt(layer.self_attn1.out_proj.weight.shape[1]))
    channels = encoder.config.frontend_channels[-1]
    bounds(encoder.encoder_embed.convnext.pointwise_conv2.weight, 0.01 / math.sqrt(3 * channels))
    for name, value in encoder.named_parameters():
        if name.endswith("bypass_scale"):
            assert (value == 0.5).all()
        elif name.endswith("log_scale"):
            assert value.item() == 1.0
        elif name.endswith("downsample.bias"):
            assert (value == 0.0).all()
        elif name.endswith("norm.bias"):
            assert 0 < value.std().item() < 3e-4
    assert encoder.mask_emb.std().item() == pytest.approx(1.0, abs=0.25)


def test_causal_training_draws_chunk_sizes_and_never_sees_the_future(batch):
    fbank, lengths, _, keys = batch
    encoder = tiny(causal=True, chunk_size=(4, 8), left_context_frames=(8, 16))
    sizes = set()
    for step in range(20):
        encoder.begin_step(0.0, step, keys)
        sizes.add(encoder.encoder._chunking())
    assert sizes == {(4, 8), (4, 16), (8, 8), (8, 16)}
    encoder.eval()
    embedding = torch.randn(1, 40, 32)
    changed = embedding.clone()
    changed[:, 24:] += 1.0
    full = torch.tensor([40])
    one, two = encoder.encoder(embedding, full)[0], encoder.encoder(changed, full)[0]
    torch.testing.assert_close(one[:, :24], two[:, :24], atol=1e-5, rtol=0)
    assert not torch.allclose(one[:, 24:28], two[:, 24:28])


def test_half_precision_keeps_the_residual_in_float32(batch):
    fbank, lengths, time_mask, keys = batch
    encoder = tiny()
    outputs = []
    for enabled in (False, True):
        encoder.zero_grad()
        encoder.begin_step(3000.0, 3, keys)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output = encoder(fbank, lengths, time_mask).encoder_out
        assert output.dtype == torch.float32
        output.square().sum().backward()
        assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.requires_grad)
        outputs.append(output.detach())
    difference = (outputs[0] - outputs[1]).square().mean().sqrt() / outputs[0].square().mean().sqrt()
    assert 0 < difference < 0.05


def test_nan_in_one_utterance_stays_there(batch):
    fbank, lengths, _, _ = batch
    encoder = tiny().eval()
    broken = fbank.clone()
    broken[1, 10] = float("nan")
    good, bad = encoder(fbank, lengths).encoder_out, encoder(broken, lengths).encoder_out
    assert bad[1].isnan().any()
    assert torch.equal(good[0], bad[0])


def test_schedule_repr_names_points():
    assert "0.5" in repr(Schedule((0, 0.5), (8000, 0.125)))
