"""Runs that meet on one machine, several machines on one folder, a process that stands still: no Slurm."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

RUN = r"""#!/usr/bin/env bash
# A toy: two stages of several processes with one of a single process between.

set -euo pipefail
caller_dir=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../common/parse_options.sh
source ../common/stages.sh
option stage 10 "First stage" int
option stop_stage 12 "Last stage" int
option data_dir data "Data" path
option exp_dir exp "Where it writes" path
option nproc 1 "Processes" int
option num_nodes 1 "Machines" int
option node_rank 0 "This machine" int
option rendezvous "" "Where they meet"
parse_options "$@"
check_machines
find_python
stage_10() { launch meet "$exp_dir/10"; }
stage_11() { printf 'ran\n' >>"$exp_dir/11"; }
stage_12() { launch meet "$exp_dir/12"; }
run_stage 10 "together" stage_10 --machines all --leaves "$exp_dir/10"
run_stage 11 "alone" stage_11 --after 10 --leaves "$exp_dir/11"
run_stage 12 "together again" stage_12 --machines all --after 11 --leaves "$exp_dir/12"
"""
MEET = r"""
import os, signal, sys, time
import torch
from spear_lib.bin.common import run
from spear_lib.runtime.world import world
from spear_lib.training.health import stop_on_signal

def main():
    with world("cpu") as processes:
        if os.environ.get("TRAIN"):
            with stop_on_signal() as request:
                while not processes.any(bool(request)):
                    time.sleep(0.05)
            request.exit(7)
        total = processes.sum(torch.tensor([processes.rank + 1.0])).item()
        if os.environ.get("HOLD"):
            open(f"{sys.argv[1]}.{processes.rank}", "w").close()
            while not os.path.exists(os.environ["HOLD"]):
                time.sleep(0.05)
        if os.environ.get("STILL") and processes.rank == 1:
            time.sleep(60)
        processes.barrier()
        if processes.is_main:
            with open(sys.argv[1], "a") as file:
                file.write(f"{processes.world_size} {total}\n")

