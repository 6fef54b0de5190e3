"""Time and peak memory of the whole transducer loss on the CPU beside a peer's, on one random batch.

    python tools/benchmarks/transducer.py                 # beside k2 where installed, else plain autograd
    python tools/benchmarks/transducer.py --peer autograd --rounds 9
    tools/benchmarks/k2_parity.sh                                   # in an environment that has k2

The whole loss: smoothed simple loss, prune ranges, pruning of two projections, their sum as logits (no
joiner: neither tanh nor linear layer), pruned loss, backward to all four inputs. float32, regular lattice.

`k2` is the package, through the same four calls. `autograd` is what one writes without k2: the lattice walked
along its anti-diagonals by torch.logaddexp, differentiated by autograd; the pruned lattice filled up to its
full size. It is a stand-in, not a library.

Time: both in one process, alternating; the ratio of CPU times (user + system) is formed in each round and its
median printed, so other work on the machine hits both. Memory: a process for each, peak of the resident set
during the third step less its size before (inputs are there already), freed blocks handed back.

--record NAME leaves what is printed in docs/results for RESULTS.md.
"""

import argparse
import gc
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # CPU time must not count threads that spin

import torch
from recording import recorded

import spear_lib.transducer as ours

_FAR = -1e30  # for -inf, where autograd of logaddexp would be NaN


def _lattice(px, py, boundary):
    """Scores (B,) of the regular lattice; px (B, S, T), py (B, S+1, T); autograd does the rest."""
    batch, states, frames = py.shape
    px = torch.nn.functional.pad(px, (0, 0, 1, 0), value=_FAR)  # stored under the state it leads to
    diagonals = [py.new_full((batch, states), _FAR)]
    diagonals[0][:, 0] = 0.0
    s = torch.arange(states)
    for d in range(1, states + frames):
        t = d - s  # of the state that is reached
        at = t.clamp(0, frames - 1)[None, :, None].expand(batch, states, 1)
        before = (t - 1).clamp(0, frames - 1)[None, :, None].expand(batch, states, 1)
        label = torch.gather(px, 2, at).squeeze(2)
        blank = torch.gather(py, 2, before).squeeze(2)
        label = torch.where((t >= 0) & (t < frames), label, torch.full_like(label, _FAR))
        blank = torch.where((t >= 1) & (t <= frames), blank, torch.full_like(blank, _FAR))
        last = diagonals[-1]
        from_label = torch.nn.functional.pad(last[:, :-1], (1, 0), value=_FAR) + label
        diagonals.append(torch.logaddexp(from_label, last + blank).clamp(min=_FAR))
    alpha = torch.stack(diagonals, 1)
    return alpha[torch.arange(batch), boundary[:, 2] + boundary[:, 3], boundary[:, 2]]


def _mask_end(px, boundary):
    after = torch.arange(px.shape[2]) >= boundary[:, 3, None]
    return px.masked_fill(after[:, None], _FAR)


def _plain_smoothed(lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, **_options):
    lm_max, am_max = lm.amax(2, keepdim=True), am.amax(2, keepdim=True)
    product = (lm - lm_max).exp() @ (am - am_max).exp().transpose(1, 2)
    total = (product + torch.finfo(lm.dtype).tiny).log() + lm_max + am_max.transpose(1, 2)
    lm_only = lm.log_softmax(2)
    index = symbols.unsqueeze(2)
    am_label = am.gather(2, symbols.unsqueeze(1).expand(-1, am.shape[1], -1)).transpose(1, 2)
    px = lm[:, :-1].gather(2, index) + am_label - total[:, :-1]
    py = lm[..., 0, None] + am[:, None, :, 0] - total
    px = (1 - lm_only_scale) * px + lm_only_scale * lm_only[:, :-1].gather(2, index)
    py = (1 - lm_only_scale) * py + lm_only_scale * lm_only[..., 0, None]
    px = _mask_end(px, boundary)
    scores = _lattice(px, py, boundary)
    gx, gy = torch.autograd.grad(scores.sum(), (px, py), retain_graph=True)
    return -scores.sum(), (torch.nn.functional.pad(gx, (0, 1)), gy)


def _plain_pruned(logits, symbols, ranges, termination_symbol, boundary, **_options):
    batch, frames, _, _ = logits.shape
    states = symbols.shape[1] + 1
    log_probs = logits.log_softmax(3)
    labels = torch.nn.functional.pad(symbols, (0, 1)).unsqueeze(1).expand(-1, frames, -1).gather(2, ranges)
    label = log_probs.gather(3, labels.unsqueeze(3)).squeeze(3)
    far = label.new_full((batch, frames, states), _FAR)
    px = far.scatter(2, ranges, label)[:, :, :-1].transpose(1, 2)
    py = far.scatter(2, ranges, log_probs[..., 0]).transpose(1, 2)
    return -_lattice(_mask_end(px, boundary), py, boundary).sum()


PLAIN = SimpleNamespace(
    rnnt_loss_smoothed=_plain_smoothed,
    rnnt_loss_pruned=_plain_pruned,
    get_rnnt_prune_ranges=ours.get_rnnt_prune_ranges,
    do_rnnt_pruning=ours.do_rnnt_pruning,
)


def library(name: str):
    if name == "k2":
        import k2

        return k2
    return ours if name == "ours" else PLAIN


