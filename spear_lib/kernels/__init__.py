"""Fused kernels of training on CUDA, in Triton, each with the eager PyTorch path as its reference (ours).

``operations`` and ``step_operations``: what there is, as operators of torch, so that counters and tensors
without data see each as one operation with its inputs and outputs. ``choice``: which of them run, and the
comparison that each has to pass first. ``weights``: working copies of weights, which need no Triton. The
other modules: the kernels themselves; Triton is imported with them, where one is first used. The callers
(encoders, optimisers, heads) hold the eager path beside the call, ask ``fused(name, x)`` which of them it is,
and are what is compared.

Numbers that change from batch to batch (rows, frames) are not specialised, or every batch would be compiled
anew; widths are, since whole vectors are loaded where they divide.

Nothing runs fused unless a command chose so (``choice.select``); on a CPU nothing does.
"""

from spear_lib.kernels import operations, step_operations  # noqa: F401  (they define torch.ops.spear)
from spear_lib.kernels.choice import CHOICES, Kernel, fused, select

__all__ = ["CHOICES", "Kernel", "fused", "select"]
