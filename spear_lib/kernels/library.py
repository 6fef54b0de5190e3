"""How fused operations become operators of torch (``torch.ops.spear``; ours).

Each is what one kernel reads and writes, no more: autograd functions of the callers put them together. An
implementation is imported where it is first used, so these pages need no Triton; on tensors without data (a
plan's) nothing else is needed.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spear_lib.kernels import choice
from spear_lib.runtime.devices import planning

_LIBRARY = torch.library.Library("spear", "DEF")


def operation(schema: str, module: str) -> Callable[[Callable], Callable]:
    """Defines ``torch.ops.spear.<name>`` of ``schema``, implemented by the function ``name`` of ``module``.

    What is decorated gives results of the right shape for inputs without data.
    """

    def define(shapes: Callable) -> Callable:
        name = schema.split("(", 1)[0]

        def implementation(*args: Any) -> Any:
            if planning() and not choice.interpreted():
                # Host numbers (keys) are real in a plan, and nobody looks at what becomes of them.
                return shapes(*args)
            return getattr(importlib.import_module(f"spear_lib.kernels.{module}"), name)(*args)

        _LIBRARY.define(schema)
        for key in ("CUDA", "CPU"):  # a CPU: under Triton's interpreter
            _LIBRARY.impl(name, implementation, key)
        torch.library.register_fake(f"spear::{name}", shapes, lib=_LIBRARY)
        return shapes

    return define


def like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype or x.dtype)
