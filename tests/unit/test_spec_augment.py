"""SpecAugment and speed perturbation: what changes, how much, and on what it depends."""

import numpy as np
import pytest
import torch

from spear_lib.features.spec_augment import (
    SpecAugmentConfig,
    perturb_speed,
    spec_augment,
    spec_augment_time_mask,
)
from spear_lib.runtime.keyed_random import keys

ALWAYS = {"probability": 1.0, "time_warp": 0}


def features(count: int = 200, frames: int = 400):
    fbank = torch.randn(count, frames, 128, generator=torch.Generator().manual_seed(0)) * 2 - 5
    return fbank, torch.full((count,), frames), keys("spec", ids=[str(number) for number in range(count)])


def test_time_masks_cover_a_bounded_share_with_the_mean():
    fbank, lengths, draw_keys = features()
    config = SpecAugmentConfig(**ALWAYS, num_frequency_masks=0)
    result = spec_augment(fbank, lengths, draw_keys, config)
    hidden = (result != fbank).any(dim=2)
    share = hidden.float().mean(dim=1)
    assert share.max() <= 0.15
    assert 0.04 < share.mean() < 0.1  # one mask of U(0, 60) frames of 400
    row, frame = hidden.nonzero()[0].tolist()
    torch.testing.assert_close(result[row, frame], fbank[row].mean().expand(128))


def test_time_mask_alone_hides_the_frames_that_spec_augment_hides():
    fbank, lengths, draw_keys = features(50)
    lengths = lengths - torch.arange(50)
    config = SpecAugmentConfig(probability=0.7, time_warp=0, num_frequency_masks=0)
    hidden = (spec_augment(fbank, lengths, draw_keys, config) != fbank).any(dim=2)
    mask = spec_augment_time_mask(400, lengths, draw_keys, config)
    assert torch.equal(mask, hidden) and mask.any()
    off = SpecAugmentConfig(enabled=False)
    assert not spec_augment_time_mask(400, lengths, draw_keys, off).any()


def test_long_utterances_get_more_time_masks():
    fbank, lengths, draw_keys = features(50, 3000)
    hidden = (
        spec_augment(fbank, lengths, draw_keys, SpecAugmentConfig(**ALWAYS, num_frequency_masks=0)) != fbank
    ).any(2)
    runs = (hidden[:, 1:] & ~hidden[:, :-1]).sum(dim=1).float().mean()
    assert 3.0 < runs < 5.0  # 450 frames at most, in 5 masks, some of which touch
    assert hidden.float().mean(dim=1).max() <= 0.15


def test_the_time_that_may_be_hidden_is_divided_between_the_masks():
    """By hand: 0.15 of 1000 frames are 150, for which two masks of at most 100 are needed: 75 each."""
    config = SpecAugmentConfig(
        probability=1.0, num_time_masks=5, time_mask_frames=100, max_time_fraction=0.15
    )
    draw_keys = keys("share", ids=[str(number) for number in range(2000)])
    mask = spec_augment_time_mask(1000, torch.full((2000,), 1000), draw_keys, config)
    hidden = mask.sum(dim=1)
    assert 130 < hidden.max() <= 150
    assert hidden.float().mean().item() == pytest.approx(2 * 37.5, rel=0.06)  # each uniform over 0..75


def test_frequency_masks():
    fbank, lengths, draw_keys = features()
    result = spec_augment(fbank, lengths, draw_keys, SpecAugmentConfig(**ALWAYS, num_time_masks=0))
    hidden = (result != fbank).all(dim=1)
    assert hidden.sum(dim=1).max() <= 54
    assert 20 < hidden.sum(dim=1).float().mean() < 27  # two of U(0, 27), sometimes over each other
    untouched = (result == fbank).all(dim=1)
    assert (hidden | untouched).all()


def test_probability():
    fbank, lengths, draw_keys = features(400, 60)
    result = spec_augment(fbank, lengths, draw_keys, SpecAugmentConfig(probability=0.3))
    changed = (result != fbank).flatten(1).any(dim=1).float().mean().item()
    assert changed == pytest.approx(0.3, abs=0.08)
    assert spec_augment(fbank, lengths, draw_keys, SpecAugmentConfig(enabled=False)) is fbank


def test_batch_and_padding_do_not_matter():
    fbank, _, draw_keys = features(3, 400)
    lengths = torch.tensor([400, 250, 30])
    result = spec_augment(fbank, lengths, draw_keys, SpecAugmentConfig(probability=1.0))
    for row, length in enumerate(lengths.tolist()):
        alone = spec_augment(
            fbank[row : row + 1, :length],
            lengths[row : row + 1],
            draw_keys[row : row + 1],
            SpecAugmentConfig(probability=1.0),
        )
        torch.testing.assert_close(result[row, :length], alone[0], atol=1e-4, rtol=1e-5)
        assert torch.equal(result[row, length:], fbank[row, length:])
    again = spec_augment(fbank, lengths, draw_keys, SpecAugmentConfig(probability=1.0))
    assert torch.equal(result, again)
    other = spec_augment(fbank, lengths, draw_keys + 1, SpecAugmentConfig(probability=1.0))
    assert not torch.equal(result, other)


def test_time_warp_keeps_order_and_ends():
    count, frames = 50, 400
    ramp = torch.arange(frames, dtype=torch.float32).view(1, -1, 1).expand(count, -1, 128)
    config = SpecAugmentConfig(probability=1.0, time_warp=80, num_time_masks=0, num_frequency_masks=0)
    _, lengths, draw_keys = features(count, frames)
    warped = spec_augment(ramp, lengths, draw_keys, config)[:, :, 0]
    assert (warped.diff(dim=1) >= 0).all()
    assert (warped[:, 0] == 0).all()
    torch.testing.assert_close(warped[:, -1], torch.full((count,), frames - 1.0), atol=1e-2, rtol=0)
    shift = (warped - ramp[:, :, 0]).abs().amax(dim=1)
    assert shift.mean() > 20 and shift.max() <= 81
    short = torch.full((count,), 150)
    assert torch.equal(spec_augment(ramp, short, draw_keys, config), ramp)  # too short to warp


def test_no_frames():
    assert spec_augment(torch.zeros(1, 0, 128), torch.tensor([0]), keys(ids=["a"])).shape == (1, 0, 128)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_moves_length_and_pitch(factor):
    time = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 1000 * time).astype(np.float32)
    changed = perturb_speed(tone, factor)
    assert changed.dtype == np.float32
    assert abs(len(changed) - 16000 / factor) <= 1
    spectrum = np.abs(np.fft.rfft(changed))
    assert np.argmax(spectrum) * 16000 / len(changed) == pytest.approx(1000 * factor, abs=2)
    middle = changed[1000:-1000]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(np.sqrt(0.5), rel=0.01)


def test_speed_one_is_the_signal_itself():
    signal = np.random.default_rng(0).normal(size=100).astype(np.float32)
    assert perturb_speed(signal, 1.0) is signal


def test_errors():
    with pytest.raises(ValueError, match="speed factor is 0.1"):
        perturb_speed(np.zeros(10, dtype=np.float32), 0.1)
    with pytest.raises(ValueError, match="spec_augment.probability is 2"):
        SpecAugmentConfig(probability=2)
    with pytest.raises(ValueError, match="spec_augment.num_time_masks is -1"):
        SpecAugmentConfig(num_time_masks=-1)
