"""Speed and memory of the encoder beside transformers' WavLM Base (random weights), on one batch of audio.

    python tools/benchmarks/encoder.py                       # Base beside WavLM: forward, forward + backward
    python tools/benchmarks/encoder.py --utterances 4 --seconds 10 --threads 2 --rounds 5
    python tools/benchmarks/encoder.py --shortest 0.6 --subjects '["base", "base,padding=reference"]'

A subject is `wavlm`, `wavlm-eager`, or one of our sizes (mini, base, large, xlarge) with changed fields of
ZipformerConfig after commas. Every subject runs in training mode: ours with every regulariser, dropout and
skip at its schedule's value of --batch-count; WavLM with its own dropouts, layerdrop 0 and no masking.

`wavlm` computes attention by scaled_dot_product_attention; transformers itself asks torch for the attention
weights, which nobody reads, and so gets another path: that is `wavlm-eager`. Ours is given fbank features,
WavLM waveforms, as in training; the cost of the features is printed, and small.

Each subject has two processes of its own: one for time, one for memory. Rounds are interleaved, so other work
on the machine hits all subjects alike; ratios are formed within each round and their median is printed. "CPU
time" is user + system time of the process, "wall" what a clock shows. Threads that wait sleep
(OMP_WAIT_POLICY=passive): on a shared machine the CPU time would count their spinning. Peak memory on a CPU
is the peak of the resident set during a step less its size just before it (weights and gradients are there
already), with an allocator that hands back every freed block of 64 KiB or more; on CUDA it is
max_memory_allocated less what was allocated before.

profile_encoder.py shows where the time goes; benchmark_encoder.md says what we found.

--record NAME leaves what is printed in docs/results for RESULTS.md.
"""

import ctypes
import dataclasses
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from encoder_subjects import SAMPLE_RATE, Options, Subject
from recording import recorded

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.runtime.log import first_screen
from spear_lib.training.cpu_memory import keep_freed_memory

_MATMUL_SIZE = 8192  # of the matrix product whose rate MFU is measured against


def measure_time(subject: Subject, backward: bool) -> dict[str, float]:
    """Wall and CPU seconds of one step."""
    wall, cpu = time.perf_counter(), time.process_time()
    subject.step(backward)
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    subject.model.zero_grad(set_to_none=True)  # as in training
    return seconds


def _resident_bytes(field: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE).group(1)) * 1024


def measure_memory(subject: Subject, backward: bool) -> dict[str, float]:
    """Peak bytes during one step, less those before it."""
    gc.collect()
    if subject.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        subject.step(backward)
        return {"bytes": torch.cuda.max_memory_allocated() - before, "before": before}
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM = VmRSS
    before = _resident_bytes("VmRSS")
    subject.step(backward)
    return {"bytes": _resident_bytes("VmHWM") - before, "before": before}


def work(name: str, kind: str) -> None:
    """A worker: reads a line ('forward', 'backward' or 'facts') at a time, answers with a line of JSON."""
    options = Options(**json.loads(os.environ["SPEAR_BENCHMARK"]))
    torch.set_num_threads(options.threads)
    if kind == "time":
        keep_freed_memory()  # as in training
    subject = Subject(name, options)
    measure = measure_time if kind == "time" else measure_memory
    if kind == "memory":
        for parameter in subject.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    for line in sys.stdin:
        command = line.strip()
        if command == "facts":
            parameters = sum(p.numel() for p in subject.model.parameters())
            answer = {"parameters": parameters, "note": subject.note}
            if subject.device.type == "cuda":
                answer["flops"] = count_flops(subject)
        else:
            answer = measure(subject, command == "backward")
        print(json.dumps(answer), flush=True)


