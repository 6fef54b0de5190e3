"""Which library computes the transducer losses: plain torch (needs nothing), Triton kernels or k2.

All take the same arguments and give the same numbers (tools/benchmarks/k2_parity.sh compares k2; the kernels
are compared under Triton's interpreter); prune ranges and pruning are always ours. Nothing but torch is
imported before it is asked for, so that this package also runs in the old environment of k2's wheel.
"""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from spear_lib.runtime.devices import planning
from spear_lib.transducer import losses
from spear_lib.transducer.checks import check_additive, check_joint
from spear_lib.transducer.pretended import PRETENDED
from spear_lib.transducer.recursions import Recursions

BACKENDS = ("auto", "torch", "triton", "k2")


@dataclass(frozen=True)
class LossBackend:
    """The four losses of one library, under k2's names and with k2's arguments.

    ``name`` and ``reason`` go to the first lines of a log.
    """

    name: str
    reason: str
    rnnt_loss_simple: Callable[..., Any]
    rnnt_loss_smoothed: Callable[..., Any]
    rnnt_loss_pruned: Callable[..., Tensor]
    rnnt_loss: Callable[..., Tensor]

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def select_backend(choice: str = "auto", device: torch.device | str | None = None) -> LossBackend:
    """The losses to use.

    Args:
      choice: "auto" (on a CUDA device Triton's kernels where Triton is installed, else torch), "torch",
        "triton" or "k2" (only when asked for: on a CPU it takes several times as long as torch, and its
        wheels fit few versions of torch).
      device: where the losses will be computed; by default CUDA where there is one.

    Raises:
      ValueError: an unknown name; kernels for a device that has none.
      RuntimeError: the library that was asked for cannot be imported.
    """
    if choice not in BACKENDS:
        raise ValueError(f"the transducer backend is {choice!r}; choose one of {', '.join(BACKENDS)}.")
    if planning() and choice != "torch":
        return _our_backend("triton", "planned", PRETENDED)
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    if choice == "torch":
        return _our_backend("torch", "as asked for")
    if choice == "k2":
        k2, obstacle = _import_k2()
        if k2 is not None:
            return _k2_backend(k2, "as asked for")
        raise RuntimeError(
            f"the transducer backend is 'k2', but k2 cannot be imported ({obstacle}): install a k2 built for "
            f"torch {torch.__version__}, or use 'auto' or 'torch', which need nothing and give the same "
            "losses."
        )
    if choice == "auto" and kind != "cuda":
        return _our_backend("torch", f"auto: the kernels need CUDA, the device is {kind}")
    kernels, obstacle = _import_kernels()
    if choice == "auto":
        if kernels is None:
            return _our_backend("torch", f"auto: triton cannot be imported, {obstacle}")
        return _our_backend("triton", "auto: CUDA, and triton is installed", kernels)
    if kernels is None:
        raise RuntimeError(
            f"the transducer backend is 'triton', but triton cannot be imported ({obstacle}): pip install "
            "triton (Linux), or use 'auto' or 'torch', which need nothing and give the same losses."
        )
    if kind != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"the transducer backend is 'triton', whose kernels need CUDA, but the device is {kind}: use "
            "'auto' or 'torch' (TRITON_INTERPRET=1 runs the kernels on a CPU, thousands of times slower)."
        )
    return _our_backend("triton", "as asked for", kernels)


@cache
def _import_kernels() -> tuple[Recursions | None, str]:
    """(the recursions by Triton, "") or (None, why not)."""
    try:
        from spear_lib.transducer import kernels
    except (ImportError, OSError) as error:
        return None, " ".join(str(error).split())
    return Recursions(kernels.solve_lattice, kernels.solve_band), ""


@cache
def _import_k2() -> tuple[ModuleType | None, str]:
    """(k2, "") or (None, why not)."""
    try:
        import k2
    except (ImportError, OSError) as error:  # absent, or its library does not fit this torch
        return None, " ".join(str(error).split())
    return k2, ""


def _our_backend(name: str, reason: str, recursions: Recursions | None = None) -> LossBackend:
    functions = (
        losses.rnnt_loss_simple,
        losses.rnnt_loss_smoothed,
        losses.rnnt_loss_pruned,
        losses.rnnt_loss,
    )
    if recursions is not None:
        functions = tuple(partial(function, recursions=recursions) for function in functions)
    return LossBackend(name, reason, *functions)


def _k2_backend(k2: ModuleType, reason: str) -> LossBackend:
    return LossBackend(
        f"k2 {getattr(k2, '__dev_version__', '(version unknown)')}",
        reason,
        _through_k2(k2, losses.rnnt_loss_simple),
        _through_k2(k2, losses.rnnt_loss_smoothed),
        _through_k2(k2, losses.rnnt_loss_pruned),
        _through_k2(k2, losses.rnnt_loss),
    )


def _through_k2(k2: ModuleType, ours: Callable[..., Any]) -> Callable[..., Any]:
    """k2's function of the same name, called by keyword, after the checks and conversions of ``ours``.

    k2 1.23 refuses batches without labels or with fewer frames than labels; these are computed by ``ours``.
    """
    theirs = getattr(k2, ours.__name__)
    signature = inspect.signature(ours)
    check = check_additive if "am" in signature.parameters else check_joint

    def loss(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        check(**{name: value for name, value in given.items() if name not in ("return_grad", "recursions")})
        labels = given["symbols"].shape[1]
        frames = (given["am"] if "am" in given else given["logits"]).shape[1]
        if labels == 0 or frames < labels:
            return ours(**given)
        del given["recursions"]
        given["symbols"] = given["symbols"].long()
        for name in ("am", "lm", "logits"):
            if name in given and given[name].dtype in (torch.float16, torch.bfloat16):
                given[name] = given[name].float()
        if "lm" in given:
            given["lm"] = given["lm"].to(given["am"].dtype)
        return theirs(**given)

    return loss
