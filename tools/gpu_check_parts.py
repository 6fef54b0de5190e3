"""Parts of tools/gpu_check.sh that no other tool shows: environment, fused kernels, DDP, curves, transducer.

PYTHONPATH=. python tools/gpu_check_parts.py curves --device cuda --json curves.json
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / "tools" / "benchmarks"), str(REPOSITORY / "tests" / "data")]


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """What there is; RuntimeError without the device that was asked for."""
    found: dict[str, Any] = {"torch": torch.__version__, "cores": os.cpu_count()}
    if options.device == "cpu":
        return found
    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device: is a driver there (nvidia-smi), is this a CUDA build?")
    from step import matrix_tflops

    properties = torch.cuda.get_device_properties(0)
    found |= {
        "GPU": properties.name,
        "memory, GB": properties.total_memory / 1e9,
        "capability": f"{properties.major}.{properties.minor}",
        "CUDA": torch.version.cuda,
        "bf16 matrix product, TFLOP/s": matrix_tflops(torch.device("cuda"), torch.bfloat16),
        "copy, TB/s": copy_rate(),
    }
    return found


def copy_rate() -> float:
    """10^12 bytes read and written per second by a copy in the device's memory."""
    one = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    two = torch.empty_like(one)
    seconds = []
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        two.copy_(one)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * one.numel() / min(seconds) / 1e12


def kernels(options: argparse.Namespace) -> dict[str, Any]:
    """The comparison of fused kernels with eager code that a run makes when it begins."""
    from step import Options, Step

    found = {}
    for precision in ("bf16", "fp32"):
        size = "tiny" if options.tiny else "base"
        asked = Options(size=size, utterances=1, seconds=2.0, precision=precision, device=options.device)
        found[precision] = Step(asked).chosen
    return found


