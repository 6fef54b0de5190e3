"""Folders of teacher embeddings: float16 shards of sampled frames, written by extract_embeddings.

Layout: embeddings.json (teacher, sampling, shard count; its presence says that all is there),
shard-00000.npy (frames, D) float16, shard-00000.json (cut ids and frames per cut; commits the shard).
The ranks of a training share one stream of frames and add up what each found (ours).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from spear_lib.runtime import keyed_random
from spear_lib.runtime.files import read_json
from spear_lib.runtime.progress import progress
from spear_lib.runtime.world import World

SUMMARY_FILE = "embeddings.json"
CHUNK = 8192  # frames read at once


class StoredFrames:
    """The frames of a folder of embeddings, read in pieces; recordings held out are apart.

    Attributes:
      summary: what extract_embeddings wrote about teacher and sampling.
      dim: channels.
      num_recordings: recordings in all.
      train, held_out: (F,) int64 positions of the frames of each side.
      train_recordings: (R, 2) int64: where each recording of the training side begins and ends.
    """

    def __init__(self, folder: str | Path, held_out_fraction: float, seed: int):
        folder = Path(folder)
        if not (folder / SUMMARY_FILE).is_file():
            raise ValueError(
                f"{folder / SUMMARY_FILE} does not exist; run stage 3 (python -m "
                "spear_lib.bin.extract_embeddings) first"
            )
        self.folder, self.summary = folder, read_json(folder / SUMMARY_FILE)
        self.dim: int = self.summary["teacher"]["embedding_dim"]
        self._arrays, ids, counts = [], [], []
        for shard in range(self.summary["num_shards"]):
            path = folder / f"shard-{shard:05d}.json"
            if not path.is_file():
                raise ValueError(f"{path} is gone; delete {folder / SUMMARY_FILE} and run stage 3 again")
            index = read_json(path)
            array = np.load(path.with_suffix(".npy"), mmap_mode="r")
            if array.shape != (sum(index["num_frames"]), self.dim):
                raise ValueError(
                    f"{path.with_suffix('.npy')} has shape {array.shape}, which its index does not expect"
                )
            self._arrays.append(array)
            ids += index["ids"]
            counts += index["num_frames"]
        self.num_recordings = len(ids)
        self._ends = np.cumsum([len(array) for array in self._arrays])
        counts = np.array(counts, dtype=np.int64)
        held_out = split_held_out(ids, counts, held_out_fraction, seed)
        self.train, self.held_out = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        ends = np.cumsum(counts)
        recordings = np.stack([ends - counts, ends], axis=1)[counts > 0]
        self.train_recordings = recordings[~held_out[recordings[:, 0]]]

    def read(self, positions: np.ndarray) -> Iterator[Tensor]:
        """Float32 frames (at most CHUNK, D) at the sorted ``positions``, piece by piece.

        Raises:
          ValueError: NaN or infinity in the embeddings.
        """
        for begin in range(0, len(positions), CHUNK):
            wanted = positions[begin : begin + CHUNK]
            parts = []
            for array, end in zip(self._arrays, self._ends):
                inside = wanted[(wanted >= end - len(array)) & (wanted < end)] - (end - len(array))
                if len(inside):
                    parts.append(array[inside])
            frames = torch.from_numpy(np.concatenate(parts)).float()
            if not torch.isfinite(frames).all():
                raise ValueError(
                    f"{self.folder} holds values that float16 cannot; the teacher's embeddings are too "
                    "large or not finite"
                )
            yield frames

    def measure(self, training: Any, seed: int) -> tuple[Tensor, Tensor, str]:
        """Mean and standard deviation (D,) of the training frames, and the identity of a training on them.

        Args:
          training: options of the training, a dataclass with ``normalisation``.

        Raises:
          ValueError: no frames on one side, or as ``statistics`` and ``read``.
        """
        for name, positions in (("train", self.train), ("held-out", self.held_out)):
            if len(positions) == 0:
                raise ValueError(
                    f"no {name} frames: {self.folder} has {self.summary['num_frames']} frames of "
                    f"{self.num_recordings} recordings"
                )
        parts = progress(self.read(self.train), -(-len(self.train) // CHUNK), "statistics", "pieces")
        mean, std, frames_hash = statistics(parts, self.dim, training.normalisation)
        identity = json.dumps([asdict(training), seed, self.summary, frames_hash], sort_keys=True)
        return mean, std, hashlib.sha256(identity.encode()).hexdigest()[:16]

    def sample(self, positions: np.ndarray, count: int, *seed: int | str) -> Tensor:
        """(min(count, F), D): a random choice of the frames at ``positions``, in their order."""
        if count < len(positions):
            draw = keyed_random.generator("k-means frames", *seed)
            positions = np.sort(draw.choice(positions, size=count, replace=False))
        return torch.cat([torch.empty(0, self.dim), *self.read(positions)])


class FrameStream:
    """The training frames as an endless shuffled stream, of which one buffer at a time is in memory.

    Every epoch takes the recordings in a new order and shuffles the frames of ``buffer_frames`` at a time, so
    the disk is read recording by recording. All is keyed by (seed, epoch, buffer): a position in the stream
    is all that a resumed training needs to go on, and ranks read their own parts of the same stream.

    Attributes:
      mean, std: (D,) the normalisation of what ``read`` returns.
      most_held: the largest number of frames that was in memory so far.
    """

    def __init__(self, stored: StoredFrames, mean: Tensor, std: Tensor, buffer_frames: int, seed: int):
        self.stored, self.mean, self.std = stored, mean, std
        self.buffer_frames, self.seed = buffer_frames, seed
        self.dim, self.epoch_frames = stored.dim, len(stored.train)
        self.most_held = 0
        self._epoch = -1
        self._loaded: tuple[int, int] | None = None

    def read(self, begin: int, count: int) -> Tensor:
        """Normalised frames ``begin`` to ``begin + count`` of the stream, (count, D) float32."""
        return (self.raw(begin, count) - self.mean) / self.std

    def raw(self, begin: int, count: int) -> Tensor:
        """The same as the teacher gave them."""
        parts = [torch.empty(0, self.dim)]
        while count > 0:
            epoch, position = divmod(begin, self.epoch_frames)
            self._open(epoch)
            number = int(np.searchsorted(self._buffer_ends, position, side="right"))
            self._load(number)
            first = int(self._buffer_ends[number]) - len(self._buffer)
            part = self._buffer[position - first : position - first + count]
            parts.append(part.float())
            begin, count = begin + len(part), count - len(part)
        return torch.cat(parts)

    def _open(self, epoch: int) -> None:
        """The order of the recordings of an epoch and where its buffers end."""
        if epoch == self._epoch:
            return
        draw = keyed_random.generator("quantizer recordings", self.seed, epoch)
        recordings = draw.permutation(self.stored.train_recordings)
        ends = np.cumsum(recordings[:, 1] - recordings[:, 0])
        # A recording belongs to the buffer in which its last frame falls.
        buffers = (ends - 1) // self.buffer_frames
        last = np.flatnonzero(np.append(buffers[1:] != buffers[:-1], True))
        self._buffer_ends, self._buffer_recordings = ends[last], np.split(recordings, last[:-1] + 1)
        self._epoch, self._loaded = epoch, None

    def _load(self, number: int) -> None:
        if self._loaded == (self._epoch, number):
            return
        self._buffer = torch.empty(0)  # before the next one is read
        pieces = sorted(self._buffer_recordings[number].tolist())
        positions = np.concatenate([np.arange(begin, end) for begin, end in pieces])
        # The files hold float16, so nothing is lost.
        frames = torch.cat([part.half() for part in self.stored.read(positions)])
        draw = keyed_random.generator("quantizer frames", self.seed, self._epoch, number)
        self._buffer = frames[torch.from_numpy(draw.permutation(len(frames)))]
        self._loaded = (self._epoch, number)
        self.most_held = max(self.most_held, len(frames))


def read_share(frames: FrameStream, begin: int, count: int, world: World, chunk: int) -> Iterator[Tensor]:
    """This rank's part of ``count`` stream positions from ``begin`` on, in pieces (at most ``chunk``, D) on
    its device."""
    first, end = count * world.rank // world.world_size, count * (world.rank + 1) // world.world_size
    for offset in range(first, end, chunk):
        yield frames.read(begin + offset, min(chunk, end - offset)).to(world.device)


def add_up(world: World, value: Tensor) -> Tensor:
    """Sum over the ranks, on the device of ``value``."""
    return value if world.world_size == 1 else world.sum(value.cpu()).to(value.device)


def add_up_with_gradient(value: Tensor, world: World) -> Tensor:
    """Sum over the ranks of a value that a loss is made of; its gradient is that of this rank's part."""
    if world.world_size == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    # The value of the sum, the gradient of the own part.
    return total + (value - value.detach())


