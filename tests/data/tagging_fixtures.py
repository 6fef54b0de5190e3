"""A tiny corpus of sounds for tests of tagging: each class is a tone of its own, some clips have two."""

from pathlib import Path

import numpy as np
import soundfile
from lhotse import Recording, SupervisionSegment
from lhotse.cut import Cut

from spear_lib.corpora.labelled_clips import LABEL_FIELD, SEPARATOR, labels_of
from spear_lib.data.manifests import save_cuts
from spear_lib.runtime import keyed_random

SAMPLE_RATE = 16000
CLASSES = {f"/m/tone{number}": f"Tone, number {number}" for number in range(6)}
"""{label: name}; the names hold commas, as AudioSet's do."""

TINY_ENCODER = {
    "frontend_channels": [4, 8, 8],
    "downsampling_factor": [1, 2],
    "num_encoder_layers": [1, 1],
    "encoder_dim": [32],
    "feedforward_dim": [48],
    "encoder_unmasked_dim": [32],
    "num_heads": [2],
    "query_head_dim": [8],
    "value_head_dim": [8],
    "pos_dim": 16,
    "cnn_module_kernel": [7],
}


def write_class_list(path: Path, classes: dict[str, str] | None = None) -> Path:
    """A csv file in the form of AudioSet's class_labels_indices.csv."""
    rows = [f'{index},{label},"{name}"' for index, (label, name) in enumerate((classes or CLASSES).items())]
    path.write_text("\n".join(["index,mid,display_name", *rows]) + "\n", encoding="utf-8")
    return path


def tone(number: int, seconds: float, random: np.random.Generator) -> np.ndarray:
    """The sound of a class."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.sin(2 * np.pi * (250 + 550 * number) * time + random.uniform(0, 6)) * random.uniform(0.1, 0.2)
    return wave + 0.003 * random.standard_normal(len(time))


def clip(folder: Path, name: str, numbers: list[int], seconds: float, labels: list[str] | None = None) -> Cut:
    """A cut with the sounds ``numbers``, and their labels unless others are given."""
    random = keyed_random.generator("tagging_fixture", name)
    path = folder / f"{name}.wav"
    samples = sum((tone(number, seconds, random) for number in numbers), 0.0)
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
    recording = Recording.from_file(path, recording_id=name)
    labels = [list(CLASSES)[number] for number in numbers] if labels is None else labels
    cut = recording.to_cut()
    cut.id, cut.custom = name, {"domain": "audio"}
    cut.supervisions = [
        SupervisionSegment(
            id=name,
            recording_id=name,
            start=0.0,
            duration=cut.duration,
            custom={LABEL_FIELD: SEPARATOR.join(labels)},
        )
    ]
    assert labels_of(cut) == labels
    return cut


def make_clips(folder: Path, name: str, count: int) -> Path:
    """``folder``/toy_cuts_<name>.jsonl.gz with clips of one or two sounds, 1 to 2 s; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    cuts = []
    for number in range(count):
        random = keyed_random.generator("tagging_fixture", name, number)
        chosen = [number % len(CLASSES)]
        if number % 3 == 0:
            chosen.append((number // 3 + 1 + chosen[0]) % len(CLASSES))
        chosen = list(dict.fromkeys(chosen))
        cuts.append(clip(folder, f"{name}-{number:03d}", chosen, float(random.uniform(1.0, 2.0))))
    manifest = folder / f"toy_cuts_{name}.jsonl.gz"
    save_cuts(cuts, manifest)
    return manifest


def make_noise(folder: Path) -> Path:
    """A manifest of three noises."""
    folder.mkdir(parents=True, exist_ok=True)
    cuts = []
    for number in range(3):
        path = folder / f"noise{number}.wav"
        random = keyed_random.generator("tagging_noise", number)
        soundfile.write(path, 0.1 * random.standard_normal(3 * SAMPLE_RATE), SAMPLE_RATE)
        cut = Recording.from_file(path, recording_id=path.stem).to_cut()
        cut.id = path.stem
        cuts.append(cut)
    manifest = folder / "noise_cuts.jsonl.gz"
    save_cuts(cuts, manifest)
    return manifest
