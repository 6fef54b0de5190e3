"""Noises to mix into speech, in the folder layout of MUSAN (ours; layout of https://www.openslr.org/17)."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from scipy import signal

from spear_lib.runtime.keyed_random import generator
from tools.synthesis import espeak
from tools.synthesis.grammar import SMALL, Grammar
from tools.synthesis.layout import FACTS_FILE, FORMAT_VERSION, read_aloud
from tools.synthesis.rooms import NOISE_COLOURS, SAMPLE_RATE, coloured_noise, rms, to_int16
from tools.synthesis.voices import Voice, choose_voices
from tools.synthesis.workers import run_fresh

RECORDING_SECONDS = 10.0
BABBLE_VOICES = 5
FIRST_BABBLE_SPEAKER = 9000


@dataclass(frozen=True)
class NoiseOptions:
    """What decides every byte of the noises."""

    seed: int = 0
    minutes: float = 8.0
    """Of music, noise and speech together."""

    def __post_init__(self):
        if self.minutes * 60 < 3 * RECORDING_SECONDS:
            raise ValueError(
                f"--minutes is {self.minutes}, at least {3 * RECORDING_SECONDS / 60:.1f} is needed for one "
                "recording each of music, noise and speech"
            )


@dataclass(frozen=True)
class BabbleJob:
    """One recording of several people talking at once; made in one fresh process."""

    seed: int
    name: str
    voices: tuple[Voice, ...]
    path: str


def fan(num_samples: int, random: np.random.Generator) -> np.ndarray:
    """Coloured noise that swells slowly."""
    exponent = list(NOISE_COLOURS.values())[int(random.integers(len(NOISE_COLOURS)))]
    time = np.arange(num_samples) / SAMPLE_RATE
    swell = 1.0 + 0.4 * np.sin(2 * np.pi * random.uniform(0.1, 0.6) * time + random.uniform(0, 6.28))
    return swell * coloured_noise(num_samples, exponent + random.uniform(-0.3, 0.3), random)


def hum(num_samples: int, random: np.random.Generator) -> np.ndarray:
    """Mains hum with its harmonics, over soft noise."""
    time = np.arange(num_samples) / SAMPLE_RATE
    base = (50.0, 60.0)[int(random.integers(2))]
    tone = sum(
        random.uniform(0.1, 1.0) / k * np.sin(2 * np.pi * base * k * time + random.uniform(0, 6.28))
        for k in range(1, 9)
    )
    return tone / rms(tone) + 0.2 * coloured_noise(num_samples, -1.0, random)


def clicks(num_samples: int, random: np.random.Generator) -> np.ndarray:
    """Short resonant knocks at random times, as of keys or dishes."""
    impulses = np.zeros(num_samples)
    count = max(1, int(num_samples / SAMPLE_RATE * random.uniform(2, 8)))
    impulses[random.integers(0, num_samples, size=count)] = random.uniform(0.3, 1.0, size=count)
    time = np.arange(int(0.06 * SAMPLE_RATE)) / SAMPLE_RATE
    knock = np.exp(-time * random.uniform(60, 200)) * np.sin(2 * np.pi * random.uniform(600, 4000) * time)
    return signal.oaconvolve(impulses, knock)[:num_samples] + 0.003 * coloured_noise(
        num_samples, -1.0, random
    )


def rain(num_samples: int, random: np.random.Generator) -> np.ndarray:
    """Many small bursts of bright noise."""
    drops = random.poisson(random.uniform(0.002, 0.01), size=num_samples) * random.exponential(
        1.0, num_samples
    )
    band = signal.butter(
        2, (random.uniform(500, 1500), random.uniform(4000, 7000)), "band", fs=SAMPLE_RATE, output="sos"
    )
    return signal.sosfilt(band, drops + 0.05 * random.standard_normal(num_samples))


def chords(num_samples: int, random: np.random.Generator) -> np.ndarray:
    """A slow progression of plucked chords."""
    beat = int(random.uniform(0.35, 0.8) * SAMPLE_RATE)
    root = 110.0 * 2.0 ** (random.integers(0, 12) / 12.0)
    brightness = random.uniform(0.3, 0.7)
    music = np.zeros(num_samples + 4 * beat)
    time = np.arange(3 * beat) / SAMPLE_RATE
    for start in range(0, num_samples, beat):
        degree = int(random.choice((0, 3, 5, 7, 9)))
        for interval in ((0, 4, 7), (0, 3, 7))[int(random.integers(2))]:
            pitch = root * 2.0 ** ((degree + interval) / 12.0)
            partials = [k for k in range(1, 6) if k * pitch < 7000]
            note = sum(brightness ** (k - 1) * np.sin(2 * np.pi * k * pitch * time) for k in partials)
            music[start : start + 3 * beat] += note * np.exp(-3.0 * time) * random.uniform(0.5, 1.0)
    return music[:num_samples]


NOISE_SOURCES: dict[str, tuple[Callable[[int, np.random.Generator], np.ndarray], ...]] = {
    "free-sound": (fan, clicks, rain),
    "sound-bible": (hum, rain, clicks),
}


def make_babble(job: BabbleJob) -> None:
    """Writes one recording of several voices at once; runs in a fresh process."""
    num_samples = int(RECORDING_SECONDS * SAMPLE_RATE)
    grammar, mixture = Grammar(SMALL), np.zeros(num_samples)
    for voice in job.voices:
        random = generator(job.seed, "babble", job.name, voice.speaker)
        espeak.engine().set_voice(voice.espeak_name)
        chunks, length = [], 0
        while length < num_samples:
            speech = read_aloud(voice, grammar.draw_for("train", random), random)
            pause = np.zeros(int(random.uniform(0.1, 0.6) * SAMPLE_RATE))
            chunks += [speech / max(rms(speech), 1e-6), pause]
            length += len(speech) + len(pause)
        mixture += np.concatenate(chunks)[:num_samples] * random.uniform(0.5, 1.0)
    _write(Path(job.path), mixture)


def _write(path: Path, samples: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, to_int16(samples * (10.0 ** (-22.0 / 20.0) / max(rms(samples), 1e-9))), SAMPLE_RATE)


def make_noise_corpus(output: Path, options: NoiseOptions, num_processes: int = 2) -> dict:
    """Synthesises ``output``/musan: half noise, a quarter music, a quarter babble; returns its facts."""
    unfinished = output.with_name(output.name + ".tmp")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    corpus = unfinished / "musan"
    num_recordings = max(3, round(options.minutes * 60 / RECORDING_SECONDS))
    num_music = num_speech = max(1, num_recordings // 4)
    num_samples = int(RECORDING_SECONDS * SAMPLE_RATE)
    counts = {"music": num_music, "noise": num_recordings - num_music - num_speech, "speech": num_speech}

    annotations = []
    for index in range(counts["music"]):
        name = f"music-synthetic-{index:04d}"
        random = generator(options.seed, "noise", name)
        _write(corpus / "music" / "synthetic" / f"{name}.wav", chords(num_samples, random))
        annotations.append(f"{name} chords N synthetic\n")
    (corpus / "music" / "synthetic" / "ANNOTATIONS").write_text("".join(annotations))
    for index in range(counts["noise"]):
        source = list(NOISE_SOURCES)[index % len(NOISE_SOURCES)]
        makers = NOISE_SOURCES[source]
        name = f"noise-{source}-{index:04d}"
        random = generator(options.seed, "noise", name)
        maker = makers[index // len(NOISE_SOURCES) % len(makers)]
        _write(corpus / "noise" / source / f"{name}.wav", maker(num_samples, random))
    _make_speech_part(
        corpus / "speech" / "synthetic", options.seed, counts["speech"], num_processes, unfinished
    )
    (corpus / "README").write_text(
        "Synthetic noises, chords and babble made by tools/synthesize_corpus.py in MUSAN's folder layout.\n"
    )
    facts = {
        "kind": "noise",
        "format_version": FORMAT_VERSION,
        "options": asdict(options),
        "minutes": {part: count * RECORDING_SECONDS / 60 for part, count in counts.items()},
    }
    (unfinished / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n")
    unfinished.rename(output)
    return facts


def _make_speech_part(folder: Path, seed: int, count: int, num_processes: int, unfinished: Path) -> None:
    accents = ["us", "gb", "rp", "scotland"]
    # The seed differs from that of the speech corpus, so that babble does not repeat its voices one by one.
    (voices,) = choose_voices(seed + 1_000_003, [30], [FIRST_BABBLE_SPEAKER], accents, spread=1.0)
    folder.mkdir(parents=True)
    jobs = []
    for index in range(count):
        name = f"speech-synthetic-{index:04d}"
        chosen = generator(seed, "babble voices", name).choice(len(voices), size=BABBLE_VOICES, replace=False)
        members = tuple(voices[int(position)] for position in chosen)
        jobs.append(BabbleJob(seed, name, members, str(folder / f"{name}.wav")))
    errors = unfinished / "errors"
    errors.mkdir()
    run_fresh(make_babble, jobs, num_processes, errors, "synthesising babble", "recordings")
    shutil.rmtree(errors)
