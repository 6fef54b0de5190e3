"""Tasks whose answers are known because the audio is made for them, as HEAR task folders (ours).

* ``events``: scenes of 4 s with up to six sounds of four kinds over noise, which may overlap; onsets and ends
  are known to the sample. Score: onset F within 200 ms.
* ``pitch``: notes of 1 s of 24 semitones in timbres that no two notes share, in noise. Score: accuracy.

Every clip is drawn from (seed, part, number) alone. What they show is that features keep times and pitches;
they are no substitute for recordings.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.runtime import keyed_random
from spear_lib.runtime.files import write_json, write_text

PARTS = {"train": 0.6, "valid": 0.2, "test": 0.2}
"""Part -> its share of the clips."""
SOUNDS = ("chirp", "clicks", "hiss", "tone")
SCENE_SECONDS = 4.0
SEMITONES = 24
LOWEST_NOTE = 48
"""MIDI number: C3, 131 Hz."""


def make_events(folder: Path, num_clips: int = 80, seed: int = 0) -> None:
    """The task ``events`` in ``folder``."""
    clips: dict[str, dict[str, Any]] = {}
    for part, count in _counts(num_clips, 1).items():
        clips[part] = {}
        for number in range(count):
            samples, events = scene(keyed_random.generator("scene of events", seed, part, number))
            clips[part][_write(folder, part, number, samples)] = events
    _write_task(folder, "events", "event", list(SOUNDS), clips, ["event_onset_200ms_fms"])


def make_pitches(folder: Path, num_clips: int = 240, seed: int = 0) -> None:
    """The task ``pitch`` in ``folder``; every semitone comes equally often in every part."""
    clips: dict[str, dict[str, Any]] = {}
    labels = [str(LOWEST_NOTE + step) for step in range(SEMITONES)]
    for part, count in _counts(num_clips, SEMITONES).items():
        clips[part] = {}
        for number in range(count):
            label = labels[number % SEMITONES]
            samples = note(int(label), keyed_random.generator("note", seed, part, number))
            clips[part][_write(folder, part, number, samples)] = [label]
    _write_task(folder, "pitch", "scene", labels, clips, ["pitch_acc", "chroma_acc"])


def _counts(num_clips: int, multiple: int) -> dict[str, int]:
    if num_clips < 5 * multiple:
        raise ValueError(f"num_clips is {num_clips}: use {5 * multiple} or more")
    return {
        part: max(multiple, round(share * num_clips / multiple) * multiple) for part, share in PARTS.items()
    }


def scene(random: np.random.Generator) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Samples (N,) at 16 kHz, and the sounds in them: label, start and end in ms."""
    total = round(SCENE_SECONDS * SAMPLE_RATE)
    samples = 0.01 * random.standard_normal(total)
    events = []
    for _ in range(int(random.integers(2, 7))):
        label = SOUNDS[int(random.integers(len(SOUNDS)))]
        length = int(random.integers(round(0.3 * SAMPLE_RATE), round(0.8 * SAMPLE_RATE)))
        start = int(random.integers(0, total - length))
        samples[start : start + length] += random.uniform(0.05, 0.25) * _sound(label, length, random)
        to_ms = 1000.0 / SAMPLE_RATE
        events.append({"label": label, "start": start * to_ms, "end": (start + length) * to_ms})
    return samples, sorted(events, key=lambda event: event["start"])


def _sound(label: str, length: int, random: np.random.Generator) -> np.ndarray:
    """Samples (length,) of unit level, with edges of 5 ms."""
    time = np.arange(length) / SAMPLE_RATE
    if label == "tone":
        sound = np.sin(2 * np.pi * random.uniform(300, 900) * time)
    elif label == "chirp":
        low, high = random.uniform(800, 1500), random.uniform(3000, 6000)
        sound = np.sin(2 * np.pi * (low + (high - low) * time / (2 * time[-1])) * time)
    elif label == "hiss":
        sound = 0.5 * random.standard_normal(length)
    else:  # clicks
        sound = np.zeros(length)
        sound[:: round(SAMPLE_RATE / random.uniform(15, 40))] = 6.0
        sound = np.convolve(sound, np.exp(-np.arange(40) / 8.0))[:length]
    edge = min(length // 2, round(0.005 * SAMPLE_RATE))
    sound[:edge] *= np.linspace(0, 1, edge)
    sound[-edge:] *= np.linspace(1, 0, edge)
    return sound


def note(midi: int, random: np.random.Generator) -> np.ndarray:
    """Samples (N,) of 1 s at 16 kHz: eight partials of random strength that decay, and noise."""
    frequency = 440.0 * 2.0 ** ((midi - 69) / 12)
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    strengths = random.uniform(0.1, 1.0, 8) / np.arange(1, 9) ** random.uniform(0.2, 1.2)
    phases = random.uniform(0, 2 * np.pi, 8)
    partials = sum(
        strength * np.sin(2 * np.pi * frequency * order * time + phase)
        for order, strength, phase in zip(range(1, 9), strengths, phases)
        if frequency * order < SAMPLE_RATE / 2
    )
    sound = partials * np.exp(-time * random.uniform(0.5, 4.0))
    level = random.uniform(0.1, 0.4) / np.abs(sound).max()
    return level * sound + random.uniform(0.02, 0.15) * random.standard_normal(len(time))


def _write(folder: Path, part: str, number: int, samples: np.ndarray) -> str:
    name = f"{part}-{number:04d}.wav"
    path = folder / str(SAMPLE_RATE) / part / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(samples, -1.0, 1.0), SAMPLE_RATE)
    return name


def _write_task(
    folder: Path,
    name: str,
    kind: str,
    labels: list[str],
    clips: dict[str, dict[str, Any]],
    scores: list[str],
) -> None:
    write_json(
        folder / "task_metadata.json",
        {
            "task_name": name,
            "version": "synthetic",
            "embedding_type": kind,
            "prediction_type": "multilabel" if kind == "event" else "multiclass",
            "split_mode": "trainvaltest",
            "sample_duration": SCENE_SECONDS if kind == "event" else 1.0,
            "evaluation": scores,
        },
    )
    rows = "".join(f"{index},{label}\n" for index, label in enumerate(labels))
    write_text(folder / "labelvocabulary.csv", f"idx,label\n{rows}")
    for part, content in clips.items():
        write_text(folder / f"{part}.json", json.dumps(content))
