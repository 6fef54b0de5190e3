"""Masks: reference statistics, the exact formula, edge rules, independence of batch and padding."""

import json
from math import comb
from pathlib import Path

import pytest
import torch

from spear_lib.features.masking import (
    MaskingConfig,
    channel_mask,
    span_counts,
    student_mask,
    student_mask_fraction,
    time_mask,
)
from spear_lib.runtime.keyed_random import keys

STATISTICS = json.loads((Path(__file__).parent.parent / "golden" / "masking_stats.json").read_text())
DRAWS = 2000


@pytest.fixture(scope="module")
def draw_keys():
    return keys("masks", ids=[str(number) for number in range(DRAWS)])


def close_to(statistic: dict, share: torch.Tensor) -> None:
    """Mean within 4 standard errors of both sides, std within 10 %."""
    error = (2 * statistic["std"] ** 2 / DRAWS) ** 0.5
    assert abs(share.mean().item() - statistic["mean"]) < 4 * error + 1e-6, (statistic, share.mean())
    assert abs(share.std().item() - statistic["std"]) < 0.1 * statistic["std"] + 1e-6, (
        statistic,
        share.std(),
    )
    assert share.min() >= statistic["min"] - 0.1
    assert share.max() <= statistic["max"] + 0.1


@pytest.mark.parametrize("row", STATISTICS["time"], ids=lambda row: f"{row['mask_prob']}-{row['T']}")
def test_time_mask_has_the_reference_statistics(row, draw_keys):
    mask = time_mask(
        torch.full((DRAWS,), row["T"]),
        draw_keys,
        row["mask_prob"],
        row["mask_length"],
        row.get("min_masks", 2),
    )
    close_to(row, mask.float().mean(dim=1))
    assert not mask[:, -1].any()
    runs = (mask[:, 1:] & ~mask[:, :-1]).sum(dim=1) + mask[:, 0].int()
    assert runs.float().mean().item() == pytest.approx(row["mean_number_of_contiguous_runs"], rel=0.03)


@pytest.mark.parametrize(
    "row", [row for row in STATISTICS["small_T"] if "mean" in row], ids=lambda row: str(row["T"])
)
def test_short_utterances_have_the_reference_statistics(row, draw_keys):
    mask = time_mask(
        torch.full((DRAWS,), row["T"]),
        draw_keys,
        row["mask_prob"],
        row["mask_length"],
        row.get("min_masks", 2),
    )
    close_to(row, mask.float().mean(dim=1))


@pytest.mark.parametrize("row", STATISTICS["channel"], ids=lambda row: str(row["mask_length"]))
def test_channel_mask_has_the_reference_statistics(row, draw_keys):
    mask = channel_mask(draw_keys, row["mask_prob"], row["mask_length"])
    assert mask.shape == (DRAWS, 128)
    error = (2 * row["std"] ** 2 / DRAWS) ** 0.5
    assert abs(mask.float().mean().item() - row["mean"]) < 4 * error
    assert mask.float().mean(dim=1).std().item() == pytest.approx(row["std"], rel=0.1)


def test_padding_is_never_masked_and_does_not_matter(draw_keys):
    (row,) = STATISTICS["time_with_padding"]
    lengths = torch.full((DRAWS,), row["valid"])
    mask = time_mask(lengths, draw_keys, row["mask_prob"], row["mask_length"], max_frames=row["T"])
    assert mask.shape == (DRAWS, row["T"])
    assert not mask[:, row["valid"] :].any()
    close_to(row, mask[:, : row["valid"]].float().mean(dim=1))
    alone = time_mask(lengths[:1], draw_keys[:1], row["mask_prob"], row["mask_length"])
    assert torch.equal(alone[0], mask[0, : row["valid"]])


def exact_probability(n: int, span: int, count: int, frame: int) -> float:
    """A frame is free with probability C(M - k, c) / C(M, c), k = starts that cover it (spec §1)."""
    starts = n - span
    covering = min(frame, starts - 1) - max(0, frame - span + 1) + 1
    return 1.0 - comb(starts - max(0, covering), count) / comb(starts, count)


