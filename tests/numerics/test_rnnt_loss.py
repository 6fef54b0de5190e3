"""RNN-T losses: brute force over all paths, closed forms, invariants, gradcheck, padding, errors."""

import itertools
import math

import pytest
import torch

from spear_lib.transducer import (
    do_rnnt_pruning,
    get_rnnt_prune_ranges,
    rnnt_loss,
    rnnt_loss_pruned,
    rnnt_loss_simple,
    rnnt_loss_smoothed,
)

TYPES = ["regular", "modified", "constrained"]


def _paths(num_labels: int, num_frames: int, rnnt_type: str):
    """All sequences of moves (True = label, False = blank) from (0, 0) to (S, T)."""
    length = num_labels + num_frames if rnnt_type == "regular" else num_frames
    for labels_at in itertools.combinations(range(length), num_labels):
        moves = [step in labels_at for step in range(length)]
        if rnnt_type != "regular" or not moves[-1]:  # the last move of regular is a blank
            yield moves


def _brute_force(log_probs, symbols, num_labels, num_frames, rnnt_type, delay=0.0, blank=0):
    """Total log-probability by enumeration; log_probs (T, S+1, C) float64."""
    totals = []
    for moves in _paths(num_labels, num_frames, rnnt_type):
        s = t = 0
        total = log_probs.new_zeros(())
        for is_label in moves:
            if is_label:
                total = total + log_probs[t, s, symbols[s]] + delay * ((num_frames - 1) / 2 - t)
                if rnnt_type == "constrained":
                    total = total + log_probs[t, s + 1, blank]
                s += 1
                t += rnnt_type != "regular"
            else:
                total = total + log_probs[t, s, blank]
                t += 1
        assert (s, t) == (num_labels, num_frames)
        totals.append(total)
    return torch.logsumexp(torch.stack(totals), 0)


def _random(batch, frames, labels, classes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, frames, labels + 1, classes, generator=generator, dtype=dtype) * 2
    symbols = torch.randint(1, classes, (batch, labels), generator=generator)
    return logits, symbols


