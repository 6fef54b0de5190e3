"""Speed and memory of the prediction head beside multi_quantization's JointCodebookLoss(is_joint=False).

    python tools/benchmarks/loss_head.py                    # B 32, T 500, D 512, N 16: forward and backward
    python tools/benchmarks/loss_head.py --frames 100 --rounds 3 --peer_checkpoint false

Both have the same weights, inputs and targets, and both give the gradients of inputs and weights. Rounds are
interleaved in one process, so other work on the machine hits both alike; the ratio is formed within each
round and the median is printed. "CPU time" is user + system time of the process, "wall" what a clock shows.
Memory is measured in a process per subject: on a CPU the peak of the resident set during a step less its size
just before it (weights and inputs are there already, gradients are not), on CUDA max_memory_allocated
likewise.

The peer's default recomputes its logits in backward to save memory (checkpoint); --peer_checkpoint false is
its faster and larger variant.

--record NAME leaves what is printed in docs/results for RESULTS.md.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from recording import recorded
from torch import Tensor

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.pretraining.heads import MaskedPredictionHead
from spear_lib.runtime.log import first_screen


@dataclass(frozen=True)
class Options:
    """Sizes; the defaults are those of the target in RESULTS.md."""

    utterances: int = 32
    """Utterances B."""
    frames: int = 500
    """Student frames per utterance T."""
    dim: int = 512
    """Channels of the encoder's output D."""
    num_codebooks: int = 16
    """Codebooks N, of 256 entries."""
    ignored: float = 0.0
    """Share of the frames without targets; we leave them out, the peer computes and ignores them."""
    rounds: int = 3
    """Interleaved steps of each."""
    threads: int = 1
    """CPU threads."""
    precision: str = "fp32"
    """fp32, or bf16 (autocast) for both."""
    peer_checkpoint: bool = True
    """The peer's own default: logits are computed again in backward."""
    measure: str = ""
    """Internal: print the peak memory (MB) of one step of this subject."""


SUBJECTS = ("peer", "ours")


def make_step(options: Options, subject: str, device: torch.device) -> Callable[[], Tensor]:
    """One forward and backward of the subject; returns the loss."""
    from multi_quantization.prediction import JointCodebookLoss

    torch.manual_seed(0)
    count = options.utterances * options.frames
    hidden = torch.randn(count, options.dim).to(device)
    targets = torch.randint(0, 256, (count, options.num_codebooks))
    targets[torch.rand(count) < options.ignored] = -100
    targets = targets.to(device)
    peer = JointCodebookLoss(
        options.dim, options.num_codebooks, is_joint=False, checkpoint=options.peer_checkpoint
    ).to(device)
    ours = MaskedPredictionHead(options.dim, options.num_codebooks).to(device)
    ours.load_reference(peer.state_dict())
    head = {"peer": peer, "ours": ours}[subject]

    def step() -> Tensor:
        x = hidden.clone().requires_grad_()
        head.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16"):
            if subject == "peer":
                total = head(x, targets)
            else:
                scored = (targets >= 0).any(-1)
                total = head(x[scored], targets[scored]).total
        total.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return total.detach()

    return step


def peak_memory_mb(step: Callable[[], Tensor], device: torch.device) -> float:
    """What one step needs at its worst beyond what is held before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak restarts at the present size
    before = _status_kb("VmRSS")
    step()
    return (_status_kb("VmHWM") - before) / 1024


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def memory_in_a_process(subject: str, argv: list[str] | None) -> float:
    """Peak memory of one step in a fresh process of this command."""
    command = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv), "--measure", subject]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {subject} failed: {done.stderr.strip()}")
    return float(done.stdout)


@recorded("random features")
def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, prog="python tools/benchmarks/loss_head.py", description=__doc__)
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.measure:
        print(peak_memory_mb(make_step(options, options.measure, device), device))
        return
    first_screen(
        "prediction head",
        {
            "sizes": f"B {options.utterances}, T {options.frames}, D {options.dim}, "
            f"N {options.num_codebooks}, {options.precision}, {100 * options.ignored:g} % without targets",
            "peer": f"JointCodebookLoss(is_joint=False, checkpoint={options.peer_checkpoint})",
            "threads": options.threads,
        },
    )
    memory = {subject: memory_in_a_process(subject, argv) for subject in SUBJECTS}
    steps = {subject: make_step(options, subject, device) for subject in SUBJECTS}
    wall: dict[str, list[float]] = {subject: [] for subject in SUBJECTS}
    cpu: dict[str, list[float]] = {subject: [] for subject in SUBJECTS}
    losses = {}
    for number in range(options.rounds):
        for subject in SUBJECTS if number % 2 == 0 else SUBJECTS[::-1]:
            start, start_cpu = time.perf_counter(), time.process_time()
            losses[subject] = float(steps[subject]())
            wall[subject].append(time.perf_counter() - start)
            cpu[subject].append(time.process_time() - start_cpu)
    print(f"{'':>6} {'wall s':>9} {'CPU s':>9} {'peak MB':>9}")
    for subject in SUBJECTS:
        median = statistics.median(wall[subject]), statistics.median(cpu[subject])
        print(f"{subject:>6} {median[0]:9.3f} {median[1]:9.3f} {memory[subject]:9.1f}")
    for name, times in (("wall", wall), ("CPU time", cpu)):
        ratios = [peer / ours for peer, ours in zip(times["peer"], times["ours"])]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"speed, {name}: {statistics.median(ratios):.2f} times the peer's (rounds: {spread})")
    print(f"memory: {memory['ours'] / memory['peer']:.3f} of the peer's")
    print(f"losses differ by {abs(losses['ours'] / losses['peer'] - 1):.1e} (relative)")


if __name__ == "__main__":
    run(main)
