"""Speed and memory of the quantiser beside the package multi_quantization: encoding and a training step.

    python tools/benchmarks/quantizer.py                          # D 1024, N 16, 5 refinements
    python tools/benchmarks/quantizer.py --frames 64 --rounds 5 --step_frames 0

Subjects: peer (the package) and ours. Both hold the same codebooks, as constructed: the worst case for us,
since frames settle late with untrained codes. Rounds are interleaved in one process, so other work on the
machine hits all alike; ratios are formed within each round and the median is printed. "CPU" is user + system
time of the process, "wall" what a clock shows. Memory is the peak resident set of a process that does nothing
else (on CUDA: max_memory_allocated), torch and all.

The training step is the reference's, phase one (2N codebooks of 16) or two (N of 256), with one and two
refinements in turn as the schedule draws them: search, losses, gradients, Adam.

--record NAME leaves what is printed in docs/results for RESULTS.md.
"""

import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import multi_quantization
import torch
from recording import recorded
from torch import Tensor

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.quantization import Quantizer
from spear_lib.quantization.reference_trainer import ReferenceTrainer
from spear_lib.runtime.log import first_screen


@dataclass(frozen=True)
class Options:
    """Sizes; the defaults are those of the target in RESULTS.md."""

    dim: int = 1024
    """Channels D."""
    num_codebooks: int = 16
    """Codebooks N, of 256 entries."""
    refinements: int = 5
    """Refinements of the search when encoding."""
    frames: int = 512
    """Frames per encoding."""
    step_frames: int = 1024
    """Frames per training step; 0: no training steps."""
    rounds: int = 3
    """Interleaved rounds."""
    threads: int = 1
    """CPU threads of every subject."""
    measure: str = ""
    """Internal: encode once with this subject and print the peak memory (MB)."""


def frames_of(options: Options, count: int, device: torch.device) -> Tensor:
    """Frames (count, D) of an anisotropic Gaussian."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -1.5, options.dim)
    return (torch.randn(count, options.dim, generator=generator) * scale).to(device)


def encoders(options: Options, device: torch.device) -> dict[str, Callable[[Tensor], Tensor]]:
    """Subject -> what makes tokens (B, N) of frames (B, D)."""
    torch.manual_seed(0)
    peer = multi_quantization.Quantizer(options.dim, 256, options.num_codebooks).to(device)
    ours = Quantizer.from_reference(peer.state_dict()).to(device)
    return {
        "peer": lambda x: peer.encode(x, refine_indexes_iters=options.refinements),
        "ours": lambda x: ours.encode(x, options.refinements),
    }


def trainers(options: Options, phase: int, device: torch.device) -> dict[str, Callable[[Tensor], Any]]:
    """Subject -> one step of the reference's training on frames (B, D)."""
    torch.manual_seed(0)
    peer = multi_quantization.QuantizerTrainer(options.dim, options.num_codebooks, device, 10**6, 10**6)
    peer.cur_iter = 1  # not one of the steps that measure six losses for the log
    ours = ReferenceTrainer(Quantizer.from_reference(peer.quantizer.state_dict()).to(device), 10**6, 10**6)
    ours.step_index = 1
    if phase == 2:
        peer._begin_second_phase()
        ours.quantizer = ours.quantizer.product().to(device)
        ours._new_optimizer()
    # One and two refinements in turn, which is what the schedule draws, half of the steps each.
    peers_turn, our_turn = itertools.cycle((0.0, 1.0)), itertools.cycle((1, 2))

    def peer_step(x: Tensor) -> None:
        peer.two_iter_prob = next(peers_turn)
        peer.step(x)

    return {"peer": peer_step, "ours": lambda x: ours.step(x, next(our_turn))}


def measure(subjects: dict[str, Callable], x: Tensor, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of every subject and round; the order turns round by round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    for call in subjects.values():
        call(x[:8])  # allocates
    for number in range(rounds):
        for name in list(subjects)[:: 1 if number % 2 == 0 else -1]:
            start, start_cpu = time.perf_counter(), time.process_time()
            subjects[name](x)
            if x.device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append((time.perf_counter() - start, time.process_time() - start_cpu))
    return times


def show(title: str, times: dict[str, list[tuple[float, float]]], count: int) -> None:
    print(f"{title:<28} {'wall s':>9} {'CPU s':>9} {'frames/s':>9} {'x wall':>8} {'x CPU':>8}")
    for name, pairs in times.items():
        wall, cpu = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        ratios = [
            statistics.median(peer[i] / max(own[i], 1e-9) for peer, own in zip(times["peer"], pairs))
            for i in (0, 1)
        ]
        print(
            f"{name:<28} {wall:>9.3f} {cpu:>9.3f} {count / wall:>9.0f} {ratios[0]:>8.1f} {ratios[1]:>8.1f}",
            flush=True,
        )


def peak_memory_mb(subject: str, argv: list[str] | None) -> float:
    """Peak memory of a fresh process that encodes once."""
    command = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv), "--measure", subject]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {subject} failed: {done.stderr.strip()}")
    return float(done.stdout)


@torch.no_grad()
def encode_once(options: Options, device: torch.device) -> None:
    encoders(options, device)[options.measure](frames_of(options, options.frames, device))
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        # Not getrusage: that starts from the size of the process that started this one.
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        print(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")))


@recorded("random embeddings")
def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, prog="python tools/benchmarks/quantizer.py", description=__doc__)
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.measure:
        encode_once(options, device)
        return
    sizes = f"D {options.dim}, N {options.num_codebooks}, {options.refinements} refinements"
    first_screen("quantiser", {"sizes": sizes, "threads": options.threads})
    x = frames_of(options, options.frames, device)
    with torch.no_grad():
        subjects = encoders(options, device)
        tokens = {name: call(x[:64]) for name, call in subjects.items()}
        for name, found in tokens.items():
            same = float((found == tokens["peer"]).double().mean())
            print(f"{name}: {100 * same:.2f} % of the peer's tokens")
        show(f"encode {options.frames} frames", measure(subjects, x, options.rounds), options.frames)
    memory = {name: peak_memory_mb(name, argv) for name in subjects}
    for name, peak in memory.items():
        print(f"peak memory {name:<16} {peak:>9.0f} MB, {peak / memory['peer']:.2f} of the peer's")
    for phase in (1, 2) if options.step_frames else ():
        steps = trainers(options, phase, device)
        times = measure(steps, frames_of(options, options.step_frames, device), options.rounds)
        show(f"step of {options.step_frames}, phase {phase}", times, options.step_frames)


if __name__ == "__main__":
    run(main)
