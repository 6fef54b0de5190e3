"""Folders of teacher embeddings: float16 shards of sampled frames, written by extract_embeddings.

Layout: embeddings.json (teacher, sampling, shard count; its presence says that all is there),
shard-00000.npy (frames, D) float16, shard-00000.json (cut ids and frames per cut; commits the shard).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spear_lib import keyed_random
from spear_lib.data.tokens_store import read_json

SUMMARY_FILE = "embeddings.json"


@dataclass
class FrameMatrix:
    """Frames (F, D) in float16 and the (frozen) transform to what the quantiser sees."""

    frames: Tensor
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return self.frames.shape[0]

    def rows(self, index: Tensor | slice) -> Tensor:
        """Normalised float32 frames (len(index), D)."""
        return (self.frames[index].float() - self.mean) / self.std


def read_embeddings(folder: str | Path) -> tuple[dict[str, Any], np.ndarray, list[str], np.ndarray]:
    """Summary, frames (F, D) float16, cut ids, and frames per cut."""
    folder = Path(folder)
    if not (folder / SUMMARY_FILE).is_file():
        raise ValueError(
            f"{folder / SUMMARY_FILE} does not exist; run stage 3 (python -m "
            f"spear_lib.bin.extract_embeddings) first"
        )
    summary = read_json(folder / SUMMARY_FILE)
    arrays, ids, counts = [], [], []
    for shard in range(summary["num_shards"]):
        path = folder / f"shard-{shard:05d}.json"
        if not path.is_file():
            raise ValueError(f"{path} is gone; delete {folder / SUMMARY_FILE} and run stage 3 again")
        index = read_json(path)
        array = np.load(path.with_suffix(".npy"))
        if array.shape != (sum(index["num_frames"]), summary["teacher"]["embedding_dim"]):
            raise ValueError(
                f"{path.with_suffix('.npy')} has shape {array.shape}, which its index does not expect"
            )
        arrays.append(array)
        ids += index["ids"]
        counts += index["num_frames"]
    frames = np.concatenate(arrays)
    if not np.isfinite(frames).all():
        raise ValueError(
            f"{folder} holds values that float16 cannot; the teacher's embeddings are too large or not finite"
        )
    return summary, frames, ids, np.array(counts, dtype=np.int64)


def split_held_out(ids: list[str], counts: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(F,) bool: frames of the recordings held out. By recording, so that no neighbour of a frame is trained
    on."""
    draws = keyed_random.uniform(keyed_random.keys("quantizer held out", seed, ids=ids), 0)[:, 0].numpy()
    held_out = draws < fraction
    # At least one recording on each side, whatever the draws.
    held_out[np.argmin(draws)] = True
    held_out[np.argmax(draws)] = False
    return np.repeat(held_out, counts)


def statistics(frames: Tensor, normalisation: str, chunk: int = 65536) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) that the normalisation asks for, accumulated in float64."""
    dim = frames.shape[1]
    if normalisation == "none":
        return torch.zeros(dim), torch.ones(dim)
    total, squares = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    for begin in range(0, frames.shape[0], chunk):
        part = frames[begin : begin + chunk].double()
        total += part.sum(dim=0)
        squares += part.square().sum(dim=0)
    mean = total / frames.shape[0]
    variance = (squares / frames.shape[0] - mean.square()).clamp(min=0)
    if normalisation == "global":
        variance = variance.mean().expand(dim)
    elif normalisation == "half":
        variance = (variance * variance.mean()).sqrt()
    return mean.float(), variance.sqrt().float()
