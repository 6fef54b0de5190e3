#!/usr/bin/env python3
"""Feeds the user's commands with what users bring, and worse, and holds a few rules against what happens.

    python tools/fuzz.py --seconds 30
    python tools/fuzz.py --case '{"kind": "options", ...}'      one case again, with its whole output

Audio files (formats, rates, channels, lengths, headers), manifests, transcripts, tables and options are drawn
by hypothesis (tools/fuzzing/cases.py), made into files and run through the commands (the rules stand in
tools/fuzzing/commands.py: no traceback, no hang, no silent loss). The cases run in a child process, which is
ended and started again where one does not come back. Cases that were found are kept in
tests/fuzz_cases.jsonl, with which every run begins: a case that is mended stays there as a test.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
KEPT = REPOSITORY / "tests" / "fuzz_cases.jsonl"
CASE_SECONDS = 40.0
"""A case that takes longer hangs: the slowest takes 3 s on one core."""
MEMORY_BYTES = 16 << 30
EXAMPLES = 25  # of a kind, before the next kind has its turn
FAILURES = 20  # kinds of failure after which a run ends


def kept_cases() -> list[dict]:
    """The cases of tests/fuzz_cases.jsonl."""
    lines = KEPT.read_text(encoding="utf-8").split("\n") if KEPT.is_file() else []
    return [json.loads(line) for line in lines if line.strip()]


def work(place: str, seed: int, seconds: float, only: str, skip_kept: bool, pipe) -> None:
    """The child: sends ("case", case), then ("used" or "refused", kind) or ("broken", case, why), at last
    ("done",)."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # What libraries write to the streams directly is no concern of anybody here.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    from tools.fuzzing import cases, commands

    os.chdir(commands.empty(Path(place)))
    workplace = commands.Workplace(Path(place) / "shared")
    ends = time.monotonic() + seconds
    pipe.send(("ready",))

    def check(case: dict) -> None:
        pipe.send(("case", case))
        folder = commands.empty(Path(place) / "case")
        os.chdir(folder)
        try:
            pipe.send((workplace.run(case, folder), case["kind"]))
        except Exception as error:
            why = str(error) if isinstance(error, commands.Broken) else traceback.format_exc(limit=-3)
            pipe.send(("broken", case, why))
            raise

    for case in [] if skip_kept else kept_cases():
        if not only or case["kind"] == only:
            with contextlib.suppress(Exception):
                check(case)
    rounds = 0
    while time.monotonic() < ends:
        for kind, strategy in cases.ALL.items():
            if only and kind != only:
                continue

            @seeded(seed + rounds)
            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            )
            @given(strategy)
            def run(case: dict) -> None:
                if time.monotonic() < ends:
                    check(json.loads(json.dumps(case)))

            with contextlib.suppress(BaseException):
                run()
        rounds += 1
    pipe.send(("done",))


def watch(seconds: float, seed: int, only: str) -> tuple[Counter, dict[str, tuple[dict, str]]]:
    """Runs children until the time is over; (kind, result) -> cases, and failure -> (smallest case, why)."""
    counts: Counter = Counter()
    broken: dict[str, tuple[dict, str]] = {}
    context, starts, ends = multiprocessing.get_context("spawn"), 0, time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0 and len(broken) < FAILURES:
        with tempfile.TemporaryDirectory(prefix="spear-fuzz-") as place:
            mine, theirs = context.Pipe(duplex=False)
            arguments = (place, seed + 1000 * starts, left, only, starts > 0, theirs)
            child = context.Process(target=work, args=arguments, daemon=True)
            child.start()
            theirs.close()
            hung = _listen(mine, counts, broken, child)
            child.kill()
            child.join()
        starts += 1
        if hung is None:
            break
        broken.setdefault(hung[1], hung)
    return counts, broken


def _listen(pipe, counts: Counter, broken: dict, child) -> tuple[dict, str] | None:
    """Until the child is done (None) or gone: (its case, why)."""
    case: dict = {"kind": "start"}
    while True:
        try:
            message = pipe.recv() if pipe.poll(CASE_SECONDS if case["kind"] != "start" else 120) else None
        except EOFError:
            child.join(5)
            return case, f"{case['kind']}: the process ended with status {child.exitcode}"
        if message is None:
            return case, f"{case['kind']}: no end after {CASE_SECONDS:g} s"
        if message[0] == "done":
            return None
        if message[0] == "ready":
            continue
        if message[0] == "case":
            case = message[1]
        elif message[0] == "broken":
            counts[message[1]["kind"], "broken"] += 1
            name = f"{message[1]['kind']}: {message[2].strip().splitlines()[-1][:80]}"
            known = broken.get(name)
            if known is None or len(json.dumps(message[1])) <= len(json.dumps(known[0])):
                broken[name] = (message[1], message[2])
        else:
            counts[message[1], message[0]] += 1


def again(text: str) -> int:
    """One case in this process."""
    from tools.fuzzing import commands

    with tempfile.TemporaryDirectory(prefix="spear-fuzz-") as place:
        os.chdir(place)
        workplace = commands.Workplace(Path(place) / "shared")
        os.chdir(commands.empty(Path(place) / "case"))
        try:
            print(workplace.run(json.loads(text), Path.cwd()))
        except commands.Broken as error:
            print(f"broken: {error}")
            return 1
        finally:
            os.chdir(REPOSITORY)
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long cases are drawn")
    parser.add_argument("--seed", type=int, default=0, help="other numbers, other cases")
    parser.add_argument("--only", default="", help="one kind: audio, manifest, transcripts, table or options")
    parser.add_argument("--case", default="", help="run this case alone, a line of tests/fuzz_cases.jsonl")
    options = parser.parse_args(argv)
    if options.case:
        return again(options.case)
    counts, broken = watch(options.seconds, options.seed, options.only)
    for kind in sorted({kind for kind, _ in counts}):
        parts = [f"{counts[kind, result]} {result}" for result in ("used", "refused", "broken")]
        print(f"{kind:<12} {', '.join(parts)}")
    for name, (case, why) in broken.items():
        print(f"\n{name}\n{why.strip()}\n{json.dumps(case)}")
    print(f"{counts.total()} cases, {len(broken)} kinds of failure")
    return 1 if broken or not counts else 0


if __name__ == "__main__":
    sys.exit(main())