def make_batch(options) -> dict:
    generator = torch.Generator().manual_seed(0)
    batch, frames, labels, classes = options.utterances, options.frames, options.labels, options.classes
    shrink = torch.linspace(1.0, 0.7, batch)  # padding as in a sorted batch
    boundary = torch.zeros(batch, 4, dtype=torch.int64)
    boundary[:, 2], boundary[:, 3] = (labels * shrink).long(), (frames * shrink).long()
    shapes = {"lm": labels + 1, "am": frames, "decoder": labels + 1, "encoder": frames}
    data = {
        name: torch.randn(batch, length, classes, generator=generator).requires_grad_()
        for name, length in shapes.items()
    }
    data["symbols"] = torch.randint(1, classes, (batch, labels), generator=generator)
    return {**data, "boundary": boundary}


def step(lib, data: dict, ranges=None) -> tuple:
    """Forward and backward of the whole loss (inside ``ranges``, if given); returns it and the ranges."""
    inputs = [data[name] for name in ("lm", "am", "encoder", "decoder")]
    common = {"boundary": data["boundary"], "rnnt_type": "regular", "reduction": "sum"}
    simple, occupation = lib.rnnt_loss_smoothed(
        lm=data["lm"], am=data["am"], symbols=data["symbols"], termination_symbol=0, lm_only_scale=0.25,
        am_only_scale=0.0, return_grad=True, **common,
    )  # fmt: skip
    if ranges is None:
        ranges = lib.get_rnnt_prune_ranges(*occupation, data["boundary"], 5)
    encoder, decoder = lib.do_rnnt_pruning(am=data["encoder"], lm=data["decoder"], ranges=ranges)
    pruned = lib.rnnt_loss_pruned(
        logits=encoder + decoder, symbols=data["symbols"], ranges=ranges, termination_symbol=0, **common
    )
    loss = 0.5 * simple + pruned
    torch.autograd.backward(loss, inputs=inputs)
    for tensor in inputs:
        tensor.grad = None
    return float(loss.detach()), ranges


def resident(field: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE).group(1)) * 1024


def measure_memory(name: str, options) -> int:
    """Peak bytes of a step beyond what was resident before it (the first two steps warm up)."""
    lib, data = library(name), make_batch(options)
    for _ in range(2):
        step(lib, data)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM = VmRSS
    before = resident("VmRSS")
    step(lib, data)
    return resident("VmHWM") - before


def memory_in_a_process(name: str, argv: list[str] | None) -> int:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, *(sys.argv[1:] if argv is None else argv), "--memory-of", name]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return int(json.loads(output.splitlines()[-1]))


@recorded("random logits")
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", choices=["auto", "k2", "autograd"], default="auto")
    parser.add_argument("--utterances", type=int, default=8, help="B")
    parser.add_argument("--frames", type=int, default=500, help="T")
    parser.add_argument("--labels", type=int, default=60, help="S")
    parser.add_argument("--classes", type=int, default=500, help="V")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "2")))
    parser.add_argument("--memory-of", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(measure_memory(options.memory_of, options)))
        return 0
    installed = importlib.util.find_spec("k2") is not None
    if options.peer == "k2" and not installed:
        print("error: k2 is not installed here: run tools/benchmarks/k2_parity.sh, or use --peer autograd",
              file=sys.stderr)  # fmt: skip
        return 1
    peer = options.peer if options.peer != "auto" else "k2" if installed else "autograd"
    print(
        f"B={options.utterances} T={options.frames} S={options.labels} V={options.classes} R=5, float32, "
        f"{options.threads} thread(s), torch {torch.__version__}, peer: {peer}"
    )
    names = ["ours", peer]
    libraries, data = {name: library(name) for name in names}, make_batch(options)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    # In one band: rounding decides between windows that hold all the mass alike, and random logits have many.
    _, ranges = step(ours, data)
    losses = {name: step(libraries[name], data, ranges)[0] for name in names}  # also warms up
    _, peer_ranges = step(libraries[peer], data)
    moved = float((peer_ranges != ranges).any(2).float().mean())
    for _ in range(options.rounds):
        for name in names:
            wall, cpu = time.perf_counter(), time.process_time()
            step(libraries[name], data)
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    memory = {name: memory_in_a_process(name, argv) for name in names}
    for name in names:
        cpu, wall = (1e3 * statistics.median(column) for column in zip(*seconds[name]))
        print(f"  {name:9s} loss {losses[name]:.2f}  CPU {cpu:.0f} ms  wall {wall:.0f} ms  "
              f"peak memory {memory[name] / 2**20:.0f} MiB")  # fmt: skip
    ratios = [a[0] / b[0] for a, b in zip(seconds["ours"], seconds[peer])]
    wall_ratios = [a[1] / b[1] for a, b in zip(seconds["ours"], seconds[peer])]
    print(f"  ours / {peer}: CPU time {statistics.median(ratios):.2f} "
          f"({min(ratios):.2f} to {max(ratios):.2f} in {options.rounds} rounds), "
          f"wall {statistics.median(wall_ratios):.2f}, "
          f"memory {memory['ours'] / memory[peer]:.2f}")  # fmt: skip
    print(f"  windows that the peer places elsewhere: {100 * moved:.1f} % (losses: both in our windows)")
    if abs(losses["ours"] - losses[peer]) > 1e-4 * abs(losses[peer]):
        print("error: the two losses differ: the comparison means nothing", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
