"""Triton's kernels against the torch backend, under Triton's interpreter: run by test_rnnt_triton.py, in a
process of its own, since the interpreter must be chosen before Triton is first imported."""

import math
import os

import pytest
import torch

from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.transducer import get_rnnt_prune_ranges, select_backend
from spear_lib.transducer.band import solve_band
from spear_lib.transducer.lattice import solve_lattice

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.exit("run test_rnnt_triton.py: these cases need TRITON_INTERPRET=1", returncode=3)

from spear_lib.transducer import kernels

TYPES = ["regular", "modified", "constrained"]
SIZES = {
    "plain": ([3, 2], [6, 5]),
    "no labels in one": ([0, 3], [4, 5]),
    "no labels at all": ([0, 0], [3, 1]),
    "one frame": ([1, 0, 1], [1, 1, 1]),
    "more labels than frames": ([4, 2], [2, 5]),
    "as many labels as frames": ([3, 2], [3, 2]),
    "no frames in one": ([2, 0, 2], [4, 0, 0]),
    "one utterance": ([2], [9]),
    "wide": ([9, 5], [9, 11]),
}


def arrays(labels: list[int], frames: list[int], classes: int = 6, seed: int = 0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    batch, most_labels, most_frames = len(labels), max(labels), max(frames)
    lm = torch.randn(batch, most_labels + 1, classes, generator=random, dtype=dtype) * 2
    am = torch.randn(batch, most_frames, classes, generator=random, dtype=dtype) * 2
    symbols = torch.randint(1, classes, (batch, most_labels), generator=random)
    boundary = torch.zeros(batch, 4, dtype=torch.int64)
    boundary[:, 2], boundary[:, 3] = torch.tensor(labels), torch.tensor(frames)
    return lm, am, symbols, boundary


def gradients(losses: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    weights = torch.linspace(0.5, 1.5, len(losses), dtype=losses.dtype)
    finite = torch.where(torch.isfinite(losses), losses, 0.0)
    return torch.autograd.grad((weights * finite).sum(), inputs)


@pytest.mark.parametrize("rnnt_type", ["regular", "modified"])  # to a kernel, constrained is modified
@pytest.mark.parametrize("name", SIZES)
def test_losses_occupations_and_gradients(name, rnnt_type):
    lm, am, symbols, boundary = arrays(*SIZES[name])
    common = {"boundary": boundary, "rnnt_type": rnnt_type, "delay_penalty": 0.1, "reduction": "none"}
    found = {}
    for choice in ("torch", "triton"):
        backend = select_backend(choice)
        lm_leaf, am_leaf = lm.clone().requires_grad_(), am.clone().requires_grad_()
        loss, occupation = backend.rnnt_loss_smoothed(
            lm_leaf, am_leaf, symbols, 0, 0.25, 0.1, return_grad=True, **common
        )
        logits = am_leaf[:, :, None] + lm_leaf[:, None]
        full = backend.rnnt_loss(logits, symbols, 0, **common)
        results = [loss, *occupation, full]
        grads = [*gradients(loss, lm_leaf, am_leaf), *gradients(full, lm_leaf, am_leaf)]
        if symbols.shape[1] > 0:
            ranges = get_rnnt_prune_ranges(*occupation, boundary, 2)
            index = ranges[..., None].expand(-1, -1, -1, lm.shape[2])
            pruned = backend.rnnt_loss_pruned(logits.gather(2, index), symbols, ranges, 0, **common)
            results += [ranges, pruned]
            grads += gradients(pruned, lm_leaf, am_leaf)
        found[choice] = [value.detach() for value in (*results, *grads)]
    for ours, kernel in zip(found["torch"], found["triton"], strict=True):
        assert kernel.dtype == ours.dtype
        torch.testing.assert_close(kernel, ours, rtol=1e-11, atol=1e-11)
    assert name in ("more labels than frames", "no frames in one") or torch.isfinite(found["triton"][0]).all()


@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("width", [2, 3, 6])
def test_bands_of_any_width(width, rnnt_type):
    """Up to all states, where the pruned loss is the full one."""
    lm, am, symbols, boundary = arrays([5, 4, 0], [7, 6, 3], seed=1)
    logits = (am[:, :, None] + lm[:, None]).requires_grad_()
    common = {"boundary": boundary, "rnnt_type": rnnt_type, "reduction": "none"}
    _, occupation = select_backend("torch").rnnt_loss_simple(lm, am, symbols, 0, return_grad=True, **common)
    ranges = get_rnnt_prune_ranges(*occupation, boundary, width)
    index = ranges[..., None].expand(-1, -1, -1, lm.shape[2])
    found = {}
    for choice in ("torch", "triton"):
        loss = select_backend(choice).rnnt_loss_pruned(logits.gather(2, index), symbols, ranges, 0, **common)
        found[choice] = loss.detach(), *gradients(loss, logits)
    torch.testing.assert_close(found["triton"], found["torch"], rtol=1e-11, atol=1e-11)
    if width == 6:
        full = select_backend("triton").rnnt_loss(logits, symbols, 0, **common)
        torch.testing.assert_close(found["triton"][0], full.detach(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("regular", [True, False])
def test_nan_and_impossible_utterances_stay_alone(regular):
    random = torch.Generator().manual_seed(3)
    px = -torch.rand(3, 4, 9 if regular else 8, generator=random)
    py = -torch.rand(3, 5, 8, generator=random)
    if regular:
        px[..., 8] = -math.inf
    py[0, 2, 3] = math.nan
    px[1, 2] = -math.inf  # a label that cannot be emitted
    sizes = torch.tensor([4, 4, 4]), torch.tensor([8, 8, 7])
    if regular:
        px[2, :, 7] = -math.inf
    expected = solve_lattice(px, py, *sizes, regular, True)
    found = kernels.solve_lattice(px, py, *sizes, regular, True)
    assert torch.isnan(found[0]).tolist() == [True, False, False] and found[0][1] == -math.inf
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-6, atol=1e-6)
    assert found[1].dtype == torch.float32 and float(found[1][1].abs().sum()) == 0.0

    band = -torch.rand(3, 8, 2, generator=random)
    label, blank = band.clone(), band.flip(2).clone()
    start = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]).expand(3, -1)
    blank[0, 3, 1] = math.nan
    label[1, 4], blank[1, 4] = -math.inf, -math.inf
    if regular:
        label[2, 7] = -math.inf  # no label after the last frame
    expected = solve_band(label, blank, start, *sizes, regular, True)
    found = kernels.solve_band(label, blank, start, *sizes, regular, True)
    assert torch.isnan(found[0])[0] and found[0][1] == -math.inf
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-6, atol=1e-6)


