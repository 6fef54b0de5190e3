"""Mixing: the worked example of the specification, SNR, beta, overlap, -100, silence, draws."""

import numpy as np
import pytest

from spear_lib.data.batch import PADDING
from spear_lib.data.mixing import (
    MixingConfig,
    add_at,
    draw_delay,
    draw_token_mixture,
    gain_of,
    mix_noise,
    mix_tokens,
    mix_utterance,
    power,
)

HOP = 320


def signal(num_frames: int, mean_square: float, seed: int = 0) -> np.ndarray:
    """Noise of exactly this mean square, (num_frames * 320,)."""
    noise = np.random.default_rng(seed).normal(size=num_frames * HOP)
    return (noise * np.sqrt(mean_square / np.mean(noise**2))).astype(np.float32)


def example_draws(marks: list[str]) -> np.ndarray:
    """Draws below .6 where marked x, above elsewhere."""
    return np.array([[0.1 if mark == "x" else 0.9 for mark in row] for row in marks])


Z = np.array([[10 + t, 20 + t] for t in range(6)], dtype=np.uint8)
Z_PARTNER = np.array([[50 + t, 60 + t] for t in range(8)], dtype=np.uint8)
MARKS = ["x.", "xx", ".x", "..", "xx", "x."]
SNR_DB = 10 * np.log10(0.010 / 0.015)  # -1.761 dB


def test_worked_example():
    primary, partner = signal(6, 0.010), signal(8, 0.0025, seed=1)
    result = mix_tokens(primary, Z, partner, Z_PARTNER, SNR_DB, -2 * HOP, example_draws(MARKS))
    assert result.gain == pytest.approx(2.449, abs=1e-3)
    assert result.beta == pytest.approx(0.6, abs=1e-6)
    assert result.tokens.tolist() == [[52, 20], [53, 63], [12, 64], [13, 23], [56, 66], [57, 25]]
    assert result.tokens.dtype == np.uint8
    assert result.overlap == 1.0
    assert result.replaced == pytest.approx(7 / 12)
    expected = primary + np.float32(result.gain) * partner[2 * HOP :]
    np.testing.assert_allclose(result.waveform, expected, atol=1e-6)


def test_worked_example_with_a_shorter_partner():
    primary, partner = signal(6, 0.010), signal(3, 0.0025, seed=1)
    always = np.zeros((6, 2))
    result = mix_tokens(primary, Z, partner, Z_PARTNER[:3], SNR_DB, 2 * HOP, always)
    assert result.tokens.tolist() == [[10, 20], [11, 21], [50, 60], [51, 61], [52, 62], [15, 25]]
    assert result.overlap == 0.5
    assert np.array_equal(result.waveform[: 2 * HOP], primary[: 2 * HOP])
    assert np.array_equal(result.waveform[5 * HOP :], primary[5 * HOP :])


def test_beta_depends_on_the_snr_alone():
    random = np.random.default_rng(0)
    betas = []
    for _ in range(1000):
        snr = random.uniform(-5, 5)
        primary, partner = random.normal(size=640) * random.uniform(0.01, 1), random.normal(size=960)
        result = mix_tokens(primary, Z[:2], partner, Z_PARTNER[:3], snr, 0, np.ones((2, 2)))
        assert result.beta == pytest.approx(1 / (1 + 10 ** (snr / 10)), rel=1e-9)
        assert np.array_equal(result.tokens, Z[:2])  # draws of 1 never replace
        betas.append(result.beta)
    assert min(betas) > 0.24 and max(betas) < 0.76
    assert np.mean(betas) == pytest.approx(0.5, abs=0.02)
    assert np.std(betas) == pytest.approx(0.156, abs=0.01)


def test_measured_snr():
    random = np.random.default_rng(0)
    for snr in (-5.0, 0.0, 7.3, 20.0):
        primary, partner = random.normal(size=5000), 0.01 * random.normal(size=7000)
        gain = gain_of(primary, partner, snr)
        assert 10 * np.log10(power(primary) / power(gain * partner)) == pytest.approx(snr, abs=1e-4)


def test_ignored_tokens():
    tokens, partner_tokens = Z.astype(np.int64), Z_PARTNER.astype(np.int64)
    tokens[4:] = PADDING  # the primary's tail stays unscored
    partner_tokens[1] = PADDING  # not a valid frame of the partner
    result = mix_tokens(signal(6, 1), tokens, signal(8, 1, 1), partner_tokens, 0.0, 0, np.zeros((6, 2)))
    assert result.tokens.tolist() == [[50, 60], [11, 21], [52, 62], [53, 63], [PADDING] * 2, [PADDING] * 2]


