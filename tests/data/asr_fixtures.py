"""A tiny transcribed corpus for tests of fine-tuning, decoding and probing: each word is a chord of its own.

Words differ in their tones, speakers in pitch and timbre, so that a small model can learn both in seconds.
"""

from pathlib import Path

import numpy as np
import soundfile
from lhotse import Recording, SupervisionSegment
from lhotse.cut import MonoCut

from spear_lib.data.manifests import save_cuts
from spear_lib.runtime import keyed_random

WORDS = ["ONE", "TWO", "RED", "BLUE", "GO", "STOP"]
SAMPLE_RATE = 16000

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


def word_samples(word: str, speaker: int, random: np.random.Generator) -> np.ndarray:
    """0.3 s: two tones that belong to the word, shifted a little by the speaker, and noise."""
    index = WORDS.index(word)
    time = np.arange(int(0.3 * SAMPLE_RATE)) / SAMPLE_RATE
    shift = 1.0 + 0.03 * speaker
    tones = np.sin(2 * np.pi * (300 + 220 * index) * shift * time)
    tones += 0.6 * np.sin(2 * np.pi * (3900 - 310 * index) * shift * time)
    return 0.2 * np.hanning(len(time)) * tones + 0.003 * random.standard_normal(len(time))


def make_cuts(folder: Path, name: str, num_cuts: int, speakers: list[int], seed: int = 0) -> Path:
    """``folder``/toy_cuts_<name>.jsonl.gz with ``num_cuts`` utterances of 2 to 4 words; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    cuts = []
    for number in range(num_cuts):
        random = keyed_random.generator("asr_fixture", name, seed, number)
        speaker = speakers[number % len(speakers)]
        words = [str(word) for word in random.choice(WORDS, size=int(random.integers(2, 5)))]
        samples = np.concatenate([word_samples(word, speaker, random) for word in words]).astype(np.float32)
        path = folder / f"{name}-{number:03d}.wav"
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
        recording = Recording.from_file(path, recording_id=path.stem)
        supervision = SupervisionSegment(
            id=path.stem,
            recording_id=path.stem,
            start=0.0,
            duration=recording.duration,
            text=" ".join(words),
            speaker=f"speaker-{speaker}",
        )
        cuts.append(
            MonoCut(
                id=path.stem,
                start=0.0,
                duration=recording.duration,
                channel=0,
                recording=recording,
                supervisions=[supervision],
            )
        )
    manifest = folder / f"toy_cuts_{name}.jsonl.gz"
    save_cuts(cuts, manifest)
    return manifest
