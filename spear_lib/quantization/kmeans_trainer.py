"""Training of k-means on stored embeddings: k-means++ and Lloyd's algorithm on a sample, then passes over all
frames (ours).

A pass assigns every frame to its nearest centre and moves each centre to the mean of its frames, which never
raises the error; mini-batches, as in scikit-learn, see the same frames with a noisier update. Frames are read
shard by shard through a memory map, so memory does not grow with the corpus. Everything is keyed by the seed
and the state after every pass is kept, so a killed training ends with the same centres (CPU).
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_lib.quantization.embeddings import CHUNK, StoredFrames
from spear_lib.quantization.initialisation import nearest
from spear_lib.quantization.kmeans import KMeans
from spear_lib.quantization.trainer import CHECKPOINT, load_state, save_state
from spear_lib.runtime import keyed_random
from spear_lib.runtime.progress import progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KMeansOptions:
    """How the centres are found."""

    num_clusters: int = 500
    """Clusters K (HuBERT: 500; paper F.4.1: 2000)."""
    normalisation: str = "none"
    """none (HuBERT), or as in the quantiser: channel, global."""
    init_frames: int = 50000
    """Random frames for the first centres (ours)."""
    init_iterations: int = 10
    """Lloyd iterations on these frames (ours)."""
    passes: int = 5
    """Lloyd iterations over all frames (ours)."""
    held_out_fraction: float = 0.05
    """Share of the recordings kept for the report."""
    max_held_out_frames: int = 10000
    """At most this many frames in the report."""

    def __post_init__(self) -> None:
        if self.normalisation not in ("none", "channel", "half", "global"):
            raise ValueError(f"normalisation is {self.normalisation!r}: use none, channel, half or global")
        if not 0 < self.held_out_fraction < 0.5:
            raise ValueError(f"held_out_fraction is {self.held_out_fraction}: it must be in (0, 0.5)")
        if self.init_frames < self.num_clusters:
            raise ValueError(
                f"init_frames is {self.init_frames}: {self.num_clusters} clusters need as many frames"
            )


def train_kmeans(
    frames: StoredFrames,
    mean: Tensor,
    std: Tensor,
    options: KMeansOptions,
    seed: int,
    checkpoint_folder: Path,
    run_id: str,
    device: torch.device | str = "cpu",
) -> tuple[KMeans, list[dict[str, float]]]:
    """Centres of the training frames, and what every pass measured.

    Args:
      mean, std: (D,) normalisation, see ``embeddings.statistics``.
      seed: keys every random draw.
      checkpoint_folder: where the state is kept between passes; the caller deletes it when it has the result.
      run_id: identity of data and options; a state of another run is refused.

    Raises:
      ValueError: fewer training frames than clusters, or a stored state of another run.
    """
    if len(frames.train) < options.num_clusters:
        raise ValueError(
            f"{frames.folder} has {len(frames.train)} training frames, fewer than the {options.num_clusters} "
            "clusters: lower num_clusters, or extract more embeddings (sampling.num_frames)"
        )
    result = KMeans(frames.dim, options.num_clusters)
    result.mean.copy_(mean)
    result.std.copy_(std)
    path = checkpoint_folder / CHECKPOINT
    state = load_state(path, run_id)
    if state is None:
        state = {"run_id": run_id, "pass": 0, "centers": _first(frames, result, options, seed), "history": []}
        save_state(state, path)
    else:
        logger.info("goes on after pass %d of %d", state["pass"], options.passes)
    result.to(device)
    # One assignment more than updates, so that shares and the last error belong to the centres that are kept.
    for number in range(state["pass"], options.passes + 1):
        _one_pass(frames, result, state, options, seed, number)
        save_state(state, path)
    result.centers.copy_(state["centers"])
    result.shares.copy_(state["shares"])
    return result.cpu(), state["history"]


def _first(frames: StoredFrames, result: KMeans, options: KMeansOptions, seed: int) -> Tensor:
    """(K, D) centres of a sample: k-means++, then Lloyd's algorithm."""
    x = result.normalise(frames.sample(frames.train, options.init_frames, "init", seed))
    centers = plus_plus(x, options.num_clusters, seed)
    for number in range(options.init_iterations):
        sums, counts, _ = _accumulate([x], centers)
        centers = _moved(centers, sums, counts, seed, "init", number)
    return centers