def test_missing_last_token_of_the_partner_does_not_exist():
    result = mix_tokens(signal(6, 1), Z, signal(6, 1, 1), Z_PARTNER[:5], 0.0, 0, np.zeros((6, 2)))
    assert result.tokens[:5].tolist() == Z_PARTNER[:5].tolist()
    assert result.tokens[5].tolist() == Z[5].tolist()


def test_silence_is_not_mixed():
    silent, loud = np.zeros(3200, dtype=np.float32), signal(10, 0.1)
    draws, tokens = np.zeros((6, 2)), Z
    assert mix_tokens(loud, tokens, silent, Z_PARTNER, 0.0, 0, draws) is None
    assert mix_tokens(silent, tokens, loud, Z_PARTNER, 0.0, 0, draws) is None
    assert mix_noise(loud, silent, MixingConfig(), np.random.default_rng(0)) is None
    assert mix_utterance(silent, loud, MixingConfig(), np.random.default_rng(0)) is None
    assert mix_noise(loud, np.zeros(0, dtype=np.float32), MixingConfig(), np.random.default_rng(0)) is None


def test_delays_of_contain():
    random = np.random.default_rng(0)

    def delays(primary, partner):
        return {draw_delay(primary * HOP, partner * HOP, HOP, "contain", random) // HOP for _ in range(200)}

    assert delays(6, 8) == {-2, -1, 0}
    assert delays(6, 3) == {0, 1, 2, 3}
    assert delays(6, 6) == {0}
    # lengths that are no multiples: the shorter still lies wholly inside
    odd = {draw_delay(1000, 1700, HOP, "contain", random) for _ in range(200)}
    assert odd == {-640, -320, 0}
    assert {draw_delay(1000, 1700, 640, "contain", random) for _ in range(200)} == {-640, 0}


def test_delays_of_any_overlap():
    random = np.random.default_rng(0)
    found = {draw_delay(3 * HOP, 2 * HOP, HOP, "any", random) // HOP for _ in range(500)}
    assert found == {-1, 0, 1, 2}


def test_replaced_share_and_frames_outside():
    random = np.random.default_rng(3)
    config = MixingConfig()
    replaced, expected, variance = 0, 0.0, 0.0
    for _ in range(300):
        frames, partner_frames = random.integers(20, 60, 2)
        tokens = np.zeros((frames, 8), dtype=np.uint8)
        partner_tokens = np.ones((partner_frames, 8), dtype=np.uint8)
        result = draw_token_mixture(
            signal(frames, 1), tokens, signal(partner_frames, 1, 1), partner_tokens, config, random
        )
        reached = min(frames, partner_frames)
        assert (result.tokens.any(axis=1)).sum() <= reached
        assert result.overlap == pytest.approx(reached / frames)
        changed = np.flatnonzero(result.tokens.any(axis=1))
        assert changed.size == 0 or changed.max() - changed.min() < reached
        replaced += int(result.tokens.sum())
        expected += result.beta * reached * 8
        variance += result.beta * (1 - result.beta) * reached * 8
    assert abs(replaced - expected) < 4 * variance**0.5


def test_tokens_of_one_frame_are_drawn_apart():
    tokens, partner = np.zeros((4000, 2), dtype=np.uint8), np.ones((4000, 2), dtype=np.uint8)
    mixed = draw_token_mixture(
        signal(4000, 1),
        tokens,
        signal(4000, 1, 1),
        partner,
        MixingConfig(token_snr_db=(0, 0)),
        np.random.default_rng(0),
    ).tokens
    assert abs(np.corrcoef(mixed[:, 0], mixed[:, 1])[0, 1]) < 0.08
    assert mixed.mean() == pytest.approx(0.5, abs=0.03)


def test_noise_covers_the_asked_share():
    random = np.random.default_rng(0)
    primary = signal(50, 0.1)
    half = MixingConfig(noise_overlap=(0.5, 0.5), noise_snr_db=(10, 10))
    starts = []
    for _ in range(200):
        result = mix_noise(primary, signal(200, 0.3, 1), half, random)
        touched = np.flatnonzero(result.waveform != primary)
        assert touched.max() - touched.min() + 1 == pytest.approx(8000, abs=3)
        assert result.overlap == pytest.approx(0.5, abs=1e-3)
        starts.append(touched.min())
    assert np.mean(starts) == pytest.approx(4000, rel=0.1)
    assert result.tokens is None


def test_level_and_place_of_noise_are_those_of_the_whole_noise():
    """A long noise is cropped at random, and its level is that of all of it, not of the piece."""
    primary = np.ones(1000, dtype=np.float32)
    noise = np.concatenate([np.full(2000, 0.1), np.full(2000, 1.0)]).astype(np.float32)
    config = MixingConfig(noise_snr_db=(0.0, 0.0), noise_overlap=(1.0, 1.0))
    random = np.random.default_rng(0)
    results = [mix_noise(primary, noise, config, random) for _ in range(400)]
    gain = np.sqrt(1.0 / (0.5 * 0.1**2 + 0.5 * 1.0**2))  # by hand: powers of the whole signals
    assert [result.gain for result in results] == pytest.approx([gain] * 400)
    added = np.array([(result.waveform - primary)[0] for result in results])
    # The crop begins in the quiet half for 2000 of 3001 places, in the loud one for the rest.
    assert np.isclose(added, 0.1 * gain, rtol=1e-4).mean() == pytest.approx(2 / 3, abs=0.08)
    assert np.isclose(added, gain, rtol=1e-4).mean() == pytest.approx(1 / 3, abs=0.08)


def test_short_noise_is_not_repeated():
    whole = MixingConfig(noise_overlap=(1.0, 1.0))
    primary = signal(50, 0.1)
    result = mix_noise(primary, signal(10, 0.3, 1), whole, np.random.default_rng(0))
    assert result.overlap == pytest.approx(0.2)
    assert np.array_equal(result.waveform[3200:], primary[3200:])
    assert not np.array_equal(result.waveform[:3200], primary[:3200])


def test_utterance_mixing_covers_a_fifth_to_a_half():
    random = np.random.default_rng(0)
    overlaps = [
        mix_utterance(signal(50, 1), signal(80, 1, 1), MixingConfig(), random).overlap for _ in range(300)
    ]
    assert 0.2 <= min(overlaps) < 0.22 and 0.48 < max(overlaps) <= 0.5


def test_inputs_are_not_changed():
    primary, partner = signal(6, 1), signal(8, 1, 1)
    before = primary.copy(), partner.copy(), Z.copy()
    mix_tokens(primary, Z, partner, Z_PARTNER, 0.0, -HOP, np.zeros((6, 2)))
    for left, right in zip(before, (primary, partner, Z)):
        assert np.array_equal(left, right)


@pytest.mark.parametrize("position", [-500, -100, 0, 30, 99, 100, 5000])
def test_add_at_any_position(position):
    primary, partner = np.zeros(100, dtype=np.float32), np.ones(40, dtype=np.float32)
    mixed, overlap = add_at(primary, partner, 2.0, position)
    expected = [2.0 if position <= sample < position + 40 else 0.0 for sample in range(100)]
    assert mixed.tolist() == expected
    assert overlap == pytest.approx(sum(value > 0 for value in expected) / 100)


def test_kinds_exclude_each_other_and_audio_is_not_token_mixed():
    config = MixingConfig(noise_probability=0.3, utterance_probability=0.1, token_probability=0.2)
    random = np.random.default_rng(0)
    kinds = [config.draw_kind(random) for _ in range(20000)]
    for kind, share in (("noise", 0.3), ("utterance", 0.1), ("tokens", 0.2), ("none", 0.4)):
        assert kinds.count(kind) / 20000 == pytest.approx(share, abs=0.015)
    audio = [config.draw_kind(random, speech=False) for _ in range(2000)]
    assert "tokens" not in audio and "noise" in audio
    assert {MixingConfig(enabled=False, token_probability=0.9).draw_kind(random) for _ in range(50)} == {
        "none"
    }


def test_errors():
    with pytest.raises(ValueError, match="delay is 100 samples, no multiple of 320"):
        mix_tokens(signal(6, 1), Z, signal(8, 1), Z_PARTNER, 0.0, 100, np.zeros((6, 2)))
    with pytest.raises(ValueError, match="partner's tokens"):
        mix_tokens(signal(6, 1), Z, signal(8, 1), Z_PARTNER[:, :1], 0.0, 0, np.zeros((6, 2)))
    with pytest.raises(ValueError, match="add up to 1.200"):
        MixingConfig(noise_probability=0.9, token_probability=0.3)
    with pytest.raises(ValueError, match="noise_probability is -0.1"):
        MixingConfig(noise_probability=-0.1)
    with pytest.raises(ValueError, match="the lower end comes first"):
        MixingConfig(token_snr_db=(5, -5))
    with pytest.raises(ValueError, match=r"expected shares in \(0, 1\]"):
        MixingConfig(noise_overlap=(0.0, 1.0))
    with pytest.raises(ValueError, match="token_delay is 'left'"):
        MixingConfig(token_delay="left")
