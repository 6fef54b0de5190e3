"""AsrModel: loss schedule, dropped utterances, CTC head, initialisation, errors."""

import math

import pytest
import torch
from torch import nn

from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.transducer import Joiner, StatelessDecoder

SMALL = {"decoder_dim": 16, "joiner_dim": 12}


def _model(vocab_size=10, **options):
    torch.manual_seed(0)
    return AsrModel(None, TransducerConfig(**SMALL, **options), vocab_size, encoder_dim=8)


def _batch():
    generator = torch.Generator().manual_seed(1)
    encoder_out = torch.randn(3, 20, 8, generator=generator)
    return encoder_out, torch.tensor([20, 11, 5]), [[1, 2, 3, 3], [4], []]


def test_weights_follow_the_warm_up():
    model = _model()
    assert model.loss_scales(0) == (1.0, 0.1)
    assert model.loss_scales(1000) == pytest.approx((0.75, 0.55))
    assert model.loss_scales(2000) == model.loss_scales(9999) == (0.5, 1.0)
    encoder_out, lengths, targets = _batch()
    for step in (0, 500, 3000):
        losses = model.losses(encoder_out, lengths, targets, step)
        simple_scale, pruned_scale = model.loss_scales(step)
        expected = simple_scale * losses["simple_loss"] + pruned_scale * losses["pruned_loss"]
        assert float(losses["loss_sum"].detach()) == pytest.approx(float(expected), rel=1e-6)
        assert not losses["simple_loss"].requires_grad and losses["loss_sum"].requires_grad
        assert int(losses["num_frames"]) == 36 and int(losses["num_dropped"]) == 0
    assert not hasattr(model, "ctc_output") and "ctc_loss" not in losses


def test_loss_starts_near_uniform():
    """At the start the loss per frame is about log V * (S + T) / T (spec rnnt §6)."""
    model = _model(vocab_size=200)
    encoder_out, lengths = torch.randn(2, 60, 8), torch.tensor([60, 60])
    targets = [[5 + i for i in range(12)], [9, 9, 9]]
    losses = model.losses(encoder_out, lengths, targets, 0)
    uniform = 0.0
    for target in targets:
        paths = math.comb(len(target) + 59, len(target))
        uniform += math.log(200) * (60 + len(target)) - math.log(paths)
    assert float(losses["pruned_loss"]) == pytest.approx(uniform, rel=0.2)


def test_sum_over_utterances_and_training():
    model = _model()
    encoder_out, lengths, targets = _batch()
    together = model.losses(encoder_out, lengths, targets, 3000)["loss_sum"]
    alone = sum(
        model.losses(encoder_out[b : b + 1, : lengths[b]], lengths[b : b + 1], [targets[b]], 3000)["loss_sum"]
        for b in range(3)
    )
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.losses(encoder_out, lengths, targets, 3000)["loss_sum"]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * together.item()


def test_utterances_without_a_path_are_dropped_and_counted():
    encoder_out, lengths, targets = _batch()
    targets = [*targets[:2], [1, 2, 3, 4, 5, 6]]  # 6 labels in 5 frames
    regular, modified = _model(), _model(rnnt_type="modified")
    assert int(regular.losses(encoder_out, lengths, targets, 0)["num_dropped"]) == 0
    losses = modified.losses(encoder_out, lengths, targets, 3000)
    assert int(losses["num_dropped"]) == 1 and math.isfinite(losses["loss_sum"].item())
    kept = modified.losses(encoder_out[:2], lengths[:2], targets[:2], 3000)
    assert losses["loss_sum"].item() == pytest.approx(kept["loss_sum"].item(), rel=1e-5)
    losses["loss_sum"].backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in modified.parameters())
    no_frames = regular.losses(encoder_out, torch.tensor([20, 11, 0]), targets, 0)
    assert int(no_frames["num_dropped"]) == 1 and math.isfinite(no_frames["loss_sum"].item())
    # What is broken stays visible: a NaN is not "dropped".
    broken = encoder_out.clone()
    broken[0, 3] = float("nan")
    assert math.isnan(regular.losses(broken, lengths, targets, 0)["loss_sum"].item())


