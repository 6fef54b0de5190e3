"""Data-driven start of the codebooks (residual k-means) and of the classifiers (linear discriminants);
ours."""

import torch
from torch import Tensor

from spear_lib import keyed_random


def nearest(x: Tensor, centers: Tensor, chunk: int = 8192) -> Tensor:
    """Index of the nearest of ``centers`` (K, D) for every row of x (B, D): (B,) int64."""
    half_energy = centers.square().sum(dim=1) / 2
    parts = [(part @ centers.T - half_energy).argmax(dim=1) for part in x.split(chunk)]
    return torch.cat(parts) if parts else x.new_zeros(0, dtype=torch.int64)


def k_means(x: Tensor, num_centers: int, iterations: int, *seed: int | str) -> Tensor:
    """(K, D) centres of x (B, D) by Lloyd's algorithm; empty centres restart beside the fullest one."""
    draw = keyed_random.generator("k-means", *seed)
    chosen = draw.choice(x.shape[0], size=num_centers, replace=x.shape[0] < num_centers)
    centers = x[torch.from_numpy(chosen)].clone()
    for _ in range(iterations):
        assigned = nearest(x, centers)
        count = torch.bincount(assigned, minlength=num_centers)
        total = torch.zeros_like(centers).index_add_(0, assigned, x)
        centers = torch.where(count.unsqueeze(1) > 0, total / count.clamp(min=1).unsqueeze(1), centers)
        for empty in (count == 0).nonzero().flatten().tolist():
            members = (assigned == int(count.argmax())).nonzero().flatten()
            centers[empty] = x[members[int(draw.integers(len(members)))]]
    return centers


def residual_k_means(x: Tensor, num_codebooks: int, codebook_size: int, iterations: int, seed: int) -> Tensor:
    """(N, K, D) code vectors: codebook n is the k-means of what codebooks 0..n-1 leave over."""
    residual, codebooks = x.clone(), []
    for codebook in range(num_codebooks):
        centers = k_means(residual, codebook_size, iterations, "residual", seed, codebook)
        residual -= centers[nearest(residual, centers)]
        codebooks.append(centers)
    return torch.stack(codebooks)


def residual_encode(x: Tensor, centers: Tensor) -> Tensor:
    """Greedy codes (B, N) of x (B, D): each codebook takes the entry nearest to what is left."""
    residual, codes = x.clone(), []
    for codebook in centers:
        best = nearest(residual, codebook)
        residual -= codebook[best]
        codes.append(best)
    return torch.stack(codes, dim=1)


def discriminant_classifiers(x: Tensor, codes: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Linear discriminants that guess the codes: the best linear classifier if classes are equal Gaussians.

    Args:
      x: (B, D) frames; codes: (B, N) their codes.

    Returns:
      weight (N*K, D) and bias (N*K,).
    """
    weights, biases = [], []
    energy = (x.T @ x).double() / x.shape[0]
    ridge = torch.eye(x.shape[1], dtype=torch.float64, device=x.device) * (
        1e-3 * energy.diagonal().mean() + 1e-12
    )
    overall = x.mean(dim=0)
    for codebook in range(codes.shape[1]):
        count = torch.bincount(codes[:, codebook], minlength=codebook_size).float()
        total = torch.zeros(codebook_size, x.shape[1], device=x.device).index_add_(0, codes[:, codebook], x)
        # Rare classes lean on the overall mean.
        means = ((total + overall) / (count + 1).unsqueeze(1)).double()
        within = energy - (means.T * (count / x.shape[0]).double()) @ means
        weight = torch.linalg.solve(within + ridge, means.T).T  # (K, D)
        prior = ((count + 1) / (x.shape[0] + codebook_size)).double().log()
        weights.append(weight.float())
        biases.append((prior - (weight * means).sum(dim=1) / 2).float())
    return torch.cat(weights), torch.cat(biases)
