"""Code for CPUs or for accelerators: which is chosen, also when a run on another device is planned (ours)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

_planning = False


def on_host(x: Tensor) -> bool:
    """Whether ``x`` lies in a CPU's memory, so that code made for CPUs is used and reading a value is free.

    While a GPU run is planned (``plan_for_accelerator``) the code is that of GPUs, on tensors without memory.
    """
    return x.device.type == "cpu" and not _planning


@contextmanager
def plan_for_accelerator() -> Iterator[None]:
    """While inside, ``on_host`` says no: the code that runs is that of a GPU, wherever its tensors are."""
    global _planning
    before, _planning = _planning, True
    try:
        yield
    finally:
        _planning = before
