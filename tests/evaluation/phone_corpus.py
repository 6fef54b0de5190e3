"""A made-up corpus of two phones that any features tell apart, with times, audio and tokens."""

from pathlib import Path

import numpy as np
import soundfile
import torch
from token_fixtures import FACTS
from zipformer_fixtures import TINY

from spear_lib.data.audio_files import open_audio
from spear_lib.data.manifests import save_cuts
from spear_lib.encoders import load_encoder, save_encoder
from spear_lib.encoders.zipformer import ZipformerConfig
from spear_lib.tokens.store import write_store

SPEAKERS = ("ann", "bob", "eve")
SECONDS = 2.0
RATE = 16000


def write_corpus(folder: Path) -> Path:
    """audio/SPEAKER/one.wav, phones.tsv, speakers.tsv, cuts.jsonl.gz, tokens (codebook 0 knows the phone)."""
    random = np.random.default_rng(0)
    rows, cuts, codes = ["utt\tstart\tend\tphone"], [], []
    for speaker in SPEAKERS:
        samples = 0.02 * random.standard_normal(int(SECONDS * RATE))
        tokens = random.integers(0, 8, (int(SECONDS * 50), 4))
        time = np.arange(len(samples)) / RATE
        rows.append(f"{speaker}-one\t0\t0.1\tsil")
        for number in range(18):
            start, label = 0.1 + 0.1 * number, "ab"[number // 2 % 2]
            inside = (time >= start) & (time < start + 0.1)
            samples += 0.3 * np.sin(2 * np.pi * {"a": 400, "b": 2500}[label] * time) * inside
            tokens[round(start * 50) : round((start + 0.1) * 50), 0] = "ab".index(label)
            rows.append(f"{speaker}-one\t{start:.2f}\t{start + 0.1:.2f}\t{label}")
        path = folder / "audio" / speaker / "one.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, samples, RATE)
        cut = open_audio(path)
        cut.id = f"{speaker}-one"
        cuts.append(cut)
        codes.append(tokens.astype(np.uint8))
    (folder / "phones.tsv").write_text("\n".join(rows) + "\n")
    (folder / "speakers.tsv").write_text("utt\tspeaker\n" + "".join(f"{s}-one\t{s}\n" for s in SPEAKERS))
    save_cuts(cuts, folder / "cuts.jsonl.gz")
    write_store(folder / "tokens", FACTS, cuts, codes)
    return folder


def write_encoder(folder: Path) -> Path:
    """A tiny encoder with random weights."""
    torch.manual_seed(0)
    save_encoder(load_encoder(ZipformerConfig(**TINY)), folder, {})
    return folder