@pytest.mark.parametrize("rnnt_type", TYPES)
@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_brute_force(rnnt_type, delay):
    sizes = [(s, t) for s in range(4) for t in range(1, 5) if rnnt_type == "regular" or s <= t]
    logits, symbols = _random(len(sizes), 4, 3, 5)
    boundary = torch.tensor([[0, 0, s, t] for s, t in sizes])
    logits.requires_grad_()
    losses = rnnt_loss(
        logits, symbols, 0, boundary, rnnt_type=rnnt_type, delay_penalty=delay, reduction="none"
    )
    log_probs = logits.log_softmax(-1)
    expected = torch.stack(
        [
            -_brute_force(log_probs[b], symbols[b], s, t, rnnt_type, delay) for b, (s, t) in enumerate(sizes)
        ]
    )  # fmt: skip
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(0.5, 2.0, len(sizes), dtype=torch.float64)
    (found,) = torch.autograd.grad((losses * weights).sum(), logits)
    (witness,) = torch.autograd.grad((expected * weights).sum(), logits)
    torch.testing.assert_close(found, witness, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_simple_equals_full_of_the_sum(rnnt_type):
    generator = torch.Generator().manual_seed(3)
    am = torch.randn(3, 7, 6, generator=generator, dtype=torch.float64)
    lm = torch.randn(3, 5, 6, generator=generator, dtype=torch.float64)
    symbols = torch.randint(1, 6, (3, 4), generator=generator)
    boundary = torch.tensor([[0, 0, 4, 7], [0, 0, 2, 5], [0, 0, 0, 3]])
    for reduction in ("none", "sum", "mean"):
        common = {"boundary": boundary, "rnnt_type": rnnt_type, "reduction": reduction}
        simple = rnnt_loss_simple(lm, am, symbols, 0, **common)
        full = rnnt_loss(am[:, :, None] + lm[:, None], symbols, 0, **common)
        torch.testing.assert_close(simple, full, rtol=1e-12, atol=1e-12)
    each = rnnt_loss_simple(lm, am, symbols, 0, boundary, rnnt_type, reduction="none")
    torch.testing.assert_close(full, each.mean())


def test_closed_forms_of_uniform_logits():
    labels, frames, classes = 3, 5, 4
    lm, am = torch.zeros(1, labels + 1, classes), torch.zeros(1, frames, classes)
    symbols = torch.tensor([[1, 2, 3]])
    expected = {"regular": 7.5350068274697, "modified": 4.6288867126054, "constrained": 8.7877697959650}
    for rnnt_type, value in expected.items():
        loss, (gx, gy) = rnnt_loss_simple(lm, am, symbols, 0, rnnt_type=rnnt_type, return_grad=True)
        assert float(loss) == pytest.approx(value, abs=2e-6)
        if rnnt_type == "regular":
            assert gx.shape == (1, labels, frames + 1) and float(gx[..., -1].abs().max()) == 0
            assert float(gy[0, :-1, -1].abs().max()) == 0 and float(gy[0, labels, -1]) == pytest.approx(1)
            whole = math.comb(labels + frames - 1, labels)
            for s, t in itertools.product(range(labels), range(frames)):
                left, below = labels - s - 1, frames - t - 1
                count = math.comb(s + t, s) * math.comb(left + below, left)
                assert float(gx[0, s, t]) == pytest.approx(count / whole, abs=1e-6)
        else:
            assert gx.shape == (1, labels, frames)


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_occupation_invariants(rnnt_type):
    generator = torch.Generator().manual_seed(1)
    am = torch.randn(4, 40, 11, generator=generator) * 3
    lm = torch.randn(4, 13, 11, generator=generator) * 3
    symbols = torch.randint(1, 11, (4, 12), generator=generator)
    sizes = [(12, 40), (12, 12), (3, 31), (0, 7)]
    boundary = torch.tensor([[0, 0, s, t] for s, t in sizes])
    _, (gx, gy) = rnnt_loss_smoothed(lm, am, symbols, 0, 0.25, 0.0, boundary, rnnt_type, return_grad=True)
    assert float(gx.min()) >= 0 and float(gy.min()) >= 0
    for b, (s, t) in enumerate(sizes):
        if rnnt_type == "regular":
            torch.testing.assert_close(gy[b, :, :t].sum(0), torch.ones(t))
            torch.testing.assert_close(gx[b, :s].sum(1), torch.ones(s))
        else:
            torch.testing.assert_close((gy[b].sum(0) + gx[b].sum(0))[:t], torch.ones(t))
        assert float(gx[b, s:].sum() + gx[b, :, t:].sum() + gy[b, s + 1 :].sum() + gy[b, :, t:].sum()) == 0


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_gradcheck(rnnt_type):
    generator = torch.Generator().manual_seed(5)
    am = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    lm = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    symbols = torch.tensor([[1, 3, 2], [2, 2, 0]])
    boundary = torch.tensor([[0, 0, 3, 4], [0, 0, 2, 3]])
    options = {"boundary": boundary, "rnnt_type": rnnt_type, "delay_penalty": 0.1, "reduction": "none"}
    assert torch.autograd.gradcheck(
        lambda lm, am: rnnt_loss_smoothed(lm, am, symbols, 0, 0.25, 0.1, **options), (lm, am)
    )
    assert torch.autograd.gradcheck(lambda lm, am: rnnt_loss_simple(lm, am, symbols, 0, **options), (lm, am))
    logits = torch.randn(2, 4, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rnnt_loss(x, symbols, 0, **options), (logits,))
    ranges = torch.tensor([[0, 0, 1, 2], [0, 0, 1, 1]])[..., None] + torch.arange(2)
    assert torch.autograd.gradcheck(
        lambda x: rnnt_loss_pruned(x, symbols, ranges, 0, **options), (logits[:, :, :2],)
    )


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_pruned_is_the_full_loss_inside_the_band(rnnt_type):
    """Against the full lattice with every logit outside the band at -inf (for all states: R = S + 1)."""
    generator = torch.Generator().manual_seed(7)
    batch, frames, labels, classes = 5, 20, 9, 8
    logits, symbols = _random(batch, frames, labels, classes, seed=8)
    sizes = [(9, 20), (5, 20), (0, 6), (9, 9), (1, 1)]
    boundary = torch.tensor([[0, 0, s, t] for s, t in sizes])
    lm = torch.randn(batch, labels + 1, classes, generator=generator)
    am = torch.randn(batch, frames, classes, generator=generator)
    _, occupation = rnnt_loss_simple(lm, am, symbols, 0, boundary, rnnt_type, return_grad=True)
    weights = torch.linspace(0.5, 1.5, batch, dtype=torch.float64)
    for size in (3, 5, labels + 1):
        ranges = get_rnnt_prune_ranges(*occupation, boundary, size)
        band = logits.gather(2, ranges[..., None].expand(-1, -1, -1, classes)).detach().requires_grad_()
        common = {
            "boundary": boundary, "rnnt_type": rnnt_type, "delay_penalty": 0.05, "reduction": "none",
        }  # fmt: skip
        pruned = rnnt_loss_pruned(band, symbols, ranges, 0, **common)
        (pruned * weights).sum().backward()

        inside = torch.zeros(batch, frames, labels + 1, dtype=torch.bool).scatter(2, ranges, True)
        full_logits = logits.detach().requires_grad_()
        expected = torch.stack(
            [
                _double_loop(full_logits[b], symbols[b], s, t, inside[b], rnnt_type, 0.05)
                for b, (s, t) in enumerate(sizes)
            ]
        )
        torch.testing.assert_close(pruned, expected, rtol=1e-11, atol=1e-11)
        (gradient,) = torch.autograd.grad((expected * weights).sum(), full_logits)
        gradient = gradient.gather(2, ranges[..., None].expand(-1, -1, -1, classes))
        torch.testing.assert_close(band.grad, gradient, rtol=1e-9, atol=1e-11)
        if size == labels + 1:
            torch.testing.assert_close(pruned, rnnt_loss(logits, symbols, 0, **common))


def _double_loop(logits, symbols, num_labels, num_frames, inside, rnnt_type, delay):
    """The recursion of spec rnnt §1.1 state by state, over the states ``inside`` (T, S+1) only."""
    log_probs = logits.log_softmax(-1)
    alpha = {(0, 0): log_probs.new_zeros(())}
    for t in range(num_frames + 1):
        for s in range(num_labels + 1):
            ways = []
            label_frame = t if rnnt_type == "regular" else t - 1
            if s and 0 <= label_frame < num_frames and inside[label_frame, s - 1]:
                step = log_probs[label_frame, s - 1, symbols[s - 1]]
                step = step + delay * ((num_frames - 1) / 2 - label_frame)
                allowed = inside[label_frame, s] or rnnt_type == "modified"
                if rnnt_type == "constrained" and allowed:
                    step = step + log_probs[label_frame, s, 0]
                if allowed and (s - 1, label_frame) in alpha:
                    ways.append(alpha[s - 1, label_frame] + step)
            if t and inside[t - 1, s] and (s, t - 1) in alpha:
                ways.append(alpha[s, t - 1] + log_probs[t - 1, s, 0])
            is_inside = inside[min(t, num_frames - 1), s]
            if ways and is_inside and (s, t) != (0, 0):
                alpha[s, t] = torch.logsumexp(torch.stack(ways), 0)
    return -alpha[num_labels, num_frames]


def test_padding_and_batch_order_change_nothing():
    generator = torch.Generator().manual_seed(11)
    am, lm = torch.randn(3, 9, 6, generator=generator), torch.randn(3, 5, 6, generator=generator)
    symbols = torch.randint(1, 6, (3, 4), generator=generator)
    boundary = torch.tensor([[0, 0, 4, 9], [0, 0, 1, 4], [0, 0, 3, 6]])
    for rnnt_type in TYPES:
        options = {"rnnt_type": rnnt_type, "reduction": "none", "return_grad": True}
        losses, (gx, gy) = rnnt_loss_smoothed(lm, am, symbols, 0, 0.25, 0.0, boundary, **options)
        wide_am = torch.cat([am, torch.full((3, 4, 6), 50.0)], 1)
        wide_lm = torch.cat([lm, torch.full((3, 3, 6), -50.0)], 1)
        wide_symbols = torch.cat([symbols, torch.full((3, 3), 5)], 1)
        wide, (wide_gx, wide_gy) = rnnt_loss_smoothed(
            wide_lm, wide_am, wide_symbols, 0, 0.25, 0.0, boundary, **options
        )
        torch.testing.assert_close(wide, losses)
        torch.testing.assert_close(wide_gx[:, :4, :9], gx[:, :, :9])
        torch.testing.assert_close(wide_gy[:, :5, :9], gy)
        order = torch.tensor([2, 0, 1])
        other = rnnt_loss_smoothed(
            lm[order], am[order], symbols[order], 0, 0.25, 0.0, boundary[order], **options
        )
        assert torch.equal(other[0], losses[order])


def test_disjoint_peaks_do_not_underflow():
    """spec rnnt §2: peaks 400 nats apart; a float32 normaliser gives 337.3 here."""
    am, lm = torch.zeros(1, 1, 2), torch.zeros(1, 2, 2)
    am[..., 0], lm[..., 1] = 200.0, 200.0
    symbols = torch.tensor([[1]])
    loss = rnnt_loss_simple(lm, am, symbols, 0)
    assert float(loss) == pytest.approx(2 * math.log(2), abs=1e-4)


def test_long_utterance_in_float32():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 400, 13, 5, generator=generator) * 4
    symbols = torch.randint(1, 5, (2, 12), generator=generator)
    exact = rnnt_loss(logits.double(), symbols, 0, reduction="none")
    torch.testing.assert_close(
        rnnt_loss(logits, symbols, 0, reduction="none").double(), exact, rtol=2e-7, atol=0
    )
    rounded = rnnt_loss(logits.bfloat16(), symbols, 0, reduction="none")
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-2, atol=0)
    logits = logits.bfloat16().requires_grad_()
    rnnt_loss(logits, symbols, 0).backward()
    assert logits.grad.dtype == torch.bfloat16 and bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("rnnt_type", ["modified", "constrained"])
