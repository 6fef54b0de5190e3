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
    monkeypatch.setattr(heads, "CPU_CHUNK_ELEMENTS", chunk_frames * 8 * 256)
    head = golden_head(golden)
    encoder_out = golden["encoder_out"].clone().requires_grad_()
    total, loss, _ = head(encoder_out.reshape(-1, 48), golden["targets"].reshape(-1, 8))
    torch.testing.assert_close(loss.view(3, 13, 8), golden["loss_none"], atol=1e-5, rtol=1e-5)
    total.backward()
    torch.testing.assert_close(total, golden["loss_sum"], atol=1e-3, rtol=1e-6)
    for name, gradient in (
        ("encoder_out", encoder_out.grad),
        ("bias", head.bias.grad),
        ("weight_cb0", head.weight.grad[0]),
        ("weight_cb_last", head.weight.grad[-1]),
    ):
        torch.testing.assert_close(gradient, golden[f"grad_sum.{name}"], atol=1e-5, rtol=1e-5, msg=name)


def test_gradient_of_weighted_losses(golden):
    """The golden weights differ between codebooks: one call per codebook, with the others ignored."""
    head = golden_head(golden)
    encoder_out = golden["encoder_out"].clone().requires_grad_()
    for codebook, weights in enumerate(golden["loss_none_weights"].reshape(-1, 8).unbind(1)):
        targets = torch.full((39, 8), -100)
        targets[:, codebook] = golden["targets"].reshape(-1, 8)[:, codebook]
        head(encoder_out.reshape(-1, 48), targets, weights).total.backward()
    torch.testing.assert_close(encoder_out.grad, golden["grad_weighted.encoder_out"], atol=1e-5, rtol=1e-5)


def test_dropping_frames_without_targets_changes_nothing(golden):
    head = golden_head(golden)
    targets = golden["targets"].reshape(-1, 8)
    hidden = golden["encoder_out"].reshape(-1, 48)
    scored = (targets >= 0).any(-1)
    assert 0 < scored.sum() < len(scored)
    torch.testing.assert_close(
        head(hidden[scored], targets[scored]).total, golden["loss_sum"], atol=1e-3, rtol=1e-6
    )


def plain(hidden, weight, bias, targets, weights):
    """The formula in float64, loop by loop: total and losses."""
    logits = torch.einsum("fp,nkp->fnk", hidden, weight) + bias
    losses = torch.zeros(targets.shape, dtype=torch.float64)
    for frame in range(targets.shape[0]):
        for codebook in range(targets.shape[1]):
            target = int(targets[frame, codebook])
            if target >= 0:
                row = logits[frame, codebook]
                losses[frame, codebook] = row.exp().sum().log() - row[target]
    return (losses.sum(1) * weights).sum(), losses


@pytest.mark.parametrize("num_codebooks, codebook_size", [(16, 256), (1, 500), (3, 2)])
def test_equal_to_the_plain_formula_in_float64(monkeypatch, num_codebooks, codebook_size):
    monkeypatch.setattr(heads, "CPU_CHUNK_ELEMENTS", 4 * num_codebooks * codebook_size)
    torch.manual_seed(0)
    head = MaskedPredictionHead(12, num_codebooks, codebook_size)
    torch.nn.init.normal_(head.bias)
    hidden = 3 * torch.randn(15, 12)
    targets, weights = torch.randint(0, codebook_size, (15, num_codebooks)), torch.rand(15)
    targets[3] = targets[8, 0] = -100
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, head.weight, head.bias)]
    expected_total, expected_loss = plain(*exact, targets, weights.double())
    (2 * expected_total).backward()
    hidden.requires_grad_()
    total, loss, _ = head(hidden, targets, weights)
    (2 * total).backward()
    torch.testing.assert_close(total.double(), expected_total, atol=0, rtol=1e-6)
    torch.testing.assert_close(loss.double(), expected_loss, atol=1e-5, rtol=1e-6)
    for ours, wanted in zip((hidden, head.weight, head.bias), exact):
        torch.testing.assert_close(ours.grad.double(), wanted.grad, atol=1e-5, rtol=1e-5)
    assert hidden.grad[3].abs().sum() == 0


