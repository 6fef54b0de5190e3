"""Second witness of the RNN-T losses: every alignment listed and summed, for T <= 4 and S <= 3.

Unlike the recursions it knows nothing of alphas: a path is a tuple of arcs, its weight the sum of their
log-probabilities, and the occupation of an arc the posterior mass of the paths that use it.
"""

import pytest
import torch

from spear_lib.transducer import (
    get_rnnt_prune_ranges,
    rnnt_loss,
    rnnt_loss_pruned,
    rnnt_loss_simple,
    rnnt_loss_smoothed,
)

TYPES = ["regular", "modified", "constrained"]
SIZES = [(s, t) for s in range(4) for t in range(1, 5)]


def _alignments(s, t, num_labels, num_frames, regular):
    """All arc tuples ("label" | "blank", s, t) from state (s, t) to (S, T)."""
    if (s, t) == (num_labels, num_frames):
        yield ()
    if t < num_frames:
        for rest in _alignments(s, t + 1, num_labels, num_frames, regular):
            yield (("blank", s, t), *rest)
        if s < num_labels:
            for rest in _alignments(s + 1, t + (not regular), num_labels, num_frames, regular):
                yield (("label", s, t), *rest)


def _enumerate(label, blank, num_labels, num_frames, rnnt_type, delay, kept=None):
    """(score, occupations of label (S, T), of blank (S+1, T)) from label(s, t) and blank(s, t).

    ``kept``: the states (s, t) that a path may visit, and of "constrained" the states whose blank it is
    forced to take; the frame after the last one has the last one's states. None = all.
    """
    weights, paths = [], []
    for arcs in _alignments(0, 0, num_labels, num_frames, rnnt_type == "regular"):
        visited = [(s, t) for _, s, t in arcs] + [(num_labels, num_frames - 1)]
        if rnnt_type == "constrained":
            visited += [(s + 1, t) for kind, s, t in arcs if kind == "label"]
        if kept is not None and not kept.issuperset(visited):
            continue
        total = torch.zeros((), dtype=torch.float64)
        for kind, s, t in arcs:
            if kind == "blank":
                total = total + blank(s, t)
            else:
                total = total + label(s, t) + delay * ((num_frames - 1) / 2 - t)
                if rnnt_type == "constrained":
                    total = total + blank(s + 1, t)
        weights.append(total)
        paths.append(arcs)
    gx = torch.zeros(max(num_labels, 1), num_frames, dtype=torch.float64)
    gy = torch.zeros(num_labels + 1, num_frames, dtype=torch.float64)
    if not weights:
        return torch.tensor(-torch.inf, dtype=torch.float64), gx[:num_labels], gy
    score = torch.logsumexp(torch.stack(weights), 0)
    for weight, arcs in zip(weights, paths):
        for kind, s, t in arcs:
            (gx if kind == "label" else gy)[s, t] += (weight - score).exp().detach()
    return score, gx[:num_labels], gy


def _batch(seed):
    generator = torch.Generator().manual_seed(seed)
    batch = len(SIZES)
    lm = torch.randn(batch, 4, 5, generator=generator, dtype=torch.float64) * 2
    am = torch.randn(batch, 4, 5, generator=generator, dtype=torch.float64) * 2
    symbols = torch.randint(1, 5, (batch, 3), generator=generator)
    boundary = torch.tensor([[0, 0, s, t] for s, t in SIZES])
    return lm, am, symbols, boundary


def test_number_of_alignments():
    """Closed forms, so that the witness itself is checked: 10 = C(5, 2), 4 = C(4, 3)."""
    assert sum(1 for _ in _alignments(0, 0, 3, 3, True)) == 10
    assert sum(1 for _ in _alignments(0, 0, 3, 4, False)) == 4
    assert sum(1 for _ in _alignments(0, 0, 3, 2, False)) == 0
    assert list(_alignments(0, 0, 0, 1, True)) == [(("blank", 0, 0),)]