def add_up_gradients(parameters: list[Tensor], world: World) -> None:
    """Sum of the gradients over the ranks, in place and without leaving the device."""
    if world.world_size > 1:
        for parameter in parameters:
            dist.all_reduce(parameter.grad)


def split_held_out(ids: list[str], counts: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(F,) bool: frames of the recordings held out. By recording, so that no neighbour of a frame is trained
    on."""
    draws = keyed_random.uniform(keyed_random.keys("quantizer held out", seed, ids=ids), 0)[:, 0].numpy()
    held_out = draws < fraction
    # At least one recording on each side, whatever the draws.
    held_out[np.argmin(draws)] = True
    held_out[np.argmax(draws)] = False
    return np.repeat(held_out, counts)


def statistics(parts: Iterable[Tensor], dim: int, normalisation: str) -> tuple[Tensor, Tensor, str]:
    """Mean and standard deviation (D,) that the normalisation asks for, and a hash of the frames.

    Args:
      parts: frames (F, D) float32, piece by piece.
      normalisation: channel, half, global or none.

    Raises:
      ValueError: a channel that never changes, where it should get unit variance.
    """
    count, digest = 0, hashlib.sha256()
    total, squares = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    origin = None
    for part in parts:
        digest.update(part.numpy().tobytes())
        # Around the first frame: large offsets would cost the variance its digits.
        origin = part[0].double() if origin is None else origin
        shifted = part.double() - origin
        total += shifted.sum(dim=0)
        squares += shifted.square().sum(dim=0)
        count += len(part)
    frames_hash = digest.hexdigest()[:16]
    if normalisation == "none":
        return torch.zeros(dim), torch.ones(dim), frames_hash
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    constant = (squares == 0).nonzero().flatten().tolist()
    if constant and normalisation == "channel":
        shown = ", ".join(map(str, constant[:8])) + (", ..." if len(constant) > 8 else "")
        raise ValueError(
            f"{len(constant)} of {dim} channels (number {shown}) have the same value in all {count} training "
            "frames and cannot get unit variance: look for a dead channel or layer of the teacher, or use "
            "normalisation global"
        )
    if normalisation == "global":
        variance = variance.mean().expand(dim)
    elif normalisation == "half":
        variance = (variance * variance.mean()).sqrt()
    return (mean + origin).float(), variance.sqrt().float(), frames_hash
