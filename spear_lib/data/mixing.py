"""Mixing into a training utterance: noise, another utterance, or tokens too (spec augment_and_mask §5).

Legend: N samples of the primary w, N' samples of the secondary w', T token frames, C codebooks.

P(.) is the mean square over the whole signal and an SNR always means primary over scaled secondary, so the
gain is g = sqrt(P(w) / (P(w') 10^(snr / 10))) and the mixture w + g * shifted w', of the primary's length.
Nothing is clipped or renormalised. At most one of the three is applied to an utterance (the reference draws
exclusively), and every draw comes from a generator keyed by (seed, epoch, utterance id).
"""

import math
from dataclasses import dataclass

import numpy as np

from spear_lib.data.batch import PADDING

_SILENCE = 1e-10  # mean square below which a signal is not mixed


@dataclass(frozen=True)
class MixingConfig:
    """Which share of the training utterances is mixed with what."""

    enabled: bool = True
    """False: no mixing at all, whatever the probabilities."""
    noise_probability: float = 0.1
    """Share with added noise, targets clean (spec §5: .1 Base, .2 Large, .5 audio and mixed)."""
    noise_snr_db: tuple[float, float] = (5.0, 20.0)
    """Range of the SNR in dB (spec §5: 5..20 speech, 10..20 audio and mixed)."""
    noise_overlap: tuple[float, float] = (0.2, 0.8)
    """Share of the utterance under noise (spec §5: .2-.8 speech; 1, 1 for audio and mixed: all of it)."""
    utterance_probability: float = 0.0
    """Share with part of another utterance, targets clean (paper Table 9: 0.1)."""
    utterance_snr_db: tuple[float, float] = (-5.0, 5.0)
    """Range of the SNR in dB (spec §5)."""
    utterance_overlap: tuple[float, float] = (0.2, 0.5)
    """Share of the primary that the other utterance covers (spec §5, WavLM style)."""
    token_probability: float = 0.1
    """Share of speech utterances with another whole one and mixed targets (paper §4: 10%)."""
    token_snr_db: tuple[float, float] = (-5.0, 5.0)
    """Range of the SNR in dB (paper §4: -5 to 5)."""
    token_delay: str = "contain"
    """"contain": the shorter signal lies inside the longer; "any": any delay that overlaps (spec §5.1). The
    paper says full length and random delay (§3.2.3); between cuts of one bucket "contain" gives a median
    delay of 1.8 % of the length and an overlap of 97 %, "any" 50 % and 50 %. The published sizes take any."""
    token_delay_hop: int = 320
    """Delays are multiples of this many samples: 320 at 50 Hz, 640 for a student at 25 Hz (spec §5.1)."""

    def __post_init__(self) -> None:
        total = 0.0
        for name in ("noise_probability", "utterance_probability", "token_probability"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"mixing.{name} is {value}, expected a share between 0 and 1")
            total += value
        if total > 1.0 + 1e-9:
            raise ValueError(
                f"mixing probabilities add up to {total:.3f}; they exclude each other, so at most 1 in all"
            )
        for name in (
            "noise_snr_db",
            "utterance_snr_db",
            "token_snr_db",
            "noise_overlap",
            "utterance_overlap",
        ):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"mixing.{name} is ({low}, {high}): the lower end comes first")
            if name.endswith("overlap") and not 0.0 < low <= high <= 1.0:
                raise ValueError(f"mixing.{name} is ({low}, {high}), expected shares in (0, 1]")
        if self.token_delay not in ("contain", "any"):
            raise ValueError(f"mixing.token_delay is {self.token_delay!r}, expected 'contain' or 'any'")
        if self.token_delay_hop < 1:
            raise ValueError(f"mixing.token_delay_hop is {self.token_delay_hop} samples, expected at least 1")

    def draw_kind(self, random: np.random.Generator, speech: bool = True) -> str:
        """One draw: "tokens", "utterance", "noise" or "none". Audio (not speech) is never token-mixed."""
        draw = random.random()
        if not self.enabled:
            return "none"
        for kind, probability in (
            ("tokens", self.token_probability),
            ("utterance", self.utterance_probability),
            ("noise", self.noise_probability),
        ):
            if draw < probability:
                return kind if speech or kind != "tokens" else "none"
            draw -= probability
        return "none"


