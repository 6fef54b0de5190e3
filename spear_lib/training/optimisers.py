"""Which optimiser and schedule a run has, from its options."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from spear_lib.optim import ClippedAdamW, Eden, ScaledAdam, TriStage, parameter_groups
from spear_lib.training.options import TrainingConfig


def new_optimizer(model: nn.Module, config: TrainingConfig) -> ScaledAdam | ClippedAdamW:
    """The optimiser of the parameters that are trained now."""
    groups = parameter_groups(model, config.learning_rate, config.lr_scales)
    if config.optimizer == "adamw":
        adamw = config.adamw
        return ClippedAdamW(
            groups,
            lr=config.learning_rate,
            max_norm=adamw.max_norm,
            betas=adamw.betas,
            eps=adamw.eps,
            weight_decay=adamw.weight_decay,
        )
    return ScaledAdam(
        groups,
        lr=config.learning_rate,
        clipping_scale=config.clipping_scale or None,
        variant=config.optimizer_variant,
    )


def new_scheduler(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> Eden | TriStage:
    """The learning rates of all groups over the run."""
    if config.optimizer == "adamw":
        adamw = config.adamw
        return TriStage(
            optimizer,
            adamw.warmup_steps,
            adamw.hold_steps,
            adamw.decay_steps,
            adamw.start_factor,
            adamw.final_factor,
        )
    return Eden(optimizer, config.lr_batches, config.lr_hours, config.warmup_batches, config.warmup_start)


def describe_rate(config: TrainingConfig) -> str:
    """The learning rate for the first screen."""
    if config.optimizer == "adamw":
        adamw = config.adamw
        return (
            f"{config.learning_rate:g} (AdamW, on the mean over frames): rises for {adamw.warmup_steps} "
            f"steps, holds for {adamw.hold_steps}, falls to {adamw.final_factor:g} of it in "
            f"{adamw.decay_steps}"
        )
    return (
        f"{config.learning_rate:g} (ScaledAdam: relative to each tensor's size), falls after "
        f"{config.lr_batches:g} steps and {config.lr_hours:g} h"
    )


def mean_gradients(
    parameters: Iterable[nn.Parameter], num_frames: Tensor | float, total: Callable[[Tensor], Tensor]
) -> None:
    """Gradients of a sum over frames become those of the mean; of no frame they stay 0.

    Args:
      num_frames: of this rank; ``total`` gives the sum over ranks.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        count = torch.as_tensor(num_frames, device=gradients[0].device).to(torch.float32, copy=True)
        torch._foreach_div_(gradients, total(count).clamp(min=1.0))
