"""Masks of self-distillation: the reference's statistics in parity, and ours, which know no batch."""

import json
import math

import numpy as np
import pytest
import torch
from spidr_fixtures import GOLDEN

from spear_lib.features.fbank import fbank_length
from spear_lib.self_distillation.masking import (
    FrameMaskingConfig,
    as_fbank_mask,
    frame_counts,
    frame_mask,
)

CASES = json.loads((GOLDEN / "masks.json").read_text())["cases"]
PARITY, OURS = FrameMaskingConfig(parity=True), FrameMaskingConfig()
MAX_ROWS = 1500


def name_of(case):
    return f"{case['lengths'] or case['frames']}x{case['batch']}"


def batches_of(case):
    """(batches, B, T) masks drawn as the case was, fewer of them where it has many."""
    lengths = torch.tensor(case["lengths"] or [case["frames"]] * case["batch"])
    number = max(1, min(case["draws"], MAX_ROWS // len(lengths)))
    keys = torch.arange(number * len(lengths)).view(number, -1) * 7919 + 13
    masks = [frame_mask(lengths, row, PARITY, int(lengths.max())) for row in keys]
    return torch.stack(masks), lengths


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_parity_with_the_reference(case):
    masks, lengths = batches_of(case)
    shares = masks.sum(2).double() / lengths
    if case["batch"] > 1:
        assert (masks.sum(2) == masks.sum(2)[:, :1]).all(), "equal counts"
    expected = case["masked_fraction"]
    shares = shares.flatten()
    # Rows of a batch share their count, so only batches are independent.
    spread = shares.std().item() if len(shares) > 1 else 0.0
    mine = spread / math.sqrt(len(masks))
    assert (
        abs(shares.mean().item() - expected["mean"])
        <= 4 * math.hypot(mine, expected["standard_error"]) + 1e-9
    )
    flat = masks.flatten(0, 1)
    rows = len(flat)
    error = 4 * math.sqrt(0.25 / rows + 0.25 / case["rows"])
    if not case["lengths"]:
        last = flat[:, -1].double().mean().item()
        assert abs(last - case["share_rows_last_frame_masked"]) <= error
        whole = flat.all(1).double().mean().item()
        assert abs(whole - case["share_rows_fully_masked"]) <= error
    if "probability_per_frame" in case and not case["lengths"]:
        found = flat.double().mean(0).numpy()
        assert np.abs(found - case["probability_per_frame"]).max() <= 1.3 * error
    if "masked_count_histogram" in case and not case["lengths"]:
        counts = torch.bincount(flat.sum(1), minlength=case["frames"] + 1).double() / rows
        wanted = torch.zeros(case["frames"] + 1, dtype=torch.float64)
        for count, share in case["masked_count_histogram"].items():
            wanted[int(count)] = share
        variance = (wanted + 1e-4) * (1 / len(masks) + 1 / (case["rows"] / case["batch"]))
        filled = wanted > 0.005
        chi_square = ((counts - wanted).square() / variance)[filled].sum().item()
        assert chi_square <= filled.sum() + 4 * math.sqrt(2 * filled.sum()) + 4


def exact_share(frames, probability=0.8, span=10):
    """Masked share of one row by the formula of the specification (§6), for k = floor(x + u)."""
    x = probability * frames / span
    total = 0.0
    for spans, chance in ((int(x), 1 - (x - int(x))), (int(x) + 1, x - int(x))):
        covering = np.array([min(t, frames - span - 1) - max(0, t - span + 1) + 1 for t in range(frames)])
        covering = covering.clip(min=0)
        missed = [
            math.comb(frames - span - int(w), spans) / math.comb(frames - span, spans) for w in covering
        ]
        total += chance * (1 - np.mean(missed))
    return total


@pytest.mark.parametrize(("frames", "stated"), [(49, 0.5800), (99, 0.5721), (249, 0.5681), (999, 0.5662)])
def test_ours_has_the_share_of_an_utterance_alone(frames, stated):
    assert exact_share(frames) == pytest.approx(stated, abs=6e-5)
    number = 3000
    mask = frame_mask(torch.full((number,), frames), torch.arange(number) * 31 + 5, OURS, frames)
    shares = mask.double().mean(1)
    assert shares.mean().item() == pytest.approx(stated, abs=4 * shares.std().item() / math.sqrt(number))


def test_ours_knows_neither_batch_nor_padding():
    lengths, keys = torch.tensor([249, 60, 99]), torch.tensor([11, 12, 13])
    together = frame_mask(lengths, keys, OURS, 300)
    assert not together[1, 60:].any()
    for row in range(3):
        alone = frame_mask(lengths[row : row + 1], keys[row : row + 1], OURS, int(lengths[row]))
        assert torch.equal(alone[0], together[row, : lengths[row]])
    # Equal counts would take frames out of the others' spans; here every masked run is at least a span.
    runs = "".join("x" if frame else " " for frame in together[0].tolist()).split()
    assert min(map(len, runs)) >= OURS.span


@pytest.mark.parametrize("frames", range(1, 40))
def test_ours_leaves_something_visible(frames):
    mask = frame_mask(torch.full((200,), frames), torch.arange(200), OURS, frames)
    assert not mask.all(1).any()
    if frames > OURS.span:
        assert mask.any(1).all()


@pytest.mark.parametrize("num_samples", [8000, 8001, 16000, 20319, 32080])
def test_masks_of_fbank_frames(num_samples):
    from spear_lib.encoders.spidr import SpidrConfig, SpidrEncoder
    from spear_lib.features.masking import student_mask

    encoder = SpidrEncoder(SpidrConfig.mini())
    samples = torch.tensor([num_samples])
    for kind in ("waveform", "fbank"):
        frames = int(frame_counts(samples, kind))
        mask = frame_mask(torch.tensor([frames]), torch.tensor([5]), OURS, frames)
        wide = as_fbank_mask(mask, num_samples, kind)
        assert wide.shape == (1, fbank_length(num_samples))
        if kind == "waveform":
            assert frames == encoder.hidden_length(num_samples)
            assert torch.equal(encoder.masked_frames(wide, frames), mask)
        else:
            assert (student_mask(wide, frames) != mask).sum() <= 2


def test_a_mask_without_spans_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        FrameMaskingConfig(probability=0.0)
    with pytest.raises(ValueError, match="at least 1 frame"):
        FrameMaskingConfig(span=0)
