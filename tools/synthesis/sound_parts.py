"""What sound events are built of: tones, bursts of noise, struck bodies, and their repetition in time (ours).

Signals are float64 (N,) at 16 kHz.
"""

from collections.abc import Callable

import numpy as np
from scipy import signal

from tools.synthesis.rooms import SAMPLE_RATE

TAU = 2.0 * np.pi


def seconds(num_samples: int) -> np.ndarray:
    """Time of every sample, s."""
    return np.arange(num_samples) / SAMPLE_RATE


def tone(
    frequency: np.ndarray | float, num_samples: int, harmonics: np.ndarray | tuple = (1.0,)
) -> np.ndarray:
    """A tone of constant or changing frequency (Hz) with these amplitudes of its harmonics."""
    phase = TAU * np.cumsum(np.broadcast_to(frequency, (num_samples,))) / SAMPLE_RATE
    top = float(np.max(frequency))
    loud = [(k, a) for k, a in enumerate(harmonics, start=1) if k * top < 7800.0]
    return sum((a * np.sin(k * phase) for k, a in loud), np.zeros(num_samples))


def band(samples: np.ndarray, low: float, high: float) -> np.ndarray:
    """Samples without what lies outside low..high Hz."""
    return signal.sosfilt(signal.butter(2, (low, high), "band", fs=SAMPLE_RATE, output="sos"), samples)


def place(num_samples: int, starts: list[float], sounds: list[np.ndarray]) -> np.ndarray:
    """Short sounds at these times (s), added up."""
    mixture = np.zeros(num_samples)
    for start, sound in zip(starts, sounds):
        begin = int(start * SAMPLE_RATE)
        end = min(num_samples, begin + len(sound))
        if begin < end:
            mixture[begin:end] += sound[: end - begin]
    return mixture


def repeat(num_samples: int, gap: Callable[[], float], sound: Callable[[], np.ndarray]) -> np.ndarray:
    """A new ``sound()`` every ``gap()`` seconds, from the start on."""
    starts, sounds, now = [], [], 0.0
    while now * SAMPLE_RATE < num_samples:
        starts.append(now)
        sounds.append(sound())
        now += gap()
    return place(num_samples, starts, sounds)


def struck(pitch: float, ratios: tuple, decay: float, length: float, bright: float = 0.6) -> np.ndarray:
    """A struck body: partials at ``ratios`` of ``pitch`` (Hz), the higher the softer and the shorter."""
    time = seconds(int(length * SAMPLE_RATE))
    partials = [(k, ratio) for k, ratio in enumerate(ratios) if ratio * pitch < 7800.0]
    return sum(
        (
            bright**k * np.exp(-time / decay * (1 + 0.6 * k)) * np.sin(TAU * ratio * pitch * time)
            for k, ratio in partials
        ),
        np.zeros(len(time)),
    )


def burst(length: float, decay: float, low: float, high: float, random: np.random.Generator) -> np.ndarray:
    """A decaying burst of noise in a band (Hz); ``length`` and ``decay`` in s."""
    time = seconds(int(length * SAMPLE_RATE))
    return band(random.standard_normal(len(time)), low, high) * np.exp(-time / decay)
