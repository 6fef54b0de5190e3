"""The prediction heads against the reference's JointCodebookLoss(is_joint=False) and plain PyTorch."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spear_lib.pretraining import heads
from spear_lib.pretraining.heads import MaskedPredictionHead

GOLDEN = Path(__file__).parents[1] / "golden" / "joint_codebook_loss.safetensors"


@pytest.fixture
def golden():
    return load_file(GOLDEN)


def golden_head(golden) -> MaskedPredictionHead:
    head = MaskedPredictionHead(dim=48, num_codebooks=8, codebook_size=256)
    head.load_reference({"linear2b_weight": golden["weight"], "linear2_bias": golden["bias"]})
    return head


@pytest.mark.parametrize("chunk_frames", [1, 5, 10_000])
def test_losses_and_gradients_of_the_reference(golden, monkeypatch, chunk_frames):
    monkeypatch.setattr(heads, "CHUNK_ELEMENTS", chunk_frames * 8 * 256)
    head = golden_head(golden)
    encoder_out = golden["encoder_out"].clone().requires_grad_()
    loss, _ = head(encoder_out.reshape(-1, 48), golden["targets"].reshape(-1, 8))
    torch.testing.assert_close(loss.view(3, 13, 8), golden["loss_none"], atol=1e-5, rtol=1e-5)
    loss.sum().backward()
    torch.testing.assert_close(loss.sum(), golden["loss_sum"], atol=1e-3, rtol=1e-6)
    for name, gradient in (
        ("encoder_out", encoder_out.grad),
        ("bias", head.bias.grad),
        ("weight_cb0", head.weight.grad[0]),
        ("weight_cb_last", head.weight.grad[-1]),
    ):
        torch.testing.assert_close(gradient, golden[f"grad_sum.{name}"], atol=1e-5, rtol=1e-5, msg=name)


def test_gradient_of_weighted_losses(golden):
    head = golden_head(golden)
    encoder_out = golden["encoder_out"].clone().requires_grad_()
    loss, _ = head(encoder_out.reshape(-1, 48), golden["targets"].reshape(-1, 8))
    (loss.view(3, 13, 8) * golden["loss_none_weights"]).sum().backward()
    torch.testing.assert_close(encoder_out.grad, golden["grad_weighted.encoder_out"], atol=1e-5, rtol=1e-5)


def test_dropping_frames_without_targets_changes_nothing(golden):
    head = golden_head(golden)
    targets = golden["targets"].reshape(-1, 8)
    hidden = golden["encoder_out"].reshape(-1, 48)
    scored = (targets >= 0).any(-1)
    assert 0 < scored.sum() < len(scored)
    loss, _ = head(hidden[scored], targets[scored])
    torch.testing.assert_close(loss.sum(), golden["loss_sum"], atol=1e-3, rtol=1e-6)


def test_exact_gradients_in_float64():
    torch.manual_seed(0)
    head = MaskedPredictionHead(6, 3, 5).double()
    hidden = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 5, (7, 3))
    targets[2, 1] = -100

    def run(hidden, weight, bias):
        return heads._ChunkedCrossEntropy.apply(hidden, weight, bias, targets)[0]

    assert torch.autograd.gradcheck(run, (hidden, head.weight, head.bias))


def test_correct_counts_the_best_guess():
    head = MaskedPredictionHead(4, 2, 3)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0]]))
    targets = torch.tensor([[1, 0], [0, 0], [1, -100]])
    _, correct = head(torch.randn(3, 4), targets)
    assert correct.tolist() == [[True, True], [False, True], [True, False]]


def test_no_frames_at_all():
    head = MaskedPredictionHead(4, 2, 3)
    hidden = torch.zeros(0, 4, requires_grad=True)
    loss, correct = head(hidden, torch.zeros(0, 2, dtype=torch.int64))
    loss.sum().backward()
    assert loss.shape == correct.shape == (0, 2)
    assert head.weight.grad.abs().sum() == 0


def test_uniform_guess_costs_the_logarithm_of_the_codebook_size():
    head = MaskedPredictionHead(4, 2, 256)
    with torch.no_grad():
        head.weight.zero_()
    loss, _ = head(torch.randn(5, 4), torch.randint(0, 256, (5, 2)))
    torch.testing.assert_close(loss, torch.full((5, 2), 5.545177))


def test_tokens_of_another_model_are_refused():
    head = MaskedPredictionHead(4, 2, 3)
    with pytest.raises(ValueError, match="predicts 2 codebooks from 4 channels; it was given 3 codebooks"):
        head(torch.zeros(1, 4), torch.zeros(1, 3, dtype=torch.int64))


def test_every_parameter_gets_a_gradient():
    head = MaskedPredictionHead(4, 2, 3)
    loss, _ = head(torch.randn(5, 4), torch.randint(0, 3, (5, 2)))
    loss.sum().backward()
    assert [name for name, p in head.named_parameters() if not p.grad.abs().sum() > 0] == []
