"""Which kernels a run uses: those of its encoder, task and optimiser, chosen once and told (ours)."""

from collections.abc import Sequence

import torch
from torch import nn

from spear_lib.encoders.kinds import EncoderConfig, kind_of
from spear_lib.encoders.zipformer.activations import swoosh_kernels
from spear_lib.kernels import Kernel, fused, select
from spear_lib.kernels.weights import WEIGHTS
from spear_lib.optim.fused import SCALED_ADAM
from spear_lib.training.options import TrainingConfig
from spear_lib.training.precision import Precision


def fused_kernels(
    config: TrainingConfig, encoder: EncoderConfig, of_task: Sequence[Kernel] = ()
) -> list[Kernel]:
    """All that a training of ``encoder`` could use; ``of_task``: what is on top of it."""
    of_optimizer = [SCALED_ADAM] if config.optimizer == "scaled_adam" else []
    of_encoder = kind_of(encoder).kernels(encoder)
    return [*of_encoder, *([WEIGHTS] if of_encoder else []), *of_task, *of_optimizer]


def use_kernels(
    config: TrainingConfig, device: torch.device, encoder: nn.Module, of_task: Sequence[Kernel] = ()
) -> str:
    """Chooses the kernels of this process, as ``config.kernels`` says; call it in every process of a run.

    Returns:
      Which run and why, for the first screen.
    """
    dtype = Precision(config.precision, device).dtype or torch.float32
    line = select(config.kernels, device, dtype, fused_kernels(config, encoder.config, of_task))
    if device.type == "cuda" and not fused("swoosh", torch.empty(0, device=device)):
        line += f"; {swoosh_kernels(device)}"
    return line