def test_masked_share_of_each_frame_follows_the_exact_formula(draw_keys):
    n, span, probability, draws = 100, 10, 0.6, 20000  # 0.6 * 100 / 10: exactly 6 spans whatever U is
    many = keys("profile", ids=[str(number) for number in range(draws)])
    share = time_mask(torch.full((draws,), n), many, probability, span).float().mean(dim=0)
    for frame in (0, 5, 9, 10, n // 2, n - 2):
        expected = exact_probability(n, span, 6, frame)
        sigma = (expected * (1 - expected) / draws) ** 0.5
        assert abs(share[frame].item() - expected) < 4 * sigma, frame
    assert share[n - 1] == 0


def test_position_profile_of_the_reference():
    (row,) = STATISTICS["position_profile"]
    many = keys("profile", ids=[str(number) for number in range(row["draws"])])
    mask = time_mask(torch.full((row["draws"],), row["T"]), many, row["mask_prob"], row["mask_length"])
    expected = torch.tensor(row["frequency_per_frame"])
    sigma = (2 * expected * (1 - expected) / row["draws"]).sqrt()
    assert ((mask.float().mean(dim=0) - expected).abs() < 4.5 * sigma + 1e-4).all()


def test_number_of_spans():
    lengths, draws = (
        torch.tensor([1000, 1000, 57, 25, 10, 9, 0]),
        torch.tensor([0.0, 0.5, 0.9, 0.0, 0.0, 0.9, 0.9]),
    )
    assert span_counts(lengths, draws, 0.65, 10, 2).tolist() == [65, 65, 4, 2, 1, 0, 0]
    assert span_counts(torch.tensor([128, 128]), torch.tensor([0.0, 0.9]), 0.25, 15, 0).tolist() == [2, 3]


@pytest.mark.parametrize("length", [0, 1, 9])
def test_utterances_shorter_than_a_span_are_not_masked(length, draw_keys):
    assert not time_mask(torch.full((DRAWS,), length), draw_keys, 0.65, 10, max_frames=12).any()


def test_an_utterance_never_vanishes_whole(draw_keys):
    mask = time_mask(torch.full((DRAWS,), 10), draw_keys, 0.65, 10)  # one span as long as the utterance
    assert (mask.sum(dim=1) == 9).all()
    assert (~mask[:, 9]).any() and (~mask[:, 0]).any()
    every_frame = time_mask(torch.full((DRAWS,), 6), draw_keys, 1.0, 1, min_spans=9)
    assert (~every_frame).any(dim=1).all()


def test_masks_belong_to_the_key():
    lengths = torch.tensor([300, 120])
    first = time_mask(lengths, keys("a", ids=["x", "y"]), 0.65, 10)
    assert torch.equal(first, time_mask(lengths, keys("a", ids=["x", "y"]), 0.65, 10))
    swapped = time_mask(lengths.flip(0), keys("a", ids=["y", "x"]), 0.65, 10)
    assert torch.equal(first, swapped.flip(0))
    assert not torch.equal(first, time_mask(lengths, keys("b", ids=["x", "y"]), 0.65, 10))
    # time and channel draws of one key are independent draws
    one = keys("a", ids=[str(number) for number in range(DRAWS)])
    time = time_mask(torch.full((DRAWS,), 128), one, 0.25, 15, 0).float().flatten()
    channel = channel_mask(one, 0.25, 15).float().flatten()
    assert abs(torch.corrcoef(torch.stack((time, channel)))[0, 1]) < 0.2


def test_student_frames_need_five_of_nine():
    mask = torch.zeros(1, 30, dtype=torch.bool)
    mask[0, 4:9] = True  # five of 0..8 and of 2..10 and of 4..12, three of 6..14
    fraction = student_mask_fraction(mask, 11, 50)
    torch.testing.assert_close(fraction[0, :4] * 9, torch.tensor([5.0, 5.0, 5.0, 3.0]))
    assert student_mask(mask, 11, 50)[0].tolist() == [True] * 3 + [False] * 8
    mask[0, 4] = False
    assert not student_mask(mask, 11, 50)[0, 0]


def test_student_frames_at_25_hz_need_half_of_eleven():
    mask = torch.zeros(1, 40, dtype=torch.bool)
    mask[0, 5:11] = True  # six of 0..10
    assert student_mask(mask, 8, 25)[0, :2].tolist() == [True, True]
    mask[0, 5] = False
    assert student_mask(mask, 8, 25)[0, :2].tolist() == [False, False]


def test_student_mask_does_not_depend_on_padding():
    mask = time_mask(torch.tensor([101]), keys("a", ids=["x"]), 0.65, 10)
    wide = torch.nn.functional.pad(mask, (0, 300))
    for rate, frames in ((50, 47), (25, 24)):
        assert torch.equal(
            student_mask(mask, frames, rate), student_mask(wide, frames + 90, rate)[:, :frames]
        )


def test_bad_values_are_errors():
    with pytest.raises(ValueError, match=r"frame rate is 12.5 Hz, expected one of \[25.0, 50.0\]"):
        student_mask(torch.zeros(1, 20, dtype=torch.bool), 3, 12.5)
    with pytest.raises(ValueError, match="masking.time_probability is 1.5"):
        MaskingConfig(time_probability=1.5)
    with pytest.raises(ValueError, match="masking.channel_span is 0"):
        MaskingConfig(channel_span=0)
