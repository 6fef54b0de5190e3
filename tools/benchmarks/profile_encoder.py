"""Where the time of one training step of the encoder goes: by module (forward) and by operator.

    python tools/benchmarks/profile_encoder.py                          # Base, 4 utterances of 10 s
    python tools/benchmarks/profile_encoder.py --subjects '["large"]' --device cuda --precision bf16

Options are those of benchmark_encoder.py; the first of our subjects is profiled. Shares are of wall time, and
on a shared machine as noisy as that is.
"""

import torch
from encoder_subjects import Options, Subject
from torch.profiler import ProfilerActivity, profile, record_function

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.training.cpu_memory import keep_freed_memory


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def mark_modules(model: torch.nn.Module) -> set[str]:
    """Make every module's forward pass a span of the profile named after its class; returns the names."""
    open_spans = []

    def enter(module, inputs):
        open_spans.append(record_function(type(module).__name__))
        open_spans[-1].__enter__()

    def leave(module, inputs, output):
        open_spans.pop().__exit__(None, None, None)

    for module in model.modules():
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    return {type(module).__name__ for module in model.modules()}


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, prog="python tools/benchmarks/profile_encoder.py", description=__doc__)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    ours = [name for name in options.subjects if not name.startswith("wavlm")]
    if not ours:
        raise ValueError(f"subjects {list(options.subjects)} name no encoder of ours; add base, for example")
    subject = Subject(ours[0], options)
    names = mark_modules(subject.model)
    subject.step(True)
    activities = [ProfilerActivity.CPU]
    if subject.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        subject.step(True)
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    print(f"\n{ours[0]}, forward by module, with everything inside it:\n")
    print(_row("module", "calls", "share of the step") + "\n" + _row(*["---"] * 3))
    for event in sorted(events, key=lambda event: -event.cpu_time_total):
        if event.key in names:
            print(_row(event.key, event.count, f"{event.cpu_time_total / total:.1%}"))
    print("\nOperators and backward functions, forward and backward, with everything inside them:\n")
    print(_row("operator", "calls", "share of the step", "own share") + "\n" + _row(*["---"] * 4))
    others = [event for event in events if event.key not in names]
    for event in sorted(others, key=lambda event: -event.cpu_time_total)[:40]:
        shares = (f"{value / total:.1%}" for value in (event.cpu_time_total, event.self_cpu_time_total))
        print(_row(event.key, event.count, *shares))


if __name__ == "__main__":
    run(main)
