"""Code for CPUs or for accelerators: which is chosen, also when a run on another device is planned, or when a
graph is recorded for another program (ours)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_planning = False


def on_host(x: Tensor) -> bool:
    """Whether ``x`` lies in a CPU's memory, so that code made for CPUs is used and reading a value is free.

    While a GPU run is planned (``plan_for_accelerator``) the code is that of GPUs, on tensors without memory;
    so it is while a graph is recorded, whose values may be others when it runs.
    """
    return x.device.type == "cpu" and not _planning and not recording()


def planning() -> bool:
    """Whether a GPU run is planned, on tensors without memory."""
    return _planning


def recording() -> bool:
    """Whether the operations are recorded as a graph (ONNX export): then no value and no size of the example
    may decide what is done, and no memory may be shared."""
    return torch.jit.is_tracing()


@contextmanager
def plan_for_accelerator(wanted: bool = True) -> Iterator[None]:
    """While inside, ``on_host`` says no: the code that runs is that of a GPU, wherever its tensors are.
    Without ``wanted`` nothing changes."""
    global _planning
    before, _planning = _planning, _planning or wanted
    try:
        yield
    finally:
        _planning = before
