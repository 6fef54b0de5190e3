"""How a matrix of rows and channels is cut into tiles, one program each; tables for kernels."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

_ELEMENTS = 1024  # of a tile
_WIDEST = 128


class Tiles(NamedTuple):
    """Of x (..., C), taken as (rows, C)."""

    rows: int
    channels: int
    row_block: int
    channel_block: int

    @classmethod
    def of(cls, x: Tensor, elements: int = _ELEMENTS) -> "Tiles":
        """Tiles of ``elements`` in all; few channels give tall ones."""
        channels = x.shape[-1]
        width = min(_WIDEST, triton.next_power_of_2(channels))
        return cls(x.numel() // max(channels, 1), channels, max(1, elements // width), width)

    @property
    def grid(self) -> tuple[int, int]:
        """Programs along the rows and along the channels."""
        return triton.cdiv(self.rows, self.row_block), triton.cdiv(self.channels, self.channel_block)

    @property
    def constants(self) -> dict[str, int]:
        """Arguments of a kernel."""
        return {"ROWS": self.row_block, "CHANNELS": self.channel_block}


def on_device(small: Tensor, device: torch.device) -> Tensor:
    """A table made on the host, where ``device`` finds it; the host waits for nothing."""
    return small.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else small
