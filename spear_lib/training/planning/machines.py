"""The machines that a run is planned for (ours)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Name of a number format -> what autocast is given."""


class Gpu(NamedTuple):
    """One GPU, in the numbers of its maker's data sheet."""

    name: str
    tflops: float
    """Dense bf16 matrix products, 10^12 operations per second."""
    terabytes_per_second: float
    """Bandwidth of its memory, 10^12 bytes per second."""
    memory_gb: float
    """10^9 bytes."""


GPUS = {
    "a800": Gpu("A800", 312.0, 2.04, 80.0),
    "h100": Gpu("H100 SXM", 989.0, 3.35, 80.0),
    "h200": Gpu("H200", 989.0, 4.8, 141.0),
}


@dataclass(frozen=True)
class PlanConfig:
    """The machines that a dry run plans for."""

    gpus: int = 16
    """Processes, one per GPU (reference: 16)."""
    gpu: str = "h100"
    """h100 | h200 | a800 (the paper's): gives the three numbers below from its data sheet."""
    gpu_memory_gb: float = 0.0
    """Memory of one GPU in GB of 10^9 bytes (0: that of ``gpu``)."""
    gpu_tflops: float = 0.0
    """Dense bf16 matrix products of one GPU in 10^12 operations per second (0: that of ``gpu``)."""
    gpu_terabytes_per_second: float = 0.0
    """Bandwidth of its memory in 10^12 bytes per second (0: that of ``gpu``)."""
    kernel_microseconds: float = 5.0
    """The least that a kernel costs: its start (an assumption, ours)."""
    efficiency: float = 0.7
    """Share of both of the data sheet's speeds that a kernel reaches (an assumption, ours)."""
    hours: float = 0.0
    """Hours of the training data, where no cuts are given to say it (0: not known)."""
    audio_seconds_per_second: float = 0.0
    """Measured throughput of one GPU (the log of a run prints that of all together); replaces the estimate
    (0: not measured)."""
    precision: str = "bf16"
    """bf16 | fp16 | fp32: what training.precision becomes on those GPUs, where it is auto."""
    device: str = "gpu"
    """gpu | cpu: whose code is counted (they keep different things for the backward pass)."""

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"plan.gpus is {self.gpus}; a run has at least 1 process")
        if self.gpu not in GPUS:
            raise ValueError(
                f"plan.gpu is {self.gpu!r}; use {', '.join(GPUS)}, or give plan.gpu_tflops, "
                "plan.gpu_terabytes_per_second and plan.gpu_memory_gb of yours"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(f"plan.precision is {self.precision!r}; use {', '.join(PRECISIONS)}")
        if self.device not in ("gpu", "cpu"):
            raise ValueError(f"plan.device is {self.device!r}; use gpu or cpu")
        if not 0.0 < self.efficiency <= 1.0:
            raise ValueError(f"plan.efficiency is {self.efficiency}; use a share in (0, 1]")

    @property
    def for_accelerator(self) -> bool:
        """Whether the code of a GPU is counted."""
        return self.device == "gpu"

    @property
    def machine(self) -> Gpu:
        """The GPU that is planned for: that of ``gpu``, with what is given otherwise."""
        named = GPUS[self.gpu]
        return Gpu(
            named.name,
            self.gpu_tflops or named.tflops,
            self.gpu_terabytes_per_second or named.terabytes_per_second,
            self.gpu_memory_gb or named.memory_gb,
        )