def ddp(options: argparse.Namespace) -> dict[str, Any]:
    """A step under DistributedDataParallel with one process beside the plain one; NCCL on CUDA."""
    from step import Options, Step
    from torch import distributed

    from spear_lib.training.distributed import _Compute

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    backend = "nccl" if options.device == "cuda" else "gloo"
    distributed.init_process_group(backend, f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    size = "tiny" if options.tiny else "mini"
    asked = Options(size=size, utterances=2, seconds=3.0, precision="fp32", device=options.device)
    norms, times = [], []
    for wrapped in (False, True):
        step = Step(asked)
        module: Any = _Compute(step.task)
        if wrapped:
            module = torch.nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
        began = time.perf_counter()
        step.task.begin_step(step.batch, _clock())
        module(step.batch).loss_sum.backward()
        step.wait()
        times.append(time.perf_counter() - began)
        gradients = [p.grad.flatten() for p in step.task.model.parameters() if p.grad is not None]
        norms.append(torch.cat(gradients))
    distributed.destroy_process_group()
    difference = float((norms[0] - norms[1]).norm() / norms[0].norm())
    if difference > 1e-4:
        raise RuntimeError(f"gradients under {backend} differ by {difference:.2g} of their norm (limit 1e-4)")
    return {"backend": backend, "gradients differ by": difference, "seconds plain, wrapped": times}


def _clock() -> Any:
    from spear_lib.training.task import StepClock

    return StepClock(1, 20000.0, 0.0, 1)


def curves(options: argparse.Namespace) -> dict[str, Any]:
    """Losses of the same short pre-training in every number format."""
    steps = 12 if options.tiny else 200
    found: dict[str, Any] = {"steps": steps}
    formats = ["fp32", "bf16"] + (["fp16"] if options.device == "cuda" else [])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, where = _curve_config(options, folder, steps)
        for precision in formats:
            began = time.perf_counter()
            run = [sys.executable, "-m", "spear_lib.bin.pretrain", "--config", str(config)]
            run += ["--experiment_dir", str(folder / precision), "--training.precision", precision]
            done = subprocess.run(run, cwd=where, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{precision}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
            lines = (folder / precision / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            losses = [r["masked_loss"] for r in map(json.loads, lines) if r["kind"] == "train"]
            found[f"{precision}, losses"] = losses
            found[f"{precision}, mean of the last five"] = sum(losses[-5:]) / len(losses[-5:])
            found[f"{precision}, seconds"] = time.perf_counter() - began
    exact = found["fp32, losses"]
    for precision in formats[1:]:
        pairs = list(zip(exact, found[f"{precision}, losses"], strict=True))
        found[f"{precision}, mean ratio to fp32"] = sum(b / a for a, b in pairs) / len(pairs)
        if abs(found[f"{precision}, mean ratio to fp32"] - 1) > 0.05:
            raise RuntimeError(f"losses in {precision} leave those in fp32 by more than 5 % in the mean")
    return found


def _curve_config(options: argparse.Namespace, folder: Path, steps: int) -> tuple[Path, Path]:
    """Configuration of the runs, and the folder that the paths of cuts count from."""
    import yaml
    from pretraining_fixtures import make_corpus, write_config

    training = {"max_steps": steps, "valid_interval": steps, "save_interval": steps, "log_interval": 1}
    training["device"] = options.device
    if not options.train_cuts:
        train, valid = make_corpus(folder, 16), make_corpus(folder, 5, "dev")
        return write_config(folder, train, valid, **training), folder
    base = REPOSITORY / "egs" / "common" / "conf" / "pretrain" / "mini.yaml"
    overlay = {
        "extends": str(base),
        "valid_cuts": [options.valid_cuts],
        "data": {"train_cuts": [options.train_cuts]},
        "training": training,
    }
    path = folder / "curves.yaml"
    path.write_text(yaml.safe_dump(overlay), encoding="utf-8")
    return path, Path(options.data_dir)


def transducer_device(options: argparse.Namespace) -> dict[str, Any]:
    """The unpruned transducer loss on the device: our backends, and torchaudio's where it is installed."""
    from spear_lib.transducer.backend import select_backend

    device = torch.device(options.device)
    batch, frames, labels, classes = (2, 40, 8, 20) if options.tiny else (8, 300, 60, 500)
    torch.manual_seed(0)
    symbols = torch.randint(1, classes, (batch, labels)).to(device)
    logits = torch.randn(batch, frames, labels + 1, classes).to(device).requires_grad_()
    losses: dict[str, Any] = {"torch": select_backend("torch", device)}
    if options.device == "cuda":
        losses["triton"] = select_backend("triton", device)
    found: dict[str, Any] = {"by default": str(select_backend("auto", device))}
    for name, backend in losses.items():

        def ours(backend: Any = backend) -> torch.Tensor:
            return backend.rnnt_loss(logits, symbols, 0, reduction="sum")

        found[name], found[f"{name}, ms"] = _timed(ours, device)
    try:
        from torchaudio.functional import rnnt_loss
    except Exception as error:  # absent, or its library was built for another torch
        found["torchaudio"] = f"cannot be imported: {(str(error).splitlines() or [''])[0][:150]}"
    else:
        sizes = [torch.full((batch,), size, dtype=torch.int32, device=device) for size in (frames, labels)]

        def theirs() -> torch.Tensor:
            return rnnt_loss(logits, symbols.int(), *sizes, blank=0, reduction="sum")

        found["torchaudio"], found["torchaudio, ms"] = _timed(theirs, device)
    values = [value for name, value in found.items() if ", ms" not in name and isinstance(value, float)]
    if max(values) - min(values) > 1e-4 * abs(values[0]):
        raise RuntimeError(f"the losses differ: {found}")
    return found


def _timed(loss: Any, device: torch.device) -> tuple[float, float]:
    """Value of a loss and the best of some milliseconds, forward and backward."""
    times = []
    for _ in range(4):
        began = time.perf_counter()
        value = loss()
        value.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began))
    return float(value.detach()), min(times)


PARTS = {part.__name__: part for part in (environment, kernels, ddp, curves, transducer_device)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    for name in ("--train-cuts", "--valid-cuts", "--data-dir"):
        parser.add_argument(name, default="")
    options = parser.parse_args(argv)
    try:
        found = PARTS[options.part](options)
    except (RuntimeError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for key, value in found.items():
        if not isinstance(value, list):
            print(f"{key}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
