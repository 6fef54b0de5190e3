"""A pre-training step as it runs on this machine, beside what the plan counted for it.

    PYTHONPATH=. python tools/benchmarks/step.py                             # Base, bf16, 16 x 25 s
    PYTHONPATH=. python tools/benchmarks/step.py --size large --json step.json

The step is that of training: fbank, masks, encoder with every regulariser, heads of 16 codebooks, backward,
ScaledAdam, late schedules; the batch lies on the device. Audio-seconds per second by the clock over all
measured steps; kernels of one step by torch's profiler (CUDA only); MFU as a share of the data sheet's dense
bf16 speed, or of a large matrix product's on this machine where it has no data sheet here; peak memory by
CUDA's allocator.
"""

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from recording import Record
from torch.profiler import ProfilerActivity, profile

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.encoders.kinds import build_encoder
from spear_lib.encoders.zipformer import ZipformerConfig
from spear_lib.features.masking import MaskingConfig
from spear_lib.optim import ScaledAdam, parameter_groups
from spear_lib.pretraining import ObjectiveConfig, PretrainingModel, PretrainingTask
from spear_lib.pretraining.plan import assumed_fields, count_pretraining_step, pretend_batch
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.world import choose_device
from spear_lib.training.kernels import use_kernels
from spear_lib.training.options import TrainingConfig
from spear_lib.training.planning.machines import GPUS, Gpu, PlanConfig
from spear_lib.training.planning.step import LATE_BATCH_COUNT, Shape, step_seconds
from spear_lib.training.precision import Precision
from spear_lib.training.task import StepClock

SIZES = ("tiny", "mini", "base", "large", "xlarge")
TINY = {
    "frontend_channels": (2, 4, 8),
    "downsampling_factor": (1, 2),
    "num_encoder_layers": (1,),
    "encoder_dim": (24,),
    "feedforward_dim": (32,),
    "encoder_unmasked_dim": (16,),
    "num_heads": (2,),
    "query_head_dim": (8,),
    "value_head_dim": (6,),
    "pos_dim": 8,
    "cnn_module_kernel": (7,),
}


@dataclass(frozen=True)
class Options:
    """What is measured."""

    size: str = "base"
    """tiny, mini, base, large or xlarge."""
    utterances: int = 16
    """Utterances of the batch."""
    seconds: float = 25.0
    """Length of each, s."""
    precision: str = "bf16"
    """fp32, bf16 or fp16."""
    device: str = "auto"
    """cpu, cuda, or auto = cuda where there is one."""
    kernels: str = "auto"
    """As training.kernels of a run: auto, fused or eager."""
    steps: int = 10
    """Measured steps, after two that warm up."""
    checkpointed: bool = False
    """Keep only the inputs of layers (checkpoint_activations)."""
    json: str = ""
    """A file that takes the figures."""
    record: str = ""
    """Name of a record for RESULTS.md (docs/results/<name>.json)."""

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"size is {self.size!r}; use {', '.join(SIZES)}")
        if self.steps < 1 or self.utterances < 1:
            raise ValueError(f"steps {self.steps} and utterances {self.utterances} must be at least 1")

    @property
    def resolved_device(self) -> torch.device:
        """The device measured on."""
        return choose_device(self.device)

    @property
    def encoder(self) -> ZipformerConfig:
        """The encoder of this size."""
        kept = {"checkpoint_activations": (self.checkpointed,)}
        if self.size == "tiny":
            return ZipformerConfig.mini(**TINY, **kept)
        return getattr(ZipformerConfig, self.size)(**kept)

    @property
    def training(self) -> TrainingConfig:
        """Of the kernels and the number format."""
        return TrainingConfig(kernels=self.kernels, precision=self.precision)

    @property
    def shape(self) -> Shape:
        """The batch."""
        return Shape(self.utterances, self.seconds)


class RealTensors:
    """What ``pretend_batch`` asks for, with memory."""

    def empty(self, *shape: int) -> torch.Tensor:
        """Noise."""
        return torch.randn(*shape) * 0.1