FINETUNING_MIXING = MixingConfig(
    noise_probability=0.5, noise_snr_db=(10.0, 20.0), noise_overlap=(1.0, 1.0), token_probability=0.0
)
"""Default of fine-tuning: noise from start to end (icefall), and no tokens to mix."""


@dataclass
class Mixture:
    """One mixed utterance: ``waveform`` (N,), what happened, and for token mixing ``tokens`` (T, C)."""

    waveform: np.ndarray
    gain: float
    overlap: float
    """Share of the primary's samples that the secondary reaches."""
    tokens: np.ndarray | None = None
    beta: float = 0.0
    """Probability of a replaced token (token mixing)."""
    replaced: float = 0.0
    """Share of tokens that were replaced (token mixing)."""


def power(waveform: np.ndarray) -> float:
    """Mean square of the whole signal (N,)."""
    exact = waveform.astype(np.float64)
    return float(exact @ exact) / exact.size if exact.size else 0.0


def gain_of(primary: np.ndarray, secondary: np.ndarray, snr_db: float) -> float | None:
    """Factor on ``secondary`` that gives the SNR over the whole signals; None if either is silent."""
    primary_power, secondary_power = power(primary), power(secondary)
    if primary_power < _SILENCE or secondary_power < _SILENCE:
        return None
    return math.sqrt(primary_power / (secondary_power * 10.0 ** (snr_db / 10.0)))


def add_at(
    primary: np.ndarray, secondary: np.ndarray, gain: float, position: int
) -> tuple[np.ndarray, float]:
    """primary + gain * secondary, its sample 0 at ``position`` (may be negative); and the share covered."""
    start, end = max(0, position), min(len(primary), position + len(secondary))
    mixed = primary.astype(np.float32, copy=True)
    if end > start:
        mixed[start:end] += np.float32(gain) * secondary[start - position : end - position]
    return mixed, max(0, end - start) / max(1, len(primary))


def mix_noise(
    primary: np.ndarray, noise: np.ndarray, config: MixingConfig, random: np.random.Generator
) -> Mixture | None:
    """Noise mixing: targets stay clean. A long noise is cropped at random, a short one is not repeated.

    Returns None if either signal is silent.
    """
    snr_db = random.uniform(*config.noise_snr_db)
    share = random.uniform(*config.noise_overlap)
    crop, place = random.random(), random.random()
    return _mix_part(primary, noise, snr_db, share, crop, place)


def mix_utterance(
    primary: np.ndarray, secondary: np.ndarray, config: MixingConfig, random: np.random.Generator
) -> Mixture | None:
    """Utterance mixing (WavLM style): a random part of another utterance at a random place; targets stay
    clean.

    Returns None if either signal is silent.
    """
    snr_db = random.uniform(*config.utterance_snr_db)
    share = random.uniform(*config.utterance_overlap)
    crop, place = random.random(), random.random()
    return _mix_part(primary, secondary, snr_db, share, crop, place)


def _mix_part(
    primary: np.ndarray, secondary: np.ndarray, snr_db: float, share: float, crop: float, place: float
) -> Mixture | None:
    gain = gain_of(primary, secondary, snr_db)
    if gain is None:
        return None
    region = max(1, round(share * len(primary)))
    length = min(len(secondary), region)
    begin = int(crop * (len(secondary) - length + 1))
    position = int(place * (len(primary) - region + 1))
    waveform, overlap = add_at(primary, secondary[begin : begin + length], gain, position)
    return Mixture(waveform, gain, overlap)