def test_long_sums_keep_their_digits():
    """float32 inputs, sums of about 3000 nats: the kernels add in float64."""
    px, py = torch.full((1, 2, 61), -20.0), torch.full((1, 3, 60), -50.0)
    px[..., 60] = -math.inf
    sizes = torch.tensor([2]), torch.tensor([60])
    scores, gx, gy = kernels.solve_lattice(px, py, *sizes, True, True)
    paths = math.lgamma(62) - math.lgamma(60) - math.lgamma(3)
    assert scores.dtype == torch.float64 and abs(float(scores) - (paths - 3040.0)) < 1e-9
    torch.testing.assert_close(gy.sum(1), torch.ones(1, 60), rtol=0, atol=1e-6)
    torch.testing.assert_close(gx.sum(2), torch.ones(1, 2), rtol=0, atol=1e-6)


def test_empty_batches():
    none = torch.zeros(0, dtype=torch.int64)
    scores, gx, gy = kernels.solve_lattice(
        torch.zeros(0, 2, 4), torch.zeros(0, 3, 4), none, none, False, True
    )
    assert scores.shape == (0,) and gx.shape == (0, 2, 4) and gy.shape == (0, 3, 4)


def test_half_precision_is_computed_in_float32():
    lm, am, symbols, boundary = arrays([3, 2], [6, 5], dtype=torch.float32)
    loss = {
        choice: select_backend(choice).rnnt_loss_simple(lm.bfloat16(), am.bfloat16(), symbols, 0, boundary)
        for choice in ("torch", "triton")
    }
    assert loss["triton"].dtype == torch.float32
    torch.testing.assert_close(loss["triton"], loss["torch"], rtol=1e-6, atol=1e-6)


def test_a_model_trains_with_the_kernels():
    encoder_out, lengths, targets = torch.randn(2, 12, 8), torch.tensor([12, 9]), [[1, 2, 3], [4]]
    sizes = {"decoder_dim": 8, "joiner_dim": 8}
    found = {}
    for name in ("torch", "triton"):
        torch.manual_seed(0)
        model = AsrModel(None, TransducerConfig(**sizes, backend=name), 6, encoder_dim=8)
        loss = model.losses(encoder_out, lengths, targets, 5000)["loss_sum"]
        loss.backward()
        found[name] = loss.detach(), model.joiner.output_linear.weight.grad
    torch.testing.assert_close(found["triton"], found["torch"], rtol=1e-5, atol=1e-6)
    assert str(select_backend("triton")) == "triton (as asked for)"