def test_no_path_is_an_infinite_loss_without_gradient(rnnt_type):
    logits, symbols = _random(2, 3, 4, 5)
    logits.requires_grad_()
    boundary = torch.tensor([[0, 0, 4, 3], [0, 0, 2, 3]])
    losses = rnnt_loss(logits, symbols, 0, boundary, rnnt_type=rnnt_type, reduction="none")
    assert torch.isfinite(losses).tolist() == [False, True] and losses[0].item() == math.inf
    losses.sum().backward()
    assert float(logits.grad[0].abs().max()) == 0 and float(logits.grad[1].abs().max()) > 0
    narrow = logits.detach()[:, :, :2].clone().requires_grad_()
    ranges = torch.tensor([0, 0, 0]).reshape(1, 3, 1).expand(2, 3, 1) + torch.arange(2)
    pruned = rnnt_loss_pruned(narrow, symbols, ranges, 0, boundary, rnnt_type=rnnt_type, reduction="none")
    assert bool(torch.isinf(pruned).all())  # the band never reaches the last label
    pruned.sum().backward()
    assert float(narrow.grad.abs().max()) == 0


def test_losses_without_gradient_agree():
    logits, symbols = _random(2, 6, 3, 5)
    with torch.no_grad():
        silent = rnnt_loss(logits, symbols, 0)
    assert torch.equal(silent, rnnt_loss(logits.requires_grad_(), symbols, 0).detach())


