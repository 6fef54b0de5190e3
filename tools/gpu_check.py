"""The steps of tools/gpu_check.sh: each a process with a limit of time; a report of all, whatever fails."""

import argparse
import atexit
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
BENCHMARKS = REPOSITORY / "tools" / "benchmarks"
PARTS = REPOSITORY / "tools" / "gpu_check_parts.py"
NEEDED = ("torch", "lhotse", "numpy", "soundfile", "jsonargparse", "yaml", "safetensors", "filelock", "tqdm")
"""Modules without which no step runs."""
WHEELS = (
    *("lhotse==1.33.0", "audioread", "intervaltree", "cytoolz", "urllib3==2.8.0", "kaldialign==0.12.0"),
    *("soundfile==0.14.0", "cffi", "pycparser", "jsonargparse==4.53.0", "docstring-parser"),
    *("typeshed-client", "pytest-timeout"),
)
"""What an environment of torch, transformers and pytest lacks."""
MINUTES, CPU_PATIENCE = 7.5, 10.0
LOG_END = 100_000  # characters of a log that are kept
GPU_NAMES = "not interpreter and not numbers_of_eager and not compile"
"""Without what needs no GPU and takes minutes."""
GPU_TESTS = (
    *("tests/unit/test_precision.py", "tests/numerics/test_rnnt_backend.py"),
    *("tests/data/test_precision_curves.py", "tests/numerics/test_fused_kernels.py"),
)


class Step(NamedTuple):
    """One thing to show.

    Attributes:
      name: in the report.
      limit: seconds.
      command: arguments of Python.
      figures: what to keep of its output; None: its file ``<name>.json``.
    """

    name: str
    limit: float
    command: list[str]
    figures: Callable[[str], dict[str, Any]] | None = None


def lines_with(*patterns: str) -> Callable[[str], dict[str, Any]]:
    """The lines of an output that fit one of ``patterns``."""

    def found(output: str) -> dict[str, Any]:
        kept = [line.strip() for line in output.splitlines() if any(re.search(p, line) for p in patterns)]
        return {"lines": kept}

    return found


def steps(options: argparse.Namespace) -> list[Step]:
    """All steps, the most important first."""
    tiny, device, work = options.tiny, options.device, options.work

    def part(name: str, limit: float, *more: str) -> Step:
        command = [str(PARTS), name, "--device", device, "--json", str(work / f"{name}.json"), *more]
        return Step(name, limit, command + (["--tiny"] if tiny else []))

    def training(name: str, size: str, limit: float, *more: str) -> Step:
        utterances, seconds = (2, 2) if tiny else (16, 25)
        command = [str(BENCHMARKS / "step.py"), "--size", "tiny" if tiny else size, "--device", device]
        command += [
            "--utterances",
            str(utterances),
            "--seconds",
            str(seconds),
            "--steps",
            "3" if tiny else "10",
        ]
        return Step(name, limit, [*command, "--json", str(work / f"{name}.json"), *more])

    data = []
    if options.train_cuts:
        data = ["--train-cuts", options.train_cuts, "--valid-cuts", options.valid_cuts]
        data += ["--data-dir", options.data_dir]
    tests = GPU_TESTS[:1] if tiny else GPU_TESTS
    workers = str(max(1, min(8, (os.cpu_count() or 2) - 1)))
    loader = ["--rounds", "1", "--cuts", "24" if tiny else "200", "--workers", "1" if tiny else workers]
    transducer = ["--rounds", "1" if tiny else "5"]
    transducer += ["--frames", "40", "--utterances", "2", "--labels", "8"] if tiny else []
    tokens = ["--parts", "a", "--rounds", "1" if tiny else "2", "--clips", "2" if tiny else "600"]
    return [
        part("environment", 60),
        part("kernels", 60),
        training("step_base", "base", 60),
        training("step_base_eager", "base", 45, "--kernels", "eager"),
        training("step_large", "large", 75),
        part("ddp", 60),
        part("curves", 110, *data),
        Step(
            "tests",
            120,
            ["-m", "pytest", "-o", "addopts=", "-m", "not slow", "-k", GPU_NAMES, *tests],
            lines_with(r"^(FAILED|ERROR)", r"\d+ (passed|failed|skipped)"),
        ),
        Step(
            "stage_5",
            60,
            [str(BENCHMARKS / "tokens.py"), *tokens],
            lines_with("stage 5", "limit 1.10", "audio seconds per second"),
        ),
        Step(
            "transducer",
            45,
            [str(BENCHMARKS / "transducer.py"), *transducer],
            lines_with(r"^B=", "loss ", "ours /", "error"),
        ),
        part("transducer_device", 45),
        Step("loader", 60, [str(BENCHMARKS / "loader.py"), *loader], lines_with("ours", "lhotse", "is fed")),
    ]