class Worker:
    """A process that measures one subject."""

    def __init__(self, name: str, kind: str, options: Options):
        environment = {
            **os.environ,
            "SPEAR_BENCHMARK": json.dumps(dataclasses.asdict(options)),
            "OMP_NUM_THREADS": str(options.threads),
            "OMP_WAIT_POLICY": "passive",
        }
        if kind == "memory":
            environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", name, kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def ask(self, command: str) -> dict:
        """The worker's answer to one command."""
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(
                f"the process of {self.name!r} ended with status {self.process.wait()}; see above"
            )
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def count_flops(subject: Subject) -> float:
    """Floating-point operations of one forward and backward pass (matrix products and convolutions)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        subject.step(True)
    return float(counter.get_total_flops())


def matmul_rate(device: torch.device) -> float:
    """Measured floating-point operations per second of a large bf16 matrix product."""
    a, b = (torch.randn(_MATMUL_SIZE, _MATMUL_SIZE, device=device, dtype=torch.bfloat16) for _ in range(2))
    for repetitions in (5, 30):  # the first is a warm-up
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(repetitions):
            a @ b
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - started) / repetitions
    return 2.0 * _MATMUL_SIZE**3 / seconds


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def report_time(options: Options, facts: dict[str, dict]) -> None:
    """Measure and print the table of times."""
    workers = {name: Worker(name, "time", options) for name in options.subjects}
    for name, worker in workers.items():
        facts[name] = worker.ask("facts")
        print(f"{name}: {facts[name]['parameters']:,} parameters; {facts[name]['note']}")
    audio = sum(options.num_samples()) / SAMPLE_RATE
    cuda = options.resolved_device.type == "cuda"
    rate = matmul_rate(options.resolved_device) if cuda else 0.0
    if cuda:
        print(f"measured bf16 matmul rate: {rate / 1e12:.0f} TFLOP/s")
    first = options.subjects[0]
    head = ["pass", "subject", "audio s / wall s", "audio s / CPU s", f"speed / {first}: wall", "CPU"]
    print("\n" + _row(head + (["MFU"] if cuda else [])) + "\n" + _row(["---"] * (len(head) + cuda)))
    for command in ("forward", "backward"):
        for worker in workers.values():
            worker.ask(command)  # warm-up
        rounds = [
            {name: worker.ask(command) for name, worker in workers.items()} for _ in range(options.rounds)
        ]
        for name in options.subjects:
            cells = ["forward" if command == "forward" else "forward + backward", name]
            for clock in ("wall", "cpu"):
                cells.append(f"{audio / statistics.median(each[name][clock] for each in rounds):.2f}")
            for clock in ("wall", "cpu"):
                ratios = sorted(each[first][clock] / each[name][clock] for each in rounds)
                cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
            if cuda:
                seconds = statistics.median(each[name]["wall"] for each in rounds)
                share = facts[name]["flops"] / seconds / rate
                cells.append(f"{share:.1%}" if command == "backward" else "")
            print(_row(cells), flush=True)
    for worker in workers.values():
        worker.close()


def report_memory(options: Options) -> None:
    """Measure and print the table of peak memory."""
    first = options.subjects[0]
    print(
        "\n" + _row(["pass", "subject", "peak MB", "before MB", f"peak / {first}"]) + "\n" + _row(["---"] * 5)
    )
    peaks: dict[tuple[str, str], dict] = {}
    for name in options.subjects:
        worker = Worker(name, "memory", options)
        for command in ("forward", "backward"):
            answers = [worker.ask(command) for _ in range(min(2, options.rounds))]
            peaks[command, name] = max(answers, key=lambda answer: answer["bytes"])
        worker.close()
    for command in ("forward", "backward"):
        for name in options.subjects:
            peak = peaks[command, name]
            ratio = peak["bytes"] / peaks[command, first]["bytes"]
            label = "forward" if command == "forward" else "forward + backward"
            print(
                _row(
                    [label, name, f"{peak['bytes'] / 1e6:.0f}", f"{peak['before'] / 1e6:.0f}", f"{ratio:.2f}"]
                )
            )


@recorded("noise")
def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, prog="python tools/benchmarks/encoder.py", description=__doc__)
    lengths = ", ".join(f"{n / SAMPLE_RATE:g}" for n in options.num_samples())
    first_screen(
        "Encoder benchmark",
        {
            "batch": f"{options.utterances} utterances of {lengths} s, training mode",
            "clock": f"batch count {options.batch_count:g}",
            "threads": options.threads,
            "precision": options.precision,
            "load": f"{os.getloadavg()[0]:.1f} other runnable processes" if hasattr(os, "getloadavg") else "",
        },
    )
    facts: dict[str, dict] = {}
    report_time(options, facts)
    if options.memory:
        report_memory(options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3])
    else:
        run(main)