# ------------------------------------------------------------------------------------- prune ranges
def _plain_ranges(gx, gy, num_labels, num_frames, size, regular):
    """The five rules of spec rnnt §3 in plain Python, for one utterance; gx (S, T), gy (S+1, T)."""
    labels, frames = gx.shape[0], gy.shape[1]
    start = []
    for t in range(frames):
        scores = [
            sum(float(gy[i + k, t]) for k in range(size)) - (float(gx[i - 1, t]) if i else 0.0)
            for i in range(labels + 2 - size)
        ]
        start.append(scores.index(max(scores)) if t < num_frames - 1 else max(num_labels - size + 1, 0))
    for t in range(frames - 2, -1, -1):
        start[t] = min(start[t], start[t + 1])
    limit = (size if regular else 2) - 1
    slack = [limit * t - s for t, s in enumerate(start)]
    for t in range(frames - 2, -1, -1):
        slack[t] = min(slack[t], slack[t + 1])
    return [limit * t - max(v, 0) for t, v in enumerate(slack)]


def test_prune_ranges_follow_the_rules():
    generator = torch.Generator().manual_seed(13)
    checked = 0
    for case in range(300):
        rnnt_type = TYPES[case % 3]
        regular = rnnt_type == "regular"
        frames = int(torch.randint(1, 9, (), generator=generator))
        labels = int(torch.randint(0, 7, (), generator=generator))
        sizes = []
        for _ in range(3):
            t = int(torch.randint(1, frames + 1, (), generator=generator))
            s = int(torch.randint(0, labels + 1, (), generator=generator))
            sizes.append((s if regular else min(s, t), t))
        boundary = torch.tensor([[0, 0, s, t] for s, t in sizes])
        lm = torch.randn(3, labels + 1, 5, generator=generator, dtype=torch.float64) * 3
        am = torch.randn(3, frames, 5, generator=generator, dtype=torch.float64) * 3
        symbols = torch.randint(1, 5, (3, labels), generator=generator)
        _, (gx, gy) = rnnt_loss_simple(lm, am, symbols, 0, boundary, rnnt_type, return_grad=True)
        ranges = get_rnnt_prune_ranges(gx, gy, boundary, int(torch.randint(2, 6, (), generator=generator)))
        size = ranges.shape[2]
        assert size <= labels + 1
        assert torch.equal(ranges - ranges[..., :1], torch.arange(size).expand_as(ranges))
        assert int(ranges.min()) == 0 and int(ranges.max()) <= labels and int(ranges[:, 0, 0].max()) == 0
        for b, (s, t) in enumerate(sizes):
            expected = _plain_ranges(gx[b, :, :frames], gy[b], s, t, size, regular)
            assert ranges[b, :, 0].tolist() == expected
            if regular:  # every label stays reachable
                assert int(ranges[b, t - 1, 0]) == max(s - size + 1, 0)
            checked += 1
        logits = torch.randn(3, frames, size, 5, generator=generator)
        loss = rnnt_loss_pruned(logits, symbols, ranges, 0, boundary, rnnt_type, reduction="none")
        assert not regular or bool(torch.isfinite(loss).all())
    assert checked == 900


