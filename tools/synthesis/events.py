"""Sound events: one function for each of AudioSet's classes that the synthetic corpus knows (ours).

Every function takes the number of samples at 16 kHz and a generator and returns float64 samples (N,) of any
level. What differs between two events of one class (pitch, rate, brightness) is drawn; what makes the class
is not.
"""

from collections.abc import Callable

import numpy as np
from scipy import signal

from tools.synthesis.noises import chords, hum, rain
from tools.synthesis.rooms import SAMPLE_RATE, coloured_noise, rms
from tools.synthesis.sound_parts import TAU, band, burst, place, repeat, seconds, struck, tone

Maker = Callable[[int, np.random.Generator], np.ndarray]
# ---- signals and tones


def sine_wave(num_samples: int, random: np.random.Generator) -> np.ndarray:
    return tone(random.uniform(250, 3000), num_samples)


def chirp_tone(num_samples: int, random: np.random.Generator) -> np.ndarray:
    period, low, ratio = random.uniform(0.6, 2.0), random.uniform(200, 800), random.uniform(3, 8)
    sweep = (seconds(num_samples) / period) % 1.0
    return tone(low * ratio ** (sweep if random.random() < 0.5 else 1 - sweep), num_samples)


def beep(num_samples: int, random: np.random.Generator) -> np.ndarray:
    pitch, period = random.uniform(800, 2200), random.uniform(0.4, 1.0)
    gate = (seconds(num_samples) % period) < random.uniform(0.3, 0.6) * period
    return tone(pitch, num_samples, (1.0, 0.2)) * gate


def telephone_dialing(num_samples: int, random: np.random.Generator) -> np.ndarray:
    length = int(random.uniform(0.08, 0.16) * SAMPLE_RATE)

    def digit() -> np.ndarray:
        return tone(random.choice((697, 770, 852, 941)), length) + tone(
            random.choice((1209, 1336, 1477)), length
        )

    return repeat(num_samples, lambda: random.uniform(0.2, 0.4), digit)


def busy_signal(num_samples: int, random: np.random.Generator) -> np.ndarray:
    gate = (seconds(num_samples) % 1.0) < 0.5
    return (tone(480.0, num_samples) + tone(620.0, num_samples)) * gate * random.uniform(0.9, 1.1)


def siren(num_samples: int, random: np.random.Generator) -> np.ndarray:
    low, rate = random.uniform(500, 750), random.uniform(0.15, 0.6)
    swing = 0.5 - 0.5 * np.cos(TAU * rate * seconds(num_samples) + random.uniform(0, TAU))
    return tone(low + swing * random.uniform(500, 900), num_samples, (1.0, 0.5, 0.3, 0.2))


def smoke_detector(num_samples: int, random: np.random.Generator) -> np.ndarray:
    cycle = seconds(num_samples) % 4.0 * random.uniform(0.95, 1.05)
    return tone(random.uniform(2900, 3400), num_samples, (1.0, 0.4)) * ((cycle % 1.0 < 0.5) & (cycle < 3.0))


def foghorn(num_samples: int, random: np.random.Generator) -> np.ndarray:
    period, pitch = random.uniform(2.5, 4.5), random.uniform(70, 130)
    swell = np.clip(np.sin(TAU * seconds(num_samples) / period), 0.0, 0.4)
    return tone(pitch, num_samples, 0.8 ** np.arange(12)) * swell


# ---- noises and weather


def white_noise(num_samples: int, random: np.random.Generator) -> np.ndarray:
    return coloured_noise(num_samples, 0.0, random)


def pink_noise(num_samples: int, random: np.random.Generator) -> np.ndarray:
    return coloured_noise(num_samples, -1.0, random)