def plus_plus(x: Tensor, num_centers: int, seed: int) -> Tensor:
    """(K, D) frames of x (B, D), each drawn with a probability that grows with the squared distance to those
    before it; of 2 + log K drawn the one that lowers the error most (greedy k-means++, as scikit-learn's)."""
    trials = 2 + int(math.log(num_centers))
    draws = keyed_random.generator("k-means++", seed).random((num_centers, trials))
    energy = x.square().sum(dim=1)
    distance, chosen = torch.ones(len(x)), []
    for number, draw in enumerate(torch.from_numpy(draws)):
        heights = distance.double().cumsum(0)
        drawn = torch.searchsorted(heights, heights[-1] * draw).clamp(max=len(x) - 1)
        nearer = (energy.unsqueeze(1) - 2 * (x @ x[drawn].T) + energy[drawn]).clamp(min=0)  # (B, trials)
        if number:
            nearer = torch.minimum(distance.unsqueeze(1), nearer)
        best = int(nearer.sum(dim=0).argmin())
        distance = nearer[:, best]
        chosen.append(int(drawn[best]))
    return x[chosen]


def _one_pass(
    frames: StoredFrames,
    result: KMeans,
    state: dict[str, Any],
    options: KMeansOptions,
    seed: int,
    number: int,
) -> None:
    """Assign all frames and, except in the last pass, move the centres; changes ``state``."""
    device = result.mean.device
    centers = state["centers"].to(device)
    total = -(-len(frames.train) // CHUNK)
    name = f"k-means, pass {number + 1} of {options.passes + 1}"
    pieces = progress(frames.read(frames.train), total, name, "pieces")
    sums, counts, error = _accumulate((result.normalise(part.to(device)) for part in pieces), centers)
    error /= len(frames.train)
    empty = int((counts == 0).sum())
    if number < options.passes:
        centers = _moved(centers, sums, counts, seed, "pass", number)
    state["centers"], state["shares"] = centers.cpu(), (counts / counts.sum()).float().cpu()
    state["pass"] = number + 1
    state["history"].append({"round": number, "squared_error_per_frame": error, "empty_clusters": empty})
    logger.info("pass %d: squared error %.5g per frame, %d empty clusters", number + 1, error, empty)


def _accumulate(parts: Iterator[Tensor] | list[Tensor], centers: Tensor) -> tuple[Tensor, Tensor, float]:
    """Per cluster the sum (K, D) and the number (K,) of its frames, and the sum of the squared errors."""
    sums = torch.zeros_like(centers, dtype=torch.float64)
    counts = torch.zeros(len(centers), dtype=torch.int64, device=centers.device)
    error = 0.0
    for part in parts:
        assigned = nearest(part, centers, CHUNK)
        sums += torch.zeros_like(centers).index_add_(0, assigned, part)
        counts += torch.bincount(assigned, minlength=len(centers))
        error += float((part - centers[assigned]).square().sum(dtype=torch.float64))
    return sums, counts, error


def _moved(centers: Tensor, sums: Tensor, counts: Tensor, *seed: int | str) -> Tensor:
    """(K, D) the means; a cluster without frames restarts beside the largest one."""
    means = torch.where(counts.unsqueeze(1) > 0, sums / counts.clamp(min=1).unsqueeze(1), centers.double())
    means, counts = means.float(), counts.clone()
    draw = keyed_random.generator("k-means restart", *seed)
    spread = means.std(dim=0) / len(means)
    for empty in (counts == 0).nonzero().flatten().tolist():
        fullest = int(counts.argmax())
        noise = torch.from_numpy(draw.standard_normal(means.shape[1])).to(means)
        means[empty] = means[fullest] + noise * spread
        counts[fullest] //= 2  # so that the next one restarts elsewhere
    return means