def test_prune_range_is_raised_and_said(caplog):
    lm, am = torch.zeros(1, 9, 4), torch.zeros(1, 3, 4)
    symbols = torch.ones(1, 8, dtype=torch.int64)
    _, occupation = rnnt_loss_simple(lm, am, symbols, 0, return_grad=True)
    ranges = get_rnnt_prune_ranges(*occupation, None, 3)
    assert ranges.shape == (1, 3, 4)
    assert "prune range raised from 3 to 4" in caplog.text


def test_do_rnnt_pruning():
    am, lm = torch.randn(2, 5, 3), torch.randn(2, 6, 3)
    ranges = torch.tensor([[0, 1, 1, 2, 3], [0, 0, 0, 1, 2]])[..., None] + torch.arange(3)
    am_pruned, lm_pruned = do_rnnt_pruning(am, lm, ranges)
    for b, t, r in itertools.product(range(2), range(5), range(3)):
        assert torch.equal(am_pruned[b, t, r], am[b, t])
        assert torch.equal(lm_pruned[b, t, r], lm[b, ranges[b, t, r]])


# ------------------------------------------------------------------------------------------- errors
def test_errors():
    am, lm, symbols = torch.zeros(2, 5, 4), torch.zeros(2, 4, 4), torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="rnnt_type is 'standard'; choose one of regular"):
        rnnt_loss_simple(lm, am, symbols, 0, rnnt_type="standard")
    with pytest.raises(ValueError, match="reduction is 'avg'"):
        rnnt_loss_simple(lm, am, symbols, 0, reduction="avg")
    with pytest.raises(ValueError, match="sum to less than 1"):
        rnnt_loss_smoothed(lm, am, symbols, 0, 0.5, 0.5)
    with pytest.raises(ValueError, match="delay_penalty is -1"):
        rnnt_loss_simple(lm, am, symbols, 0, delay_penalty=-1)
    with pytest.raises(ValueError, match="up to 3 labels and 6 frames, but the arrays hold 3 labels and 5"):
        rnnt_loss_simple(lm, am, symbols, 0, torch.tensor([[0, 0, 3, 6], [0, 0, 1, 5]]))
    with pytest.raises(ValueError, match="first two columns"):
        rnnt_loss_simple(lm, am, symbols, 0, torch.tensor([[1, 0, 3, 5], [0, 0, 1, 5]]))
    with pytest.raises(ValueError, match=r"expected \(2, 4\) torch.int64"):
        rnnt_loss_simple(lm, am, symbols, 0, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"symbols is \(2, 2\); the other arrays ask for \(2, 3\)"):
        rnnt_loss_simple(lm, am, symbols[:, :2], 0)
    with pytest.raises(ValueError, match=r"termination_symbol is 9; it must lie in 0..3"):
        rnnt_loss_simple(lm, am, symbols, 9)
    with pytest.raises(ValueError, match="differ in batch size or classes"):
        rnnt_loss_simple(lm[:1], am, symbols, 0)
    with pytest.raises(ValueError, match="ranges is"):
        rnnt_loss_pruned(torch.zeros(2, 5, 3, 4), symbols, torch.zeros(2, 5, 2, dtype=torch.int64), 0)
    gx, gy = torch.zeros(2, 3, 6), torch.zeros(2, 4, 5)
    with pytest.raises(ValueError, match="s_range is 1, but the regular transducer needs at least 2"):
        get_rnnt_prune_ranges(gx, gy, None, 1)
