"""How the ranks of a quantiser training share the stream of frames and add up what they found (ours)."""

from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor

from spear_lib.quantization.embeddings import FrameStream
from spear_lib.runtime.world import World


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
