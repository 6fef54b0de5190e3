"""Which library computes the transducer losses: plain torch (needs nothing) or k2 where it is installed.

Both take the same arguments and give the same numbers (tools/k2_parity.sh compares them); prune ranges and
pruning are always ours. The files of this package import nothing but torch, so that they can be compared in
the old environment that k2's wheel needs.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from spear_lib.transducer import losses
from spear_lib.transducer.checks import check_additive, check_joint

BACKENDS = ("auto", "torch", "k2")


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


def select_backend(choice: str = "auto") -> LossBackend:
    """The losses to use.

    Args:
      choice: "auto" (k2 where it can be imported, else torch), "torch" or "k2".

    Raises:
      ValueError: an unknown name.
      RuntimeError: k2 was asked for and cannot be imported.
    """
    if choice not in BACKENDS:
        raise ValueError(f"the transducer backend is {choice!r}; choose one of {', '.join(BACKENDS)}.")
    if choice == "torch":
        return _torch_backend("as asked for")
    k2, obstacle = _import_k2()
    if k2 is not None:
        return _k2_backend(k2, "as asked for" if choice == "k2" else "auto: k2 is installed")
    if choice == "auto":
        return _torch_backend(f"auto: k2 cannot be imported, {obstacle}")
    raise RuntimeError(
        f"the transducer backend is 'k2', but k2 cannot be imported ({obstacle}): install a k2 built for "
        f"torch {torch.__version__}, or use 'auto' or 'torch', which need nothing and give the same losses."
    )


@cache
def _import_k2() -> tuple[ModuleType | None, str]:
    """(k2, "") or (None, why not)."""
    try:
        import k2
    except (ImportError, OSError) as error:  # absent, or its library does not fit this torch
        return None, " ".join(str(error).split())
    return k2, ""


def _torch_backend(reason: str) -> LossBackend:
    return LossBackend(
        "torch",
        reason,
        losses.rnnt_loss_simple,
        losses.rnnt_loss_smoothed,
        losses.rnnt_loss_pruned,
        losses.rnnt_loss,
    )


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
        check(**{name: value for name, value in given.items() if name != "return_grad"})
        labels = given["symbols"].shape[1]
        frames = (given["am"] if "am" in given else given["logits"]).shape[1]
        if labels == 0 or frames < labels:
            return ours(**given)
        given["symbols"] = given["symbols"].long()
        for name in ("am", "lm", "logits"):
            if name in given and given[name].dtype in (torch.float16, torch.bfloat16):
                given[name] = given[name].float()
        if "lm" in given:
            given["lm"] = given["lm"].to(given["am"].dtype)
        return theirs(**given)

    return loss
