"""Eq. 1 against loops, and against the reference's plain sum at alpha 0.5."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spear_lib.pretraining.heads import MaskedPredictionHead
from spear_lib.pretraining.objective import ObjectiveConfig, frame_weights, masked_prediction_stats
from spear_lib.pretraining.validation_stats import codebook_stats, unigram_entropies

GOLDEN = Path(__file__).parents[1] / "golden" / "joint_codebook_loss.safetensors"


def example():
    torch.manual_seed(1)
    targets = torch.randint(0, 9, (12, 3))
    targets[4, 1] = targets[7] = -100
    loss = torch.rand(12, 3).masked_fill(targets < 0, 0.0)
    correct = (torch.rand(12, 3) < 0.5) & (targets >= 0)
    masked = torch.rand(12) < 0.5
    return loss, correct, targets, masked


def test_half_is_the_sum_of_the_reference():
    golden = load_file(GOLDEN)
    head = MaskedPredictionHead(48, 8)
    head.load_reference({"linear2b_weight": golden["weight"], "linear2_bias": golden["bias"]})
    targets = golden["targets"].reshape(-1, 8)
    weights = frame_weights(torch.arange(39) % 3 == 0, 0.5, 8)
    total = head(golden["encoder_out"].reshape(-1, 48), targets, weights).total
    torch.testing.assert_close(total, golden["loss_per_utt_spear"].sum(), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_weights_and_stats_by_hand(alpha):
    loss, correct, targets, masked = example()
    total = loss.sum(1) @ frame_weights(masked, alpha, 3)
    stats = masked_prediction_stats(loss, correct, targets, masked)
    sums, counts, right = [0.0, 0.0], [0, 0], [0, 0]
    for frame in range(12):
        for codebook in range(3):
            if targets[frame, codebook] >= 0:
                which = int(masked[frame])
                sums[which] += float(loss[frame, codebook])
                counts[which] += 1
                right[which] += int(correct[frame, codebook])
    expected = (2 * alpha * sums[1] + 2 * (1 - alpha) * sums[0]) / 3
    assert float(total) == pytest.approx(expected, rel=1e-5)
    for which, name in enumerate(("unmasked", "masked")):
        assert float(stats[f"{name}_loss"][0]) == pytest.approx(sums[which], rel=1e-5)
        assert int(stats[f"{name}_loss"][1]) == counts[which]
        assert int(stats[f"{name}_accuracy"][0]) == right[which]


def test_alpha_one_gives_unmasked_frames_no_gradient():
    _, _, targets, masked = example()
    hidden = torch.randn(12, 4, requires_grad=True)
    MaskedPredictionHead(4, 3, 9)(hidden, targets, frame_weights(masked, 1.0, 3)).total.backward()
    scored = masked & (targets >= 0).any(1)
    assert hidden.grad[~scored].abs().sum() == 0 and (hidden.grad[scored].abs().sum(1) > 0).all()


def test_unigram_entropy():
    histogram = torch.tensor([[10, 10, 10, 10], [7, 0, 0, 0]])
    assert unigram_entropies(histogram).tolist() == pytest.approx([math.log(4), 0.0])


def test_every_codebook_is_validated_by_itself():
    loss, correct, targets, masked = example()
    stats = codebook_stats(loss, correct, targets, masked, 9)
    for codebook in range(3):
        for name, wanted in (("masked", True), ("unmasked", False)):
            rows = [
                row
                for row in range(len(masked))
                if bool(masked[row]) == wanted and int(targets[row, codebook]) >= 0
            ]
            nats, count = stats[f"{name}_loss_codebook"]
            right, _ = stats[f"{name}_accuracy_codebook"]
            assert int(count[codebook]) == len(rows)
            assert float(nats[codebook]) == pytest.approx(sum(float(loss[row, codebook]) for row in rows))
            assert int(right[codebook]) == sum(bool(correct[row, codebook]) for row in rows)
        seen = [int(value) for value in targets[:, codebook] if value >= 0]
        histogram = stats["unigram_entropy"][0][codebook]
        assert histogram.tolist() == [seen.count(token) for token in range(9)]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"strategy": "triple"}, "strategy 'triple' is not known"),
        ({"alpha": 1.5}, "alpha must be between 0 and 1, it is 1.5"),
        ({"align": "left"}, "align must be 'center' or 'index'"),
        ({"audio_weight": 0.0}, "audio_weight must be above 0, it is 0.0.*use strategy single"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**options)