def draw_delay(num_primary: int, num_secondary: int, hop: int, mode: str, random: np.random.Generator) -> int:
    """Position of the secondary's first sample in the primary, a multiple of ``hop`` samples (spec §5.1).

    "contain": uniform over multiples between min(0, N - N') and max(0, N - N'); "any": over multiples in
    (-N', N).
    """
    if mode == "contain":
        low, high = min(0, num_primary - num_secondary), max(0, num_primary - num_secondary)
    else:
        low, high = 1 - num_secondary, num_primary - 1
    return hop * int(random.integers(-(-low // hop), high // hop, endpoint=True))


def mix_tokens(
    primary: np.ndarray,
    tokens: np.ndarray,
    secondary: np.ndarray,
    secondary_tokens: np.ndarray,
    snr_db: float,
    delay: int,
    draws: np.ndarray,
    token_hop: int = 320,
) -> Mixture | None:
    """Token mixing, exactly (paper Eq. 4 and 5; spec §5.1).

    Target (t, c) becomes the secondary's token of frame t - delay / token_hop with probability
    beta = P(g w') / (P(w) + P(g w')) where that frame exists and is valid, one draw per frame and codebook.

    Args:
      primary: (N,) float32.
      tokens: (T, C), of the primary; ``PADDING`` stays as it is.
      secondary: (N',) float32, the partner's clean waveform.
      secondary_tokens: (T', C), the partner's clean tokens; ``PADDING`` counts as not there.
      snr_db: primary over scaled secondary.
      delay: samples, a multiple of ``token_hop``.
      draws: (T, C) uniform numbers in [0, 1).
      token_hop: samples per token frame.

    Returns:
      The mixture, ``tokens`` of the dtype and shape of the primary's; None if either signal is silent.

    Raises:
      ValueError: delay is no multiple of the hop, or the codebooks differ.
    """
    if delay % token_hop:
        raise ValueError(
            f"delay is {delay} samples, no multiple of {token_hop}: token frames would fall between each "
            f"other"
        )
    if tokens.shape[1:] != secondary_tokens.shape[1:] or draws.shape != tokens.shape:
        raise ValueError(
            f"tokens {tokens.shape}, partner's tokens {secondary_tokens.shape} and draws {draws.shape} differ"
        )
    gain = gain_of(primary, secondary, snr_db)
    if gain is None:
        return None
    primary_power, secondary_power = power(primary), gain * gain * power(secondary)
    beta = secondary_power / (primary_power + secondary_power)
    partner_frame = np.arange(len(tokens)) - delay // token_hop
    exists = (partner_frame >= 0) & (partner_frame < len(secondary_tokens))
    candidates = np.full(tokens.shape, PADDING, dtype=np.int64)
    candidates[exists] = secondary_tokens[partner_frame[exists]]
    replace = (draws < beta) & (candidates != PADDING) & (tokens.astype(np.int64) != PADDING)
    mixed_tokens = np.where(replace, candidates, tokens.astype(np.int64)).astype(tokens.dtype)
    waveform, overlap = add_at(primary, secondary, gain, delay)
    replaced = float(replace.mean()) if replace.size else 0.0
    return Mixture(waveform, gain, overlap, mixed_tokens, beta, replaced)


def draw_token_mixture(
    primary: np.ndarray,
    tokens: np.ndarray,
    secondary: np.ndarray,
    secondary_tokens: np.ndarray,
    config: MixingConfig,
    random: np.random.Generator,
    token_hop: int = 320,
) -> Mixture | None:
    """``mix_tokens`` with SNR, delay and replacements drawn from ``random``."""
    snr_db = random.uniform(*config.token_snr_db)
    hop = math.lcm(config.token_delay_hop, token_hop)
    delay = draw_delay(len(primary), len(secondary), hop, config.token_delay, random)
    draws = random.random(tokens.shape)
    return mix_tokens(primary, tokens, secondary, secondary_tokens, snr_db, delay, draws, token_hop)
