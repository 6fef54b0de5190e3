"""One process or many: everything the product knows about ranks (ours).

Start one process, or ``torchrun --nproc-per-node=N -m spear_lib.bin.<verb> ...``; nothing else changes. On
CPU the processes talk through gloo, on GPUs through nccl with a second, small gloo group for control
messages, so that agreeing on "stop now" never makes the host wait for a device.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

WAIT_SECONDS = 600
"""How long a process waits for another one, s, unless SPEAR_WAIT_SECONDS says so. The longest work that only
one of them does is to write a checkpoint."""
# What gloo, nccl and torch's store say when another process died or stands still.
_LOST = re.compile(
    r"timed out|timeout|connection (closed|reset|refused|was likely closed)|broken pipe|"
    r"remote process exited|failed to connect",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    control: Any = None
    """gloo group for values that live on the host; None in a single process."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank; the same answer on every rank."""
        if self.world_size == 1:
            return flag
        value = torch.tensor([float(flag)])
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.control)
        return bool(value.item())

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a host tensor over ranks."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values, group=self.control)
        return values

    def total(self, values: Tensor) -> Tensor:
        """Sum over ranks of a tensor on the device of training; it is changed in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def union(self, values: dict[str, Any]) -> dict[str, Any]:
        """The entries of all ranks' dicts together (plain values; equal names hold equal values)."""
        if self.world_size == 1:
            return values
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, values, group=self.control)
        return {name: value for part in gathered for name, value in part.items()}

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier(group=self.control)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Turns ``auto``, ``cpu`` or ``cuda`` into this process's device.

    Raises:
      ValueError: for another name, or for cuda where no GPU is visible.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name != "cuda":
        raise ValueError(f"device must be auto, cpu or cuda, it is {name!r}")
    if not torch.cuda.is_available():
        raise ValueError(
            "device is cuda but torch sees no GPU: use --training.device cpu, or install a CUDA torch"
        )
    return torch.device("cuda", local_rank % torch.cuda.device_count())


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """The processes of this run, as torchrun's environment describes them; one process without it.

    Raises:
      RuntimeError: another process did not come, died, or stands still for WAIT_SECONDS.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size == 1:
        yield World(device=chosen)
        return
    seconds = wait_seconds()
    timeout = timedelta(seconds=seconds)
    try:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timeout)
        yield World(rank, world_size, chosen, dist.new_group(backend="gloo", timeout=timeout))
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise RuntimeError(
            f"process {rank} of {world_size} lost another one, which ended or stood still for {seconds} s "
            "(SPEAR_WAIT_SECONDS): its own lines say why; run the same command again, it goes on from the "
            f"last checkpoint ({str(error).splitlines()[0]})"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def wait_seconds() -> int:
    """SPEAR_WAIT_SECONDS, or its default.

    Raises:
      ValueError: it is no whole number of at least 1.
    """
    given = os.environ.get("SPEAR_WAIT_SECONDS") or str(WAIT_SECONDS)
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"SPEAR_WAIT_SECONDS is {given!r}: use a whole number of at least 1, or unset it")
    return int(given)
