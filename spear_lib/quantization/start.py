"""Start of the codebooks: k-means of the stream in blocks of principal axes, one block per codebook (ours,
after optimised product quantisation).

Blocks do not depend on each other, whereas k-means of whole residuals makes a hierarchy of codebooks that the
rounds never undo. Every pass sees new frames, so the centres do not learn one sample by heart.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spear_lib.quantization.embeddings import FrameStream, add_up, read_share
from spear_lib.quantization.initialisation import nearest, principal_blocks
from spear_lib.quantization.options import QuantizerTrainingOptions
from spear_lib.runtime.progress import progress
from spear_lib.runtime.world import World

FORGETTING = 0.5
"""Weight of the earlier passes' sums: more frames per centre, but assigned by older centres."""
_CHUNK = 8192  # frames


def start_codebooks(
    state: dict[str, Any],
    frames: FrameStream,
    options: QuantizerTrainingOptions,
    world: World,
    save: Callable[[], None],
) -> None:
    """Makes ``state["centers"]`` (N, K, D) and ``state["axes"]`` (D, D); saves after every pass.

    ``state["start"]`` holds per codebook its axes (D, d) and centres (K, d) in them with the sums and counts
    of k-means. Where there are more codebooks than channels, the later ones quantise what is left in a block.
    """
    count = min(options.init_frames, frames.epoch_frames)
    if "start" not in state:
        covariance = _covariance(frames, state["position"], count, world)
        bits = options.num_codebooks * math.log2(options.codebook_size)
        blocks = principal_blocks(covariance, options.num_codebooks, bits)
        # What the main rank found, so that ranks on unlike machines cannot drift apart.
        blocks = [world.sum(block * float(world.is_main)) for block in blocks]
        state["axes"] = torch.cat(blocks, dim=1)
        state["start"] = []
        for number in range(options.num_codebooks):
            state["start"].append({"axes": blocks[number % len(blocks)]})
            seen = frames.read(number * options.codebook_size, options.codebook_size)
            own = _left(seen, state["start"][:-1]) @ state["start"][-1]["axes"]
            state["start"][-1].update(centers=own, sums=torch.zeros_like(own).double())
            state["start"][-1]["counts"] = torch.zeros(len(own), dtype=torch.float64)
        state["position"] += count
        save()
    passes = range(state["passes"], options.init_iterations)
    for number in progress(passes, total=len(passes), description="start of the codebooks", unit="passes"):
        _one_pass(state["start"], frames, state["position"], count, world)
        state["passes"] = number + 1
        state["position"] += count
        save()
    state["centers"] = torch.stack([each["centers"] @ each["axes"].T for each in state.pop("start")])
    save()


def _left(x: Tensor, codebooks: list[dict[str, Tensor]]) -> Tensor:
    """What ``codebooks`` leave of frames x (B, D)."""
    for each in codebooks:
        axes, centers = each["axes"].to(x.device), each["centers"].to(x.device)
        x = x - centers[nearest(x @ axes, centers)] @ axes.T
    return x


def _covariance(frames: FrameStream, begin: int, count: int, world: World) -> Tensor:
    """(D, D) float64 on the CPU."""
    energy = torch.zeros(frames.dim, frames.dim, dtype=torch.float64, device=world.device)
    total = torch.zeros(frames.dim, dtype=torch.float64, device=world.device)
    for x in read_share(frames, begin, count, world, _CHUNK):
        energy += x.double().T @ x.double()
        total += x.double().sum(dim=0)
    mean = world.sum(total.cpu()) / count
    return world.sum(energy.cpu()) / count - torch.outer(mean, mean)


def _one_pass(
    codebooks: list[dict[str, Tensor]], frames: FrameStream, begin: int, count: int, world: World
) -> None:
    """Every centre moves to the mean of its frames; empty ones restart at a frame. Changes ``codebooks``."""
    on_device = [{name: value.to(world.device) for name, value in each.items()} for each in codebooks]
    sums = [torch.zeros_like(each["sums"]) for each in on_device]
    counts = [torch.zeros_like(each["counts"]) for each in on_device]
    for x in read_share(frames, begin, count, world, _CHUNK):
        for each, total, number in zip(on_device, sums, counts):
            own = x @ each["axes"]
            assigned = nearest(own, each["centers"])
            # In float64, so that the order of the additions, and with it the number of ranks, hardly matters.
            total.index_add_(0, assigned, own.double())
            number += torch.bincount(assigned, minlength=len(number))
            x = x - each["centers"][assigned] @ each["axes"].T
    for each, total, number in zip(codebooks, sums, counts):
        total, number = add_up(world, total).cpu(), add_up(world, number).cpu()
        each["sums"], each["counts"] = each["sums"] * FORGETTING + total, each["counts"] * FORGETTING + number
        each["centers"] = (each["sums"] / each["counts"].clamp(min=1e-9).unsqueeze(1)).float()
    for number, each in enumerate(codebooks):
        empty = (each["counts"] == 0).nonzero().flatten()
        if len(empty):
            # New frames lie where many frames are: beside the fullest centres.
            fresh = frames.read(begin + count + number * len(each["counts"]), len(empty))
            each["centers"][empty] = _left(fresh, codebooks[:number]) @ each["axes"]
