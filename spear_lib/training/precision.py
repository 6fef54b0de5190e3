"""Number formats of a training step: autocast and, for fp16, the loss scale (spec optim §4)."""

import logging
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class Precision:
    """Autocast context and loss scale of one run.

    fp32 and bf16 need no loss scale. fp16 follows the reference: PyTorch's dynamic scale from 1.0, doubled by
    hand while it is small, a warning below 0.01 and the end below 1e-5.

    Args:
      name: fp32 | bf16 | fp16 | auto (bf16 on a GPU that has it, else fp32).
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.reason = "as asked"
        if name == "auto":
            on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
            name = "bf16" if on_gpu else "fp32"
            self.reason = (
                "auto: the GPU computes bf16" if on_gpu else "auto: exact, and no slower on this device"
            )
        if name == "fp16" and device.type != "cuda":
            raise ValueError("precision fp16 needs a GPU: use bf16 or fp32 on CPU")
        self.name = name
        self.device = device
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        self.scaler = torch.amp.GradScaler(device.type, init_scale=1.0, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Optimiser step on unscaled gradients; False where it was skipped, because one of them is not
        finite."""
        skipped, scale = optimizer.num_skipped, self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        return optimizer.num_skipped == skipped and self.scaler.get_scale() >= scale

    def after_step(self, step: int) -> None:
        """The reference's policy for a scale that became small; reads it every 100 steps only."""
        if not self.scaler.is_enabled() or step % 100:
            return
        scale = self.scaler.get_scale()
        if scale < 8 or (scale < 32 and step % 400 == 0):
            self.scaler.update(2 * scale)
        if scale < 1e-5:
            raise RuntimeError(
                f"the fp16 loss scale fell to {scale:.3g} (limit 1e-5) at step {step}: gradients overflow in "
                "every step. Use precision bf16, or a lower learning rate"
            )
        if scale < 0.01:
            logger.warning("the fp16 loss scale is %.3g at step %d: gradients overflow often", scale, step)

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["name"] != self.name:
            raise ValueError(
                f"the checkpoint was made in {state['name']} and this run is in {self.name}: "
                f"resume with --training.precision {state['name']}"
            )
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
