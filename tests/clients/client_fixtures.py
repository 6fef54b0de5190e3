"""Encoders and clips for the tests that run in the clients' own environments (tools/clients.sh)."""

from pathlib import Path

import numpy as np
import soundfile
import torch
from zipformer_fixtures import TINY

from spear_lib.encoders import load_encoder, save_encoder
from spear_lib.encoders.zipformer import ZipformerConfig

PITCHES = {"low": 250.0, "middle": 900.0, "high": 3000.0}


def write_encoder(folder: Path, factor: int = 1, seed: int = 0) -> Path:
    """A tiny encoder with random weights, at 50 Hz (factor 1) or 25 Hz (2)."""
    torch.manual_seed(seed)
    encoder = load_encoder(ZipformerConfig(**TINY, output_downsampling_factor=factor))
    save_encoder(encoder, folder, {})
    return folder


def write_tones(folder: Path, part: str, count: int) -> Path:
    """A table of tones of three pitches in noise."""
    random = np.random.default_rng(count)
    rows = ["path\tlabel"]
    for number in range(count):
        label = list(PITCHES)[number % 3]
        time = np.arange(16000 + 500 * (number % 4)) / 16000
        audio = 0.3 * np.sin(2 * np.pi * PITCHES[label] * time) + 0.01 * random.standard_normal(len(time))
        path = folder / f"{part}-{number}.wav"
        soundfile.write(path, audio, 16000)
        rows.append(f"{path.name}\t{label}")
    table = folder / f"{part}.tsv"
    table.write_text("\n".join(rows) + "\n")
    return table
