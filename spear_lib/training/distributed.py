"""The task under DDP: one forward per backward, gradients averaged over ranks (ours)."""

import logging
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from spear_lib.kernels import fused
from spear_lib.kernels.weights import NAME as WEIGHTS
from spear_lib.kernels.weights import zero_gradients
from spear_lib.runtime.world import World

logger = logging.getLogger(__name__)


class _Compute(nn.Module):
    """The task as a module, so that DDP sees one forward per backward."""

    def __init__(self, task: Any) -> None:
        super().__init__()
        self.model = task.model
        self._task = [task]  # in a list: the task is no submodule

    def forward(self, batch: Any) -> Any:
        return self._task[0].compute(batch)


def wrap(task: Any, world: World) -> nn.Module:
    """Module whose forward is ``task.compute``; its gradients are averaged over ranks where there are
    several.

    Parameters that are frozen now are left out, so wrap again when they thaw.
    """
    module = _Compute(task)
    own = tuple(f"model.{path}." for path in task.own_state)
    named = [*module.named_parameters(), *module.named_buffers()]
    ignored = [name for name, _ in named if name.startswith(own)]
    if ignored:
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)
    if world.world_size == 1 or not any(p.requires_grad for p in module.parameters()):
        return module
    _say_what_differs(task.model, world)
    wrapped = nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
    if _stay_in_buckets(wrapped):
        # Divides a bucket at once, where DDP itself would divide every gradient by a kernel of its own.
        wrapped.register_comm_hook(None, allreduce_hook)
    return wrapped


def _stay_in_buckets(module: nn.Module) -> bool:
    """Whether gradients are added in DDP's buckets: those of working copies are, in a few launches."""
    if not isinstance(module, nn.parallel.DistributedDataParallel):
        return False
    return fused(WEIGHTS, next(module.parameters()))


def clear_gradients(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Before a step: no gradients, or zeros in the buckets where they stay."""
    if _stay_in_buckets(module):
        zero_gradients(each for group in optimizer.param_groups for each in group["params"])
    else:
        optimizer.zero_grad(set_to_none=True)


def _say_what_differs(model: nn.Module, world: World) -> None:
    """Logs what tells this run from the same one on another number of processes; nothing where nothing does.

    Modules that measure the share of the batch which their process sees say so (``measures_share``).
    """
    kinds = {type(part).__name__ for part in model.modules() if getattr(part, "measures_share", False)}
    if kinds and world.is_main:
        logger.info(
            "%s measure each process's share of a batch, as in the reference: the same number of processes "
            "gives the same losses, another number slightly different ones",
            " and ".join(sorted(kinds)),
        )


def no_gradient_sync(module: nn.Module, wanted: bool) -> Any:
    """Context in which backward does not talk to the other ranks (all but the last micro-batch of a step)."""
    if wanted and isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return nullcontext()
