"""What the start of a training is made of: nearest centres, blocks of principal axes (codebooks), linear
discriminants (classifiers); ours."""

import torch
from torch import Tensor


def nearest(x: Tensor, centers: Tensor, chunk: int = 8192) -> Tensor:
    """Index of the nearest of ``centers`` (K, D) for every row of x (B, D): (B,) int64."""
    half_energy = centers.square().sum(dim=1) / 2
    parts = [(part @ centers.T - half_energy).argmax(dim=1) for part in x.split(chunk)]
    return torch.cat(parts) if parts else x.new_zeros(0, dtype=torch.int64)


def principal_blocks(covariance: Tensor, num_blocks: int, bits: float) -> list[Tensor]:
    """The principal axes of a covariance (D, D), dealt into at most ``num_blocks`` blocks (D, d) float32 of
    about equal bits.

    An axis of variance v deserves 1/2 log2(v / theta) bits above the water level theta (reverse
    water-filling at ``bits`` in all); each goes, the widest first, to the block with the fewest bits so far.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    logs = values.flip(0).clamp(min=1e-12).log2()
    for active in range(len(logs), 0, -1):
        water = float(logs[:active].mean()) - 2 * bits / active
        if active == 1 or float(logs[active - 1]) >= water:
            break
    num_blocks = min(num_blocks, len(logs))
    room = -(-len(logs) // num_blocks)
    members: list[list[int]] = [[] for _ in range(num_blocks)]
    load = [0.0] * num_blocks
    for axis, deserved in enumerate(((logs - water) / 2).clamp(min=0).tolist()):
        free = [block for block in range(num_blocks) if len(members[block]) < room]
        block = min(free, key=lambda each: (load[each], len(members[each])))
        members[block].append(axis)
        load[block] += deserved
    vectors = vectors.flip(1).float()
    return [vectors[:, own] for own in members if own]


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
