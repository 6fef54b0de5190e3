"""Which fused kernels run, decided once per process (ours).

A kernel proves itself where it runs: it is compared with the eager path on a small input of the run's sizes
and number format, values and gradients. Both are measured against the eager path in a wider format: the
kernel may be off by no more than the eager path is, with some room. One that differs, or cannot be compiled,
is off.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from spear_lib.runtime.devices import on_host, recording

logger = logging.getLogger(__name__)

CHOICES = ("auto", "eager", "fused")
FORMATS = (torch.float32, torch.bfloat16, torch.float16)
HALVES = FORMATS[1:]
_ROOM = 2.0
"""A kernel's error may be so many times the eager path's..."""
_ROUNDINGS = 4.0
"""...or so many times the rounding error of the number format, whichever is larger."""

_running: frozenset[str] = frozenset()


class Kernel(NamedTuple):
    """One thing that can be switched between eager and fused.

    Attributes:
      name: as in ``fused`` and in the log.
      sample: (device, format of the inputs' values, format to compute in) -> values and gradients of the code
        that asks ``fused(name, ...)``, the same inputs at every call.
      dtype: number format of its inputs, where that is not the run's.
    """

    name: str
    sample: Callable[[torch.device, torch.dtype, torch.dtype], Sequence[Tensor]]
    dtype: torch.dtype | None = None


def interpreted() -> bool:
    """Whether Triton runs kernels on a CPU (for tests: thousands of times slower)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def fused(name: str, x: Tensor) -> bool:
    """Whether the kernel ``name`` is used for ``x``: it was chosen, and has x's device and format (integers
    have one)."""
    if name not in _running or recording() or x.is_floating_point() and x.dtype not in FORMATS:
        return False
    return interpreted() or not on_host(x)


@contextmanager
def running(names: Iterable[str]) -> Iterator[None]:
    """While inside, exactly the kernels ``names`` are chosen."""
    global _running
    before, _running = _running, frozenset(names)
    try:
        yield
    finally:
        _running = before


def autocast_of(device: torch.device, computed: torch.dtype) -> torch.autocast:
    """For samples: autocast as in a run that computes in a half format; off for other formats."""
    half = computed in HALVES
    return torch.autocast(device.type, dtype=computed if half else torch.bfloat16, enabled=half)


def _obstacle(device: torch.device) -> str:
    """Why no kernel can run on ``device``; empty if they can."""
    if device.type != "cuda" and not interpreted():
        return f"they need CUDA and the device is {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton (Linux)"
    return ""


def select(choice: str, device: torch.device, dtype: torch.dtype, kernels: Sequence[Kernel]) -> str:
    """Switches on those of ``kernels`` that run on ``device``, for the rest of the process.

    Args:
      choice: "auto" (on a CUDA device where Triton is installed), "fused" or "eager".
      dtype: number format of the run's matrix products.

    Returns:
      Which run, which do not, and why: for the first lines of a log.

    Raises:
      ValueError: an unknown choice; "fused" for a device that has no kernels.
      RuntimeError: "fused" without Triton.
    """
    global _running
    if choice not in CHOICES:
        raise ValueError(f"kernels is {choice!r}; choose one of {', '.join(CHOICES)}")
    _running = frozenset()
    if choice == "eager":
        return "eager PyTorch (as asked)"
    if not kernels:
        return "eager PyTorch (this model has no fused kernels)"
    obstacle = _obstacle(device)
    if choice == "auto" and (obstacle or device.type != "cuda"):
        return f"eager PyTorch (auto: no fused kernels, {obstacle or 'the device is ' + device.type})"
    if obstacle:
        error = RuntimeError if "installed" in obstacle else ValueError
        raise error(
            f"kernels is 'fused', but there are none here: {obstacle}; use auto or eager, which give the "
            "same numbers up to rounding"
        )
    passed, failed = [], []
    for kernel in kernels:
        complaint = compare(kernel, device, dtype)
        if complaint:
            failed.append(kernel.name)
            logger.warning("the fused kernel %s is switched off: %s", kernel.name, complaint)
        else:
            passed.append(kernel.name)
    _running = frozenset(passed)
    why = "as asked" if choice == "fused" else "auto: CUDA and Triton"
    text = f"fused {', '.join(passed) or 'none'} ({why}; each agrees with eager PyTorch here)"
    return text + (f"; switched off: {', '.join(failed)} (see the warnings)" if failed else "")


def compare(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with ``kernel`` on ``device`` in ``dtype``; empty if nothing is."""
    dtype = kernel.dtype or dtype
    wide = torch.float64 if dtype == torch.float32 else torch.float32
    with running(()):
        exact = kernel.sample(device, dtype, wide)
        eager = kernel.sample(device, dtype, dtype)
    try:
        with running([kernel.name]):
            found = kernel.sample(device, dtype, dtype)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except (
        Exception
    ) as error:  # whatever a compiler or a driver of another version does: the run goes on without
        return "it fails here, " + f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    for index, (value, reference, truth) in enumerate(zip(found, eager, exact, strict=True)):
        if value.shape != reference.shape or value.dtype != reference.dtype:
            return (
                f"result {index} is {value.dtype} {tuple(value.shape)}, of the eager path {reference.dtype} "
                f"{tuple(reference.shape)}"
            )
        for name, norm in _NORMS.items():
            error, usual = norm(value, truth), norm(reference, truth)
            limit = max(_ROOM * usual, _ROUNDINGS * torch.finfo(dtype).eps)
            if not error <= limit:  # NaN too
                return (
                    f"result {index} is {error:.2g} off ({name}, relative), the eager path {usual:.2g}, in "
                    f"{str(dtype).removeprefix('torch.')} (limit {limit:.2g})"
                )
    return ""


def _mean_error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-30))


def _largest_error(value: Tensor, truth: Tensor) -> float:
    difference = (value.double() - truth.double()).abs().max()
    return float(difference / truth.double().abs().max().clamp(min=1e-30))


_NORMS = {"RMS": _mean_error, "largest": _largest_error}
