"""What happens between the mouth and the file: microphone, room, background noise and level (ours).

All signals are (N,) float32 or float64 in [-1, 1] at 16 kHz.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from scipy import signal

SAMPLE_RATE = 16000

NOISE_COLOURS = {"white": 0.0, "pink": -1.0, "brown": -2.0}
"""Exponent of the power spectrum over frequency."""


@dataclass(frozen=True)
class Room:
    """Where and with what a chapter is recorded: its session, for a speaker's chapters differ in it."""

    reverberation: float
    """Time until the echo has fallen by 60 dB, s."""
    direct_ratio: float
    """Energy of the direct sound over that of the echo, dB."""
    noise: str
    """A key of NOISE_COLOURS."""
    snr: float
    """Speech over background noise, dB."""
    microphone: float
    """Spectral tilt of the microphone, dB between 250 Hz and 4 kHz."""
    level: float
    """Loudness of the recordings, dB relative to full scale (RMS of the speech)."""


def draw_room(random: np.random.Generator, other: bool) -> Room:
    """A quiet, dry room, or for the "other" sets a livelier and noisier one."""
    if other:
        ranges = {"reverberation": (0.25, 0.5), "direct_ratio": (4.0, 10.0), "snr": (8.0, 18.0)}
    else:
        ranges = {"reverberation": (0.1, 0.3), "direct_ratio": (9.0, 18.0), "snr": (28.0, 42.0)}
    ranges |= {"microphone": (-5.0, 5.0), "level": (-30.0, -20.0)}
    values = {name: round(float(random.uniform(*limits)), 3) for name, limits in ranges.items()}
    return Room(noise=list(NOISE_COLOURS)[int(random.integers(len(NOISE_COLOURS)))], **values)


def impulse_response(room: Room, random: np.random.Generator) -> np.ndarray:
    """Direct sound followed, after a few milliseconds, by exponentially decaying noise."""
    length = int(room.reverberation * SAMPLE_RATE)
    start = int(random.uniform(0.002, 0.006) * SAMPLE_RATE)
    time = np.arange(length) / SAMPLE_RATE
    tail = random.standard_normal(length) * 10.0 ** (-3.0 * time / room.reverberation)
    tail[:start] = 0.0
    tail *= np.sqrt(10.0 ** (-room.direct_ratio / 10.0) / np.sum(tail**2))
    tail[0] = 1.0
    return tail


def measured_responses(folder: Path) -> list[Path]:
    """The impulse responses in a folder, by name; ValueError if there are none."""
    found = sorted(path for path in folder.glob("[!.]*") if path.suffix in (".flac", ".wav"))
    if not found:
        raise ValueError(f"--rooms {folder} holds no impulse responses (.flac or .wav)")
    return found


def measured_response(path: Path, direct_ratio: float) -> np.ndarray:
    """A measured impulse response from its peak on; the echo scaled to ``direct_ratio`` (dB) below the direct
    sound, so that a set of recordings is as lively as with responses that are drawn.
    """
    samples, rate = soundfile.read(path, always_2d=True)
    response = signal.resample_poly(samples[:, 0], SAMPLE_RATE, rate)
    response = response[int(np.argmax(np.abs(response))) :]
    if len(response) < 2 or not response[1:].any():
        raise ValueError(f"{path} holds no echo after its peak: it is no impulse response of a room")
    tail = response / response[0]
    tail[1:] *= np.sqrt(10.0 ** (-direct_ratio / 10.0) / np.sum(tail[1:] ** 2))
    return tail


def coloured_noise(num_samples: int, exponent: float, random: np.random.Generator) -> np.ndarray:
    """Noise of unit RMS whose power falls as frequency ** ``exponent`` above 40 Hz."""
    # A power of two keeps the transform fast whatever the length is.
    size = 1 << max(num_samples - 1, 1).bit_length()
    spectrum = np.fft.rfft(random.standard_normal(size))
    frequency = np.maximum(np.fft.rfftfreq(size, 1.0 / SAMPLE_RATE), 40.0)
    noise = np.fft.irfft(spectrum * frequency ** (exponent / 2.0), size)[:num_samples]
    return noise / max(rms(noise), 1e-9)


def tilt_filter(tilt: float) -> np.ndarray:
    """A short filter that changes the spectrum by ``tilt`` dB from 250 Hz to 4 kHz (linear phase)."""
    frequency = np.array([0.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0])
    decibel = tilt * np.array([-0.5, -0.5, -0.25, 0.0, 0.25, 0.5, 0.5])
    return signal.firwin2(65, frequency, 10.0 ** (decibel / 20.0), fs=SAMPLE_RATE)


def rms(samples: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0


def record(
    speech: np.ndarray,
    response: np.ndarray,
    room: Room,
    tilt: float,
    level: float,
    random: np.random.Generator,
) -> np.ndarray:
    """One recording of ``speech`` with some silence around it: (N,) int16, never clipped.

    Args:
      level: RMS of the speech in dB relative to full scale; lowered where peaks would exceed 0.9.
    """
    before, after = (int(seconds * SAMPLE_RATE) for seconds in random.uniform(0.12, 0.3, size=2))
    dry = np.concatenate([np.zeros(before), speech, np.zeros(after)])
    dry = signal.oaconvolve(dry, tilt_filter(tilt), mode="same")
    wet = signal.oaconvolve(dry, response)[: len(dry)]
    wet /= max(rms(wet[before : before + len(speech)]), 1e-6)
    wet += coloured_noise(len(wet), NOISE_COLOURS[room.noise], random) * 10.0 ** (-room.snr / 20.0)
    return to_int16(wet * 10.0 ** (level / 20.0))


def to_int16(samples: np.ndarray, peak_limit: float = 0.9) -> np.ndarray:
    """16-bit samples; the whole signal is made softer if its peak is above ``peak_limit``."""
    peak = float(np.max(np.abs(samples))) if len(samples) else 0.0
    scale = min(1.0, peak_limit / peak) if peak > 0 else 1.0
    return np.round(samples * (scale * 32767.0)).astype(np.int16)
