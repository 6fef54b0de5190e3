"""Folders of embeddings as extract_embeddings leaves them, made of given frames."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spear_lib.quantization.embeddings import FrameStream, StoredFrames, statistics


def write_embeddings(folder: Path, frames: Tensor, per_shard: int = 700, per_cut: int = 50) -> Path:
    """Shards of recordings of ``per_cut`` frames each."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = frames.half().split(per_shard)
    for number, part in enumerate(shards):
        np.save(folder / f"shard-{number:05d}.npy", part.numpy())
        counts = [len(cut) for cut in part.split(per_cut)]
        ids = [f"cut-{number}-{cut}" for cut in range(len(counts))]
        index = {"ids": ids, "num_frames": counts}
        (folder / f"shard-{number:05d}.json").write_text(json.dumps(index))
    summary = {
        "num_shards": len(shards),
        "num_frames": len(frames),
        "teacher": {"teacher_id": "toy", "embedding_dim": frames.shape[1]},
        "recipe": {},
    }
    (folder / "embeddings.json").write_text(json.dumps(summary))
    return folder


def stream(
    folder: Path, frames: Tensor, buffer_frames: int = 400, normalisation: str = "channel", seed: int = 0
) -> FrameStream:
    """The training side of ``frames``, stored and read back."""
    stored = StoredFrames(write_embeddings(folder, frames), 0.05, seed)
    mean, std, _ = statistics(stored.read(stored.train), stored.dim, normalisation)
    return FrameStream(stored, mean, std + 1e-5, buffer_frames, seed)


def toy_frames(count: int = 2000, seed: int = 0) -> Tensor:
    """Frames on a 6-dimensional subspace of 12 channels with unequal scales, as float16."""
    generator = torch.Generator().manual_seed(seed)
    shape = torch.randn(6, 12, generator=torch.Generator().manual_seed(99)) * torch.linspace(0.2, 3, 12)
    noise = 0.05 * torch.randn(count, 12, generator=generator)
    return (torch.randn(count, 6, generator=generator) @ shape + 2 + noise).half()