def wind(num_samples: int, random: np.random.Generator) -> np.ndarray:
    gusts = np.exp(0.9 * coloured_noise(num_samples // 160 + 1, -1.5, random))
    gusts = np.interp(np.arange(num_samples) / 160, np.arange(len(gusts)), signal.savgol_filter(gusts, 31, 2))
    howl = band(random.standard_normal(num_samples), 250, random.uniform(400, 700))
    return np.abs(gusts) * (coloured_noise(num_samples, -2.0, random) + 0.6 * howl)


def surf(num_samples: int, random: np.random.Generator) -> np.ndarray:
    phase = (seconds(num_samples) / random.uniform(4.0, 8.0) + random.random()) % 1.0
    wave = np.where(phase < 0.35, phase / 0.35, np.exp(-4.0 * (phase - 0.35)))
    return (0.05 + wave**2) * coloured_noise(num_samples, random.uniform(-1.1, -0.7), random)


# ---- engines and machines


def _engine(
    num_samples: int, rate: np.ndarray | float, rough: float, random: np.random.Generator
) -> np.ndarray:
    """Explosions at ``rate`` Hz, each of slightly different strength, through a body with resonances."""
    phase = np.cumsum(np.broadcast_to(rate, (num_samples,))) / SAMPLE_RATE
    firing = np.flatnonzero(np.diff(np.floor(phase), prepend=-1.0))
    pulses = np.zeros(num_samples)
    pulses[firing] = 1.0 + rough * random.standard_normal(len(firing))
    body = burst(0.05, 0.008, 60, random.uniform(500, 1500), random)
    return signal.oaconvolve(pulses, body)[:num_samples] / 10.0 + 0.02 * coloured_noise(
        num_samples, -1.0, random
    )


def motorcycle(num_samples: int, random: np.random.Generator) -> np.ndarray:
    revs = 0.5 + 0.5 * np.sin(TAU * random.uniform(0.15, 0.4) * seconds(num_samples) + random.uniform(0, TAU))
    return _engine(num_samples, random.uniform(45, 70) + random.uniform(60, 110) * revs**2, 0.1, random)


def idling(num_samples: int, random: np.random.Generator) -> np.ndarray:
    return _engine(num_samples, random.uniform(14, 24), 0.35, random)


def helicopter(num_samples: int, random: np.random.Generator) -> np.ndarray:
    blades = (0.5 + 0.5 * np.sin(TAU * random.uniform(9, 14) * seconds(num_samples))) ** 4
    whine = 0.1 * tone(random.uniform(900, 1600), num_samples, (1.0, 0.5))
    return blades * band(random.standard_normal(num_samples), 50, random.uniform(400, 900)) + 0.1 * whine


def vacuum_cleaner(num_samples: int, random: np.random.Generator) -> np.ndarray:
    motor = tone(random.uniform(180, 320), num_samples, 0.85 ** np.arange(20))
    return 0.25 * motor / rms(motor) + coloured_noise(num_samples, random.uniform(-0.6, -0.2), random)


# ---- knocks, clicks and bangs


def knock(num_samples: int, random: np.random.Generator) -> np.ndarray:
    pitch, gap = random.uniform(120, 260), random.uniform(0.18, 0.35)

    def knocks() -> np.ndarray:
        count = int(random.integers(2, 6))
        one = [
            burst(0.15, 0.02, pitch, 6 * pitch, random) + struck(pitch, (1, 2.3), 0.03, 0.15)
            for _ in range(count)
        ]
        return place(int((count * gap + 0.2) * SAMPLE_RATE), [gap * k for k in range(count)], one)

    return repeat(num_samples, lambda: random.uniform(1.6, 3.0), knocks)


def tick_tock(num_samples: int, random: np.random.Generator) -> np.ndarray:
    pitch, turn = random.uniform(1800, 3500), iter(range(10_000))
    period = random.uniform(0.4, 1.0)
    return repeat(
        num_samples, lambda: period, lambda: struck(pitch * (1.0, 0.8)[next(turn) % 2], (1, 1.7), 0.008, 0.06)
    )


def typing(num_samples: int, random: np.random.Generator) -> np.ndarray:
    low = random.uniform(900, 1800)
    return repeat(
        num_samples,
        lambda: random.uniform(0.06, 0.16) if random.random() < 0.9 else random.uniform(0.3, 0.8),
        lambda: random.uniform(0.4, 1.0) * burst(0.03, 0.004, low, 6500, random),
    )


def gunshot(num_samples: int, random: np.random.Generator) -> np.ndarray:
    echo = random.uniform(0.15, 0.5)

    def shot() -> np.ndarray:
        tail = burst(1.5, echo, 60, random.uniform(900, 2000), random)
        tail[: int(0.03 * SAMPLE_RATE)] += 4.0 * burst(0.03, 0.006, 100, 7000, random)
        return tail

    return repeat(num_samples, lambda: random.uniform(0.5, 2.5), shot)


def clapping(num_samples: int, random: np.random.Generator) -> np.ndarray:
    period, low = random.uniform(0.25, 0.6), random.uniform(700, 1300)
    return repeat(
        num_samples,
        lambda: period * random.uniform(0.95, 1.05),
        lambda: burst(0.1, 0.012, low, 2.5 * low, random),
    )


# ---- bells


def church_bell(num_samples: int, random: np.random.Generator) -> np.ndarray:
    pitch, period = random.uniform(150, 420), random.uniform(1.2, 2.8)
    ratios = (0.5, 1.0, 1.19, 1.5, 2.0, 2.74, 3.0, 4.1)
    return repeat(
        num_samples, lambda: period, lambda: struck(pitch, ratios, random.uniform(1.2, 1.8), 4.0, 0.85)
    )


def wind_chime(num_samples: int, random: np.random.Generator) -> np.ndarray:
    tubes = random.uniform(900, 1400) * np.array([1.0, 1.12, 1.26, 1.5, 1.68])
    return repeat(
        num_samples,
        lambda: random.exponential(0.25) + 0.03,
        lambda: random.uniform(0.2, 1.0) * struck(float(random.choice(tubes)), (1.0, 2.76, 5.4), 0.5, 1.5),
    )


def telephone_bell(num_samples: int, random: np.random.Generator) -> np.ndarray:
    pitch, ring = random.uniform(1300, 1900), 1.0 / random.uniform(18, 26)
    trill = repeat(num_samples, lambda: ring, lambda: struck(pitch, (1.0, 1.35, 2.4), 0.05, 0.2, 0.8))
    return trill * (seconds(num_samples) % 3.0 < 1.8)


# ---- animals


def bird(num_samples: int, random: np.random.Generator) -> np.ndarray:
    centre = random.uniform(2500, 4500)

    def tweet() -> np.ndarray:
        length = int(random.uniform(0.05, 0.2) * SAMPLE_RATE)
        glide = np.linspace(random.uniform(0.8, 1.3), random.uniform(0.8, 1.3), length)
        trill = 1.0 + 0.05 * np.sin(TAU * random.uniform(15, 40) * seconds(length))
        return tone(centre * glide * trill, length) * np.hanning(length)

    return repeat(num_samples, lambda: random.uniform(0.1, 0.5), tweet)


def cricket(num_samples: int, random: np.random.Generator) -> np.ndarray:
    time, rate = seconds(num_samples), random.uniform(1.5, 3.5)
    syllables = 0.5 - 0.5 * np.cos(TAU * random.uniform(28, 40) * time)
    return tone(random.uniform(4200, 5400), num_samples) * syllables * ((time * rate) % 1.0 < 0.55)


def bark(num_samples: int, random: np.random.Generator) -> np.ndarray:
    pitch = random.uniform(250, 600)

    def one() -> np.ndarray:
        length = int(random.uniform(0.12, 0.22) * SAMPLE_RATE)
        glide = pitch * (0.75 + 0.5 * np.hanning(length))
        voice = tone(glide, length, 0.75 ** np.arange(10)) + 1.5 * band(
            random.standard_normal(length), 500, 2500
        )
        return voice * np.hanning(length)

    return repeat(num_samples, lambda: random.uniform(0.3, 0.6) if random.random() < 0.7 else 1.3, one)


def frog(num_samples: int, random: np.random.Generator) -> np.ndarray:
    rate, low = random.uniform(22, 40), random.uniform(350, 700)

    def croak() -> np.ndarray:
        length = int(random.uniform(0.3, 0.6) * SAMPLE_RATE)
        pulses = (0.5 + 0.5 * np.sin(TAU * rate * seconds(length))) ** 6
        voice = band(random.standard_normal(length), low, 1.5 * low) + 0.4 * tone(2.0 * low, length)
        return pulses * voice * np.hanning(length)

    return repeat(num_samples, lambda: random.uniform(0.7, 1.4), croak)


def mosquito(num_samples: int, random: np.random.Generator) -> np.ndarray:
    drift = np.cumsum(random.standard_normal(num_samples // 800 + 2))
    drift = np.interp(np.arange(num_samples) / 800, np.arange(len(drift)), drift)
    near = 0.6 + 0.4 * np.sin(TAU * random.uniform(0.2, 0.8) * seconds(num_samples))
    return near * tone(random.uniform(450, 700) + 3.0 * drift, num_samples, 0.7 ** np.arange(10))


# ---- music


def _melody(random: np.random.Generator) -> Callable[[], float]:
    """Pitches (Hz) that walk up and down a pentatonic scale."""
    scale = random.uniform(200, 350) * 2.0 ** (np.array([0, 2, 4, 7, 9, 12, 14, 16]) / 12.0)
    position = [int(random.integers(len(scale)))]

    def step() -> float:
        position[0] = int(np.clip(position[0] + random.integers(-2, 3), 0, len(scale) - 1))
        return float(scale[position[0]])

    return step


def marimba(num_samples: int, random: np.random.Generator) -> np.ndarray:
    pitch, beat = _melody(random), random.uniform(0.15, 0.3)
    return repeat(
        num_samples,
        lambda: beat * random.choice((1, 1, 2)),
        lambda: struck(2 * pitch(), (1, 3.93, 9.2), 0.18, 0.8, 0.35),
    )


def organ(num_samples: int, random: np.random.Generator) -> np.ndarray:
    pitch, length = _melody(random), random.uniform(0.8, 1.6)
    drawbars = np.array([1.0, 0.8, 0.3, 0.6, 0.0, 0.3, 0.0, 0.3])
    size = int(length * SAMPLE_RATE)
    hold = np.minimum(1.0, np.minimum(seconds(size), seconds(size)[::-1]) / 0.03)

    def chord() -> np.ndarray:
        root = pitch()
        return hold * sum(tone(root * ratio, size, drawbars) for ratio in (0.5, 1.0, 1.25, 1.5))

    return repeat(num_samples, lambda: length, chord)


def drum_kit(num_samples: int, random: np.random.Generator) -> np.ndarray:
    beat, kick_pitch, turn = random.uniform(0.2, 0.32), random.uniform(50, 80), iter(range(10_000))
    kick_time = seconds(4000)
    kick = np.exp(-kick_time / 0.07) * np.sin(
        TAU * kick_pitch * (kick_time + 0.03 * (1 - np.exp(-kick_time / 0.02)))
    )

    def hit() -> np.ndarray:
        number = next(turn) % 4
        sound = 0.3 * burst(0.25, 0.02, 5000, 7500, random)
        if number == 2:
            sound += burst(0.25, 0.06, 200, 5000, random)
        if number == 0 or random.random() < 0.2:
            sound += 1.5 * kick
        return sound

    return repeat(num_samples, lambda: beat, hit)


def flute(num_samples: int, random: np.random.Generator) -> np.ndarray:
    pitch, beat = _melody(random), random.uniform(0.25, 0.5)

    def note() -> np.ndarray:
        length = int(beat * random.choice((1, 1, 2)) * SAMPLE_RATE)
        vibrato = 1.0 + 0.008 * np.sin(TAU * 5.0 * seconds(length))
        breath = 0.1 * band(random.standard_normal(length), 1000, 5000)
        return (tone(3 * pitch() * vibrato, length, (1.0, 0.25, 0.08)) + breath) * np.hanning(length) ** 0.3

    return repeat(num_samples, lambda: beat * 1.5, note)


EVENTS: dict[str, Maker] = {
    "Sine wave": sine_wave,
    "Chirp tone": chirp_tone,
    "Beep, bleep": beep,
    "Telephone dialing, DTMF": telephone_dialing,
    "Busy signal": busy_signal,
    "Siren": siren,
    "Smoke detector, smoke alarm": smoke_detector,
    "Foghorn": foghorn,
    "Mains hum": hum,
    "White noise": white_noise,
    "Pink noise": pink_noise,
    "Wind": wind,
    "Rain": rain,
    "Waves, surf": surf,
    "Motorcycle": motorcycle,
    "Idling": idling,
    "Helicopter": helicopter,
    "Vacuum cleaner": vacuum_cleaner,
    "Knock": knock,
    "Tick-tock": tick_tock,
    "Typing": typing,
    "Gunshot, gunfire": gunshot,
    "Clapping": clapping,
    "Church bell": church_bell,
    "Wind chime": wind_chime,
    "Telephone bell ringing": telephone_bell,
    "Chirp, tweet": bird,
    "Cricket": cricket,
    "Bark": bark,
    "Frog": frog,
    "Mosquito": mosquito,
    "Marimba, xylophone": marimba,
    "Organ": organ,
    "Drum kit": drum_kit,
    "Flute": flute,
    "Plucked string instrument": chords,
}
"""AudioSet's display name -> how it is made."""
