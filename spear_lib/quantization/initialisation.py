"""Data-driven start of the codebooks (residual k-means) and of the classifiers (linear discriminants);
ours."""

import torch
from torch import Tensor

from spear_lib import keyed_random
from spear_lib.training.distributed import World


def nearest(x: Tensor, centers: Tensor, chunk: int = 8192) -> Tensor:
    """Index of the nearest of ``centers`` (K, D) for every row of x (B, D): (B,) int64."""
    half_energy = centers.square().sum(dim=1) / 2
    parts = [(part @ centers.T - half_energy).argmax(dim=1) for part in x.split(chunk)]
    return torch.cat(parts) if parts else x.new_zeros(0, dtype=torch.int64)


def k_means(
    x: Tensor, num_centers: int, iterations: int, *seed: int | str, world: World | None = None
) -> Tensor:
    """(K, D) centres of x (B, D) by Lloyd's algorithm; empty centres restart beside the fullest one.

    Args:
      world: ranks that hold the same x and share the work.
    """
    world = world or World()
    draw = keyed_random.generator("k-means", *seed)
    chosen = draw.choice(x.shape[0], size=num_centers, replace=x.shape[0] < num_centers)
    centers = x[torch.from_numpy(chosen).to(x.device)].clone()
    own = slice(len(x) * world.rank // world.world_size, len(x) * (world.rank + 1) // world.world_size)
    for _ in range(iterations):
        assigned = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        assigned[own] = nearest(x[own], centers)
        # In float64, so that the order of the additions, and with it the number of ranks, hardly matters.
        total = torch.zeros(num_centers, x.shape[1], dtype=torch.float64, device=x.device)
        for rows, part in zip(assigned[own].split(8192), x[own].split(8192)):
            total.index_add_(0, rows, part.double())
        assigned, total = world.sum(assigned.cpu()).to(x.device), world.sum(total.cpu()).to(x.device)
        count = torch.bincount(assigned, minlength=num_centers)
        means = (total / count.clamp(min=1).unsqueeze(1)).float()
        centers = torch.where(count.unsqueeze(1) > 0, means, centers)
        for empty in (count == 0).nonzero().flatten().tolist():
            members = (assigned == int(count.argmax())).nonzero().flatten()
            centers[empty] = x[members[int(draw.integers(len(members)))]]
    return centers


def discriminants(
    energy: Tensor, class_sums: Tensor, counts: Tensor, num_frames: int
) -> tuple[Tensor, Tensor]:
    """Linear discriminants that guess the codes: the best linear classifier if classes are equal Gaussians.

    Args:
      energy: (D, D) float64, sum of x x^T over the frames.
      class_sums: (N, K, D) float64, sum of the frames that use a code; counts: (N, K) how many they are.
      num_frames: frames in all.

    Returns:
      weight (N*K, D) and bias (N*K,).
    """
    weights, biases = [], []
    energy = energy / num_frames
    eye = torch.eye(len(energy), dtype=torch.float64, device=energy.device)
    ridge = eye * (1e-3 * energy.diagonal().mean() + 1e-12)
    for total, count in zip(class_sums, counts.double()):
        overall = total.sum(dim=0) / num_frames
        # Rare classes lean on the overall mean.
        means = (total + overall) / (count + 1).unsqueeze(1)
        within = energy - (means.T * (count / num_frames)) @ means
        weight = torch.linalg.solve(within + ridge, means.T).T  # (K, D)
        prior = ((count + 1) / (num_frames + len(count))).log()
        weights.append(weight.float())
        biases.append((prior - (weight * means).sum(dim=1) / 2).float())
    return torch.cat(weights), torch.cat(biases)