def run_step(step: Step, limit: float, work: Path) -> dict[str, Any]:
    """Runs one; what became of it."""
    began, log, kept = time.monotonic(), work / f"{step.name}.log", work / f"{step.name}.json"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, *step.command],
            cwd=REPOSITORY,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its own processes end with it
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        end_group(process.pid)
        process.wait()
    output = log.read_text(encoding="utf-8", errors="replace")
    result: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)}
    if status is None:
        result |= {"status": "too slow", "why": f"stopped after its limit of {limit:.0f} s"}
    elif status != 0:
        lines = [line for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"\s*(\w*Error|error|FAILED|ERROR)\b.*", line)]
        why = (errors or lines or ["no output"])[-1].strip()
        result |= {"status": "failed", "why": f"{why[:300]} (exit status {status})"}
    else:
        result["status"] = "passed"
    if step.figures is not None:
        result["figures"] = step.figures(output)
    elif kept.exists():
        result["figures"] = json.loads(kept.read_text(encoding="utf-8"))
    return result


def end_group(group: int) -> None:
    """Ends what is left of a process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def missing_packages() -> list[str]:
    """Modules that no step can do without and that this Python has not."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def download_command() -> str:
    """What fetches the wheels of ``WHEELS`` for this Python."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    platforms = " ".join(
        f"--platform {name}_x86_64"
        for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux1")
    )
    return (
        f"python3 -m pip download --no-deps --only-binary=:all: --python-version {version} "
        f"--implementation cp {platforms} -d .whl {' '.join(WHEELS)}"
    )


def table(results: dict[str, dict[str, Any]]) -> str:
    """The report as a page."""
    lines = ["| step | | seconds | figures |", "|---|---|---|---|"]
    for name, result in results.items():
        figures = result.get("figures", {})
        shown = figures.get("lines") or [
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in figures.items()
            if key != "options" and not isinstance(value, (list, dict))
        ]
        cell = "; ".join([*([result["why"]] if "why" in result else []), *shown])
        lines.append(
            f"| {name} | {result['status']} | {result.get('seconds', 0):g} | {cell.replace('|', '/')} |"
        )
    return "\n".join(lines) + "\n"


def write(results: dict[str, dict[str, Any]], out: Path, asked: dict[str, Any]) -> None:
    """gpu_report.json and gpu_report.md, after every step: a run that is cut off leaves what it has."""
    versions = {}
    for name in ("torch", "triton", "lhotse", "transformers", "torchaudio", "k2"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    report = {"asked": asked, "python": sys.version.split()[0], "versions": versions, "steps": results}
    (out / "gpu_report.json").write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    (out / "gpu_report.md").write_text(table(results), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/gpu_check.sh", allow_abbrev=False)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--train-cuts", default="")
    parser.add_argument("--valid-cuts", default="")
    parser.add_argument("--data-dir", default="")
    options = parser.parse_args(argv)
    given = [bool(value) for value in (options.train_cuts, options.valid_cuts, options.data_dir)]
    if any(given) and not all(given):
        parser.error("--train-cuts, --valid-cuts and --data-dir belong together: give all three or none")
    # Three files come back, whatever the number of steps.
    options.work = Path(tempfile.mkdtemp(prefix="gpu_check_"))
    atexit.register(shutil.rmtree, options.work, ignore_errors=True)
    (options.out / "gpu_logs.txt").unlink(missing_ok=True)
    planned = steps(options)
    names = [step.name for step in planned]
    if options.list:
        print("\n".join(names))
        return 0
    if unknown := set(filter(None, options.only.split(","))) - set(names):
        parser.error(f"--only names {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if options.only:
        planned = [step for step in planned if step.name in options.only.split(",")]
    asked = {key: str(value) for key, value in vars(options).items() if key not in ("list", "work")}
    if missing := missing_packages():
        print(f"error: this Python lacks {', '.join(missing)}. Where there is a network:", file=sys.stderr)
        print(f"{download_command()}\nthen tools/gpu_check.sh --wheels .whl", file=sys.stderr)
        write({"packages": {"status": "failed", "why": f"missing: {', '.join(missing)}"}}, options.out, asked)
        return 1
    # A CPU takes its time, and is tried for its errors.
    slower = 1.0 if options.device == "cuda" else CPU_PATIENCE
    minutes = options.minutes or MINUTES * slower
    ends = time.monotonic() + 60 * minutes
    results: dict[str, dict[str, Any]] = {}
    for number, step in enumerate(planned, 1):
        left = ends - time.monotonic()
        if left < 5:
            results[step.name] = {
                "status": "not run",
                "why": f"{minutes:g} minutes were over (--minutes)",
            }
        else:
            print(f"[{number}/{len(planned)}] {step.name} ...", end=" ", flush=True)
            results[step.name] = run_step(step, min(step.limit * slower, left), options.work)
            with (options.out / "gpu_logs.txt").open("a", encoding="utf-8") as logs:
                text = (options.work / f"{step.name}.log").read_text(encoding="utf-8", errors="replace")
                logs.write(f"==== {step.name}\n{text[-LOG_END:]}\n")
            print(results[step.name]["status"], results[step.name].get("why", ""), flush=True)
        write(results, options.out, asked)
    print("\n" + table(results) + f"\n{options.out / 'gpu_report.json'}")
    return 0 if all(result["status"] == "passed" for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