def test_exact_gradients_in_float64():
    torch.manual_seed(0)
    head = MaskedPredictionHead(6, 3, 5).double()
    hidden = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 5, (7, 3))
    targets[2, 1] = -100
    weights = torch.rand(7, dtype=torch.float64)

    def run(hidden, weight, bias):
        return heads._ChunkedCrossEntropy.apply(hidden, weight, bias, targets, weights, True)[0]

    assert torch.autograd.gradcheck(run, (hidden, head.weight, head.bias))


def test_confident_and_hopeless_guesses_stay_finite():
    """Probabilities that float32 rounds to 0 or 1 still cost the right number of nats."""
    head = MaskedPredictionHead(1, 1, 3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[[300.0], [0.0], [-300.0]]]))
    hidden = torch.ones(3, 1, requires_grad=True)
    total, loss, _ = head(hidden, torch.tensor([[0], [1], [2]]))
    total.backward()
    assert loss[:, 0].tolist() == [0.0, 300.0, 600.0]
    assert hidden.grad[:, 0].tolist() == [0.0, 300.0, 600.0]


def test_autocast_rounds_the_products_only():
    torch.manual_seed(0)
    head = MaskedPredictionHead(32, 4, 64)
    hidden, targets = torch.randn(50, 32), torch.randint(0, 64, (50, 4))
    results = []
    for enabled in (False, True):
        x = hidden.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            output = head(x, targets)
        head.zero_grad()
        output.total.backward()
        results.append((output.loss, x.grad, head.weight.grad.clone()))
    for exact, rounded in zip(*results):
        assert rounded.dtype == torch.float32
        error = (rounded - exact).norm() / exact.norm()
        assert 1e-5 < error < 0.01
    assert abs(float(results[1][0].mean() / results[0][0].mean()) - 1) < 1e-3


def test_logits_of_all_frames_are_never_held():
    """What autograd keeps for backward are the gradients of the inputs, and no chunk is larger than asked."""
    head = MaskedPredictionHead(8, 4, 32)
    hidden = torch.randn(1000, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        head(hidden, torch.randint(0, 32, (1000, 4))).total.backward()
    assert sorted(kept) == sorted([hidden.numel(), head.weight.numel(), head.bias.numel()])
    chunks = heads._chunks(torch.empty(30000, 8), torch.empty(16, 256))
    assert sum(part.stop - part.start for part in chunks) >= 30000
    assert max(part.stop - part.start for part in chunks) * 16 * 256 <= heads.CPU_CHUNK_ELEMENTS


def test_validation_computes_no_gradient(monkeypatch):
    head = MaskedPredictionHead(4, 2, 3)
    monkeypatch.setattr(heads, "_add_gradients", None)
    with torch.no_grad():
        output = head(torch.randn(5, 4), torch.randint(0, 3, (5, 2)))
    assert not output.total.requires_grad and output.loss.shape == (5, 2)


def test_correct_counts_the_best_guess():
    head = MaskedPredictionHead(4, 2, 3)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0]]))
    targets = torch.tensor([[1, 0], [0, 0], [1, -100]])
    correct = head(torch.randn(3, 4), targets).correct
    assert correct.tolist() == [[True, True], [False, True], [True, False]]


def test_no_frames_at_all():
    head = MaskedPredictionHead(4, 2, 3)
    hidden = torch.zeros(0, 4, requires_grad=True)
    total, loss, correct = head(hidden, torch.zeros(0, 2, dtype=torch.int64))
    total.backward()
    assert loss.shape == correct.shape == (0, 2)
    assert head.weight.grad.abs().sum() == 0


def test_uniform_guess_costs_the_logarithm_of_the_codebook_size():
    head = MaskedPredictionHead(4, 2, 256)
    with torch.no_grad():
        head.weight.zero_()
    loss = head(torch.randn(5, 4), torch.randint(0, 256, (5, 2))).loss
    torch.testing.assert_close(loss, torch.full((5, 2), 5.545177))


def test_tokens_of_another_model_are_refused():
    head = MaskedPredictionHead(4, 2, 3)
    with pytest.raises(ValueError, match="predicts 2 codebooks from 4 channels; it was given 3 codebooks"):
        head(torch.zeros(1, 4), torch.zeros(1, 3, dtype=torch.int64))


def test_every_parameter_gets_a_gradient():
    head = MaskedPredictionHead(4, 2, 3)
    head(torch.randn(5, 4), torch.randint(0, 3, (5, 2))).total.backward()
    assert [name for name, p in head.named_parameters() if not p.grad.abs().sum() > 0] == []
