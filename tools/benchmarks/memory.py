"""Memory of a pre-training step: what `pretrain --dry_run` predicts beside what a real step takes.

    python tools/benchmarks/memory.py                                  # Base, 4 utterances of 10 s
    python tools/benchmarks/memory.py --sizes '[mini, base]' --utterances 8 --checkpointed true

Both run the step of spear_lib.training: fbank, encoder with every regulariser, heads of 16 codebooks,
backward, ScaledAdam. The prediction has no data; the measurement is made in a process of its own. On a CPU it
is the peak of the resident set during the second step less its size before the model was made, with an
allocator that hands back freed blocks of 64 KiB or more; on CUDA it is max_memory_allocated.

--record NAME leaves what is printed in docs/results for RESULTS.md.
"""

import ctypes
import dataclasses
import gc
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from recording import recorded

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.features.masking import MaskingConfig
from spear_lib.optim import ScaledAdam, parameter_groups
from spear_lib.pretraining import ObjectiveConfig, PretrainingModel, PretrainingTask
from spear_lib.pretraining.plan import assumed_fields, count_pretraining_step, pretend_batch
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.world import choose_device
from spear_lib.training.options import TrainingConfig
from spear_lib.training.planning.machines import PRECISIONS
from spear_lib.training.planning.step import Shape, with_checkpoints
from spear_lib.training.task import StepClock


@dataclass(frozen=True)
class Options:
    """What is predicted and measured."""

    sizes: tuple[str, ...] = ("base",)
    """Encoders: mini, base, large, xlarge."""
    utterances: int = 4
    """Utterances of the batch."""
    seconds: float = 10.0
    """Length of each, s."""
    checkpointed: bool = False
    """Keep only the inputs of layers (checkpoint_activations)."""
    precision: str = "fp32"
    """fp32, bf16 or fp16 (autocast)."""
    device: str = "auto"
    """cpu, cuda, or auto = cuda where there is one."""
    threads: int = 2
    """CPU threads."""

    @property
    def resolved_device(self) -> torch.device:
        """The device measured on."""
        return choose_device(self.device)

    def encoder(self, size: str) -> ZipformerConfig:
        """The encoder of one size."""
        return with_checkpoints(getattr(ZipformerConfig, size)(), self.checkpointed)


def predict(options: Options, size: str) -> dict[str, float]:
    """Bytes at the highest point of a step, by spear_lib.pretraining.plan."""
    memory, *_ = count_pretraining_step(
        options.encoder(size),
        assumed_fields(ObjectiveConfig()),
        ObjectiveConfig(),
        MaskingConfig(),
        TrainingConfig(),
        Shape(options.utterances, options.seconds),
        options.precision,
        processes=1,
        for_accelerator=options.resolved_device.type != "cpu",
    )
    return {"peak": memory.peak, "kept": memory.kept}


def _resident_bytes(field: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE).group(1)) * 1024


def measure(options: Options, size: str) -> dict[str, float]:
    """Bytes at the highest point of the second of two real steps, in this process."""
    torch.set_num_threads(options.threads)
    device, fields = options.resolved_device, assumed_fields(ObjectiveConfig())
    _step(Options(("mini",), 1, 1.0), "mini", device, fields, 1)  # libraries and thread pools are loaded now
    gc.collect()
    if device.type == "cpu":
        ctypes.CDLL(None).malloc_trim(0)
    before = _resident_bytes("VmRSS")
    _step(options, size, device, fields, 2)
    if device.type == "cuda":
        return {"peak": torch.cuda.max_memory_allocated()}
    return {"peak": _resident_bytes("VmHWM") - before}


class _Real:
    """What ``pretend_batch`` asks for, with memory."""

    def empty(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape) * 0.1


def _step(options: Options, size: str, device: torch.device, fields: list, count: int) -> None:
    torch.manual_seed(0)
    model = PretrainingModel(SpearEncoder(options.encoder(size)), fields).to(device).train()
    task = PretrainingTask(model, fields, ObjectiveConfig())
    optimizer = ScaledAdam(parameter_groups(model, 0.045), lr=0.045)
    shape = Shape(options.utterances, options.seconds)
    batch = pretend_batch(_Real(), shape, fields, MaskingConfig(), "single").to(device)
    dtype = PRECISIONS[options.precision]
    for step in range(1, count + 1):
        optimizer.zero_grad(set_to_none=True)
        if step == count:
            _restart_peak(device)
        task.begin_step(batch, StepClock(step, 0.0, 0.0, step_key=step))
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss = task.compute(batch).loss_sum
        loss.backward()
        del loss
        task.after_backward()
        optimizer.step()


def _restart_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM = VmRSS


def measured(options: Options, size: str) -> dict[str, float]:
    """``measure`` in a new process."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": str(options.threads)}
    asked = json.dumps({"options": dataclasses.asdict(options), "size": size})
    done = subprocess.run(
        [sys.executable, __file__, "--measure", asked],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the measuring process ended with status {done.returncode}; see above")
    return json.loads(done.stdout.splitlines()[-1])


@recorded("noise")
def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, prog="python tools/benchmarks/memory.py", description=__doc__)
    facts = {
        "batch": f"{options.utterances} utterances of {options.seconds:g} s, {options.precision}",
        "checkpointed": options.checkpointed,
    }
    first_screen("Memory of a step", facts)
    print("| encoder | predicted MB | kept for backward | measured MB | predicted / measured |")
    print("|---|---|---|---|---|")
    for size in options.sizes:
        prediction, real = predict(options, size), measured(options, size)
        ratio = prediction["peak"] / real["peak"]
        numbers = (prediction["peak"] / 1e6, prediction["kept"] / 1e6, real["peak"] / 1e6)
        print(f"| {size} | {' | '.join(f'{number:.0f}' for number in numbers)} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        question = json.loads(sys.argv[2])
        print(json.dumps(measure(Options(**question["options"]), question["size"])))
    else:
        run(main)