class Step:
    """A model, its batch, and its training step."""

    def __init__(self, options: Options) -> None:
        torch.manual_seed(0)
        self.device, fields = options.resolved_device, assumed_fields(ObjectiveConfig())
        model = PretrainingModel(build_encoder(options.encoder), fields).to(self.device).train()
        self.chosen = use_kernels(options.training, self.device, model.encoder, PretrainingTask.kernels)
        self.task = PretrainingTask(model, fields, ObjectiveConfig())
        self.optimizer = ScaledAdam(parameter_groups(model, 0.045), lr=0.045)
        self.precision = Precision(options.precision, self.device)
        batch = pretend_batch(RealTensors(), options.shape, fields, MaskingConfig(), "single")
        self.batch = batch.to(self.device)
        self.number = 0

    def __call__(self) -> None:
        self.number += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.task.begin_step(self.batch, StepClock(self.number, LATE_BATCH_COUNT, 0.0, self.number))
        with self.precision.autocast():
            loss = self.task.compute(self.batch).loss_sum
        self.precision.backward(loss)
        self.task.after_backward()
        self.precision.step(self.optimizer)

    def wait(self) -> None:
        """Until the device has done all."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def device_gpu(device: torch.device) -> Gpu | None:
    """The data sheet of ``device``; None where it has none here."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower()
    return next((gpu for key, gpu in GPUS.items() if key in name), None)


def matrix_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """10^12 operations per second of a large square matrix product on ``device``."""
    size = 8192 if device.type == "cuda" else 1024
    one = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        one @ one
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times) / 1e12


def kernels_of(step: Step) -> int | None:
    """Kernels of a step by the profiler, copies and fills included; None without CUDA."""
    if step.device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        step.wait()
    on_device = torch.autograd.DeviceType.CUDA
    return sum(event.device_type == on_device for event in profiler.events())


def measure(options: Options) -> dict[str, Any]:
    """The figures."""
    memory, *_ = count_pretraining_step(
        options.encoder,
        assumed_fields(ObjectiveConfig()),
        ObjectiveConfig(),
        MaskingConfig(),
        options.training,
        options.shape,
        options.precision,
        processes=1,
        for_accelerator=options.resolved_device.type != "cpu",
        batch_count=LATE_BATCH_COUNT,
    )
    step = Step(options)
    cuda = step.device.type == "cuda"
    for _ in range(2):
        step()
    step.wait()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(options.steps):
        step()
    step.wait()
    seconds = (time.perf_counter() - began) / options.steps
    audio, gpu = options.utterances * options.seconds, device_gpu(step.device)
    dtype = torch.float32 if options.precision == "fp32" else step.precision.dtype
    tflops = gpu.tflops if gpu else matrix_tflops(step.device, dtype)
    figures = {
        "step seconds": seconds,
        "audio seconds per second": audio / seconds,
        "planned audio seconds per second": audio / step_seconds(memory, PlanConfig(), gpu) if gpu else None,
        "MFU": memory.flops / seconds / (tflops * 1e12),
        "TFLOP/s of the matrix peak": tflops,
        "peak memory, GB": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
        "planned peak memory, GB": memory.peak / 1e9,
        "planned kernels": memory.kernels,
        "planned MB per second of audio": sum(work.bytes for work in memory.work) / audio / 1e6,
        "GFLOP per second of audio": memory.flops / audio / 1e9,
        "fused kernels": step.chosen,
    }
    with contextlib.suppress(RuntimeError):  # a profiler without permission
        figures["kernels"] = kernels_of(step)
    return figures


def shown(value: Any) -> str:
    """A figure as text."""
    if value is None:
        return "not measured here"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, prog="python tools/benchmarks/step.py", description=__doc__)
    facts = {"batch": f"{options.utterances} x {options.seconds:g} s, {options.precision}"}
    first_screen(f"A step of {options.size}", facts)
    figures = measure(options)
    for name, value in figures.items():
        print(f"{name:35s} {shown(value)}")
    if options.json:
        text = json.dumps({"options": asdict(options), **figures}, indent=1)
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    if options.record:
        rows = [[name, shown(value)] for name, value in figures.items()]
        Record(options.record, ["figure", "here"], rows, f"{options.size}, {facts['batch']}").save()


if __name__ == "__main__":
    run(main)