run(main)
"""


class Machine:
    """A checkout with a toy recipe; ``start`` is what somebody types on a machine that sees it."""

    def __init__(self, folder: Path) -> None:
        self.recipe = folder / "egs" / "toy"
        (self.recipe / "exp").mkdir(parents=True)
        (self.recipe / "data").mkdir()
        for name in ("spear_lib", "egs/common"):
            (folder / name).symlink_to(REPOSITORY / name)
        (self.recipe / "run.sh").write_text(RUN, encoding="utf-8")
        (self.recipe / "meet.py").write_text(MEET, encoding="utf-8")

    def start(self, *options: str, **variables: str) -> subprocess.Popen:
        environment = {
            **os.environ,
            "PYTHON": sys.executable,
            "PYTHONPATH": str(self.recipe),
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        return subprocess.Popen(
            ["bash", str(self.recipe / "run.sh"), *options],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    _, err = process.communicate(timeout=200)
    assert process.returncode == status, err
    return err


def test_two_runs_of_several_processes_share_a_machine(tmp_path):
    """Both used localhost:29400: the second waited for the first, then died."""
    go = tmp_path / "go"
    machines = [Machine(tmp_path / name) for name in "ab"]
    runs = [
        each.start("--nproc", "2", "--stop-stage", "10", HOLD=str(go), SPEAR_WAIT_SECONDS="100")
        for each in machines
    ]
    there = [each.recipe / "exp" / f"10.{rank}" for each in machines for rank in (0, 1)]
    deadline = time.monotonic() + 100
    while not all(path.exists() for path in there) and time.monotonic() < deadline:
        time.sleep(0.1)
    met = [path.exists() for path in there]
    go.touch()
    errors = [each.communicate(timeout=200)[1] for each in runs]
    assert all(met), "\n".join(errors)
    assert [each.returncode for each in runs] == [0, 0], "\n".join(errors)
    assert all((each.recipe / "exp" / "10").read_text() == "2 3.0\n" for each in machines)


def test_two_machines_work_on_one_folder(tmp_path):
    """The same command on both; the lock of a stage kept the second out."""
    machine = Machine(tmp_path)
    free_port = [sys.executable, str(REPOSITORY / "egs" / "common" / "free_port.py"), str(os.getpid())]
    port = subprocess.run(free_port, capture_output=True, text=True, check=True).stdout.strip()
    together = ("--num-nodes", "2", "--rendezvous", f"localhost:{port}", "--node-rank")
    second, first = machine.start(*together, "1"), machine.start(*together, "0")
    finish(first)
    assert "with machine 0 (this is 1 of 2)" in finish(second)
    exp = machine.recipe / "exp"
    assert [(exp / name).read_text() for name in ("10", "11", "12")] == ["2 3.0\n", "ran\n", "2 3.0\n"]
    assert sorted(path.name for path in (exp / ".done").glob("*.json")) == [
        "stage-10.json",
        "stage-11.json",
        "stage-12.json",
    ]
    # Again: both find all done.
    again = [machine.start(*together, rank) for rank in "01"]
    assert [finish(each) is None for each in again] == [False, False]


@pytest.mark.parametrize(
    "options, words",
    [
        (("--num-nodes", "2"), "--num-nodes 2 needs --rendezvous HOST:PORT"),
        (("--num-nodes", "2", "--rendezvous", "here"), "got 'here'"),
        (("--num-nodes", "2", "--node-rank", "2"), "--node-rank 2: the machines are 0 to 1"),
        (("--node-rank", "1"), "--node-rank 1: the machines are 0 to 0"),
    ],
)
def test_machines_that_cannot_meet_are_refused(tmp_path, options, words):
    assert words in finish(Machine(tmp_path).start(*options), 2)


def test_a_process_that_stands_still_ends_the_run_with_a_line(tmp_path):
    began = time.monotonic()
    run = Machine(tmp_path).start("--nproc", "2", "--stop-stage", "10", STILL="1", SPEAR_WAIT_SECONDS="4")
    err = finish(run, 1)
    assert "error: process 0 of 2 lost another one, which ended or stood still for 4 s" in err, err
    assert time.monotonic() - began < 55


def test_a_signal_to_torchrun_is_heard_however_early_and_often_it_comes(tmp_path):
    """Sent while nobody listens yet, and again: it is ignored until training hears it, and never kills."""
    machine = Machine(tmp_path)
    run = machine.start("--nproc", "2", "--stop-stage", "10", TRAIN="1")

    def launchers() -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if words[1:2] and words[1].endswith("/torchrun.py") and str(tmp_path) in " ".join(words):
                found.append(int(process.name))
        return found

    deadline = time.monotonic() + 100
    while not launchers() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # Python starts
    (launcher,) = launchers()
    for _ in range(3):
        os.kill(launcher, signal.SIGUSR1)
        time.sleep(0.2)
    assert "was told to stop and saved its state" in finish(run, 75)


def test_a_time_to_wait_that_is_none_is_refused(tmp_path):
    run = Machine(tmp_path).start("--nproc", "2", "--stop-stage", "10", SPEAR_WAIT_SECONDS="soon")
    assert "SPEAR_WAIT_SECONDS is 'soon': use a whole number" in finish(run, 1)


def test_stage_5_of_parts_is_closed_where_all_are_made_and_makes_nothing_itself(tmp_path):
    script = """
    source egs/common/parse_options.sh; source egs/common/stages.sh
    python=$1 num_splits=3 split=0
    check_parts cuts.jsonl.gz "$2"
    """
    command = ["bash", "-c", script, "bash", sys.executable, str(tmp_path / "store")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "error: of the 3 parts of stage 5 these are not made: 1-3. Run each with --split" in result.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("script", ["egs/common/run.sh", "egs/common/parts/run.sh"])
def test_stages_that_launch_are_those_in_which_all_machines_take_part(script):
    text = (REPOSITORY / script).read_text(encoding="utf-8")
    together = [
        line.split()[1]
        for line in text.splitlines()
        if line.startswith("run_stage") and "--machines all" in line
    ]
    assert together == ["10", "12"]