@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("delay", [0.0, 0.4])
@pytest.mark.parametrize("scales", [(0.0, 0.0), (0.25, 0.0), (0.2, 0.3)])
def test_simple_and_smoothed(rnnt_type, delay, scales):
    lm, am, symbols, boundary = _batch(1)
    lm_scale, am_scale = scales
    options = {
        "boundary": boundary, "rnnt_type": rnnt_type, "delay_penalty": delay, "return_grad": True,
    }  # fmt: skip
    if scales == (0.0, 0.0):
        found, (gx, gy) = rnnt_loss_simple(lm, am, symbols, 0, reduction="none", **options)
        summed = rnnt_loss_simple(lm, am, symbols, 0, reduction="sum", **options)[0]
    else:
        found, (gx, gy) = rnnt_loss_smoothed(lm, am, symbols, 0, *scales, reduction="none", **options)
        summed = rnnt_loss_smoothed(lm, am, symbols, 0, *scales, reduction="sum", **options)[0]
    unigram = lm.softmax(-1).mean((0, 1)).log()
    mixed = (
        (1 - lm_scale - am_scale) * (am[:, :, None] + lm[:, None]).log_softmax(-1)
        + lm_scale * lm.log_softmax(-1)[:, None]
        + am_scale * (am + unigram).log_softmax(-1)[:, :, None]
    )  # (B, T, S+1, C)
    impossible = 0
    for b, (labels, frames) in enumerate(SIZES):
        score, witness_gx, witness_gy = _enumerate(
            lambda s, t, b=b: mixed[b, t, s, symbols[b, s]],
            lambda s, t, b=b: mixed[b, t, s, 0],
            labels, frames, rnnt_type, delay,
        )  # fmt: skip
        impossible += bool(torch.isinf(score))
        torch.testing.assert_close(found[b], -score, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gx[b, :labels, :frames], witness_gx, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gy[b, : labels + 1, :frames], witness_gy, rtol=1e-10, atol=1e-12)
    assert impossible == (0 if rnnt_type == "regular" else sum(s > t for s, t in SIZES))
    torch.testing.assert_close(summed, found.sum())


@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("delay", [0.0, 0.4])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_pruned(rnnt_type, delay, size):
    """Prune ranges of the simple loss; then only alignments inside the band count."""
    lm, am, symbols, boundary = _batch(2)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(len(SIZES), 4, 4, 5, generator=generator, dtype=torch.float64) * 2
    _, occupation = rnnt_loss_simple(lm, am, symbols, 0, boundary, rnnt_type, return_grad=True)
    ranges = get_rnnt_prune_ranges(*occupation, boundary, size)
    band = logits.gather(2, ranges[..., None].expand(-1, -1, -1, 5)).requires_grad_()
    options = {"boundary": boundary, "rnnt_type": rnnt_type, "delay_penalty": delay}
    found = rnnt_loss_pruned(band, symbols, ranges, 0, reduction="none", **options)
    full = rnnt_loss(logits, symbols, 0, reduction="none", **options)
    log_probs = band.log_softmax(-1)
    expected = []
    for b, (labels, frames) in enumerate(SIZES):
        start = ranges[b, :, 0].tolist()
        kept = {(s, t) for t in range(frames) for s in ranges[b, t].tolist()}
        expected.append(
            -_enumerate(
                lambda s, t, b=b, start=start: log_probs[b, t, s - start[t], symbols[b, s]],
                lambda s, t, b=b, start=start: log_probs[b, t, s - start[t], 0],
                labels, frames, rnnt_type, delay, kept,
            )[0]
        )  # fmt: skip
    expected = torch.stack(expected)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    if ranges.shape[2] == 4:
        torch.testing.assert_close(found, full, rtol=1e-12, atol=1e-12)
    possible = torch.isfinite(expected)
    (witness,) = torch.autograd.grad(expected[possible].sum(), band)
    (gradient,) = torch.autograd.grad(found.sum(), band)
    torch.testing.assert_close(gradient, witness, rtol=1e-9, atol=1e-12)
    for reduction in ("sum", "mean"):
        reduced = rnnt_loss_pruned(band, symbols, ranges, 0, reduction=reduction, **options)
        torch.testing.assert_close(reduced, getattr(found, reduction)())