def test_ctc_head():
    model = _model(ctc_loss_scale=0.3)
    encoder_out, lengths, targets = _batch()
    losses = model.losses(encoder_out, lengths, targets, 3000)
    log_probs = model.ctc_log_probs(encoder_out)
    assert log_probs.shape == (3, 20, 10)
    expected = nn.functional.ctc_loss(
        log_probs.transpose(0, 1), torch.tensor([1, 2, 3, 3, 4]), lengths, torch.tensor([4, 1, 0]),
        reduction="sum",
    )  # fmt: skip
    assert float(losses["ctc_loss"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    total = 0.5 * losses["simple_loss"] + losses["pruned_loss"] + 0.3 * losses["ctc_loss"]
    assert losses["loss_sum"].item() == pytest.approx(total.item(), rel=1e-6)
    # 4 labels with one repeat need 5 frames: 4 are too few, and it is said.
    few = model.losses(encoder_out, torch.tensor([4, 11, 5]), targets, 3000)
    assert int(few["num_ctc_dropped"]) == 1 and math.isfinite(few["loss_sum"].item())
    # Dropout depends on the utterance's key alone, and only in training.
    keys = torch.tensor([11, 22, 33])
    dropped = model.losses(encoder_out, lengths, targets, 3000, keys)["ctc_loss"]
    assert float(dropped) != pytest.approx(float(losses["ctc_loss"]), rel=1e-6)
    order = [2, 0, 1]
    again = model.losses(
        encoder_out[order], lengths[order], [targets[i] for i in order], 3000, keys[order]
    )["ctc_loss"]  # fmt: skip
    torch.testing.assert_close(again, dropped)
    model.eval()
    silent = model.losses(encoder_out, lengths, targets, 3000, keys)["ctc_loss"]
    torch.testing.assert_close(silent, losses["ctc_loss"])


def test_ctc_dropout_keeps_the_mean():
    """What is kept is divided by the share that is kept: 0 or x / (1 - p)."""
    model = _model(ctc_loss_scale=0.3, ctc_dropout=0.2).train()
    seen = []
    model.ctc_output.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    count = 300
    lengths = torch.full((count,), 5)
    model.losses(torch.full((count, 5, 8), 2.0), lengths, [[1]] * count, 3000, torch.arange(count))
    (values,) = seen
    assert ((values == 0) | torch.isclose(values, torch.tensor(2.5))).all()
    assert values.mean().item() == pytest.approx(2.0, abs=0.05)


def test_losses_ignore_autocast():
    model = _model()
    encoder_out, lengths, targets = _batch()
    expected = model.losses(encoder_out, lengths, targets, 3000)["loss_sum"]
    with torch.autocast("cpu", torch.bfloat16):
        found = model.losses(encoder_out, lengths, targets, 3000)["loss_sum"]
        assert torch.equal(found, expected)
        half = model.losses(encoder_out.bfloat16(), lengths, targets, 3000)["loss_sum"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=1e-2, atol=0)


def test_published_sizes():
    """Parameters of the head, decoder and joiner 512 wide, 500 units (spec rnnt §6)."""
    for encoder_dim, width, expected in ((512, 512, 1554908), (1280, 512, 2332124), (1024, 768, 3049436)):
        model = AsrModel(None, TransducerConfig(decoder_dim=width, joiner_dim=width), 500, encoder_dim)
        assert sum(p.numel() for p in model.parameters()) == expected


def test_decoder_context():
    torch.manual_seed(0)
    decoder = StatelessDecoder(7, 8, context_size=2)
    labels = torch.tensor([[0, 3, 5, 2]])
    whole = decoder(labels)
    assert whole.shape == (1, 4, 8)
    for position in range(4):  # what search computes from the last two labels
        context = torch.tensor([[-1, 0, 3, 5, 2][position : position + 2]])
        torch.testing.assert_close(decoder(context, pad=False)[:, 0], whole[:, position])
    assert StatelessDecoder(7, 8, context_size=1)(labels).shape == (1, 4, 8)


def test_joiner_initialisation():
    joiner = Joiner(400, 300, 200, 50)
    for layer, size in ((joiner.encoder_proj, 400), (joiner.decoder_proj, 300)):
        bound = 0.25 / math.sqrt(size)
        assert 0.9 * bound < layer.weight.abs().max().item() <= bound
        assert 0.02 < layer.bias.abs().max().item() <= 0.025


def test_errors():
    model = _model()
    encoder_out, lengths, targets = _batch()
    with pytest.raises(ValueError, match="2 targets for a batch of 3"):
        model.losses(encoder_out, lengths, targets[:2], 0)
    with pytest.raises(ValueError, match=r"target 1 holds unit ids 4..10; they must lie in 1..9"):
        model.losses(encoder_out, lengths, [[1], [4, 10], []], 0)
    with pytest.raises(ValueError, match="target 0 holds unit ids 0"):
        model.losses(encoder_out, lengths, [[0], [4], []], 0)
    with pytest.raises(RuntimeError, match="no CTC head"):
        model.ctc_log_probs(encoder_out)
    with pytest.raises(ValueError, match="vocab_size is 1"):
        _model(vocab_size=1)
    with pytest.raises(ValueError, match="needs an encoder, or encoder_dim"):
        AsrModel(None, TransducerConfig(), 10)
    with pytest.raises(ValueError, match="decoder_dim is 10"):
        StatelessDecoder(7, 10)
    with pytest.raises(ValueError, match="context_size is 0"):
        StatelessDecoder(7, 8, context_size=0)
