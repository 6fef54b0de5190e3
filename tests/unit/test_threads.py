"""How many threads a command takes: rules on made-up machines, and what commands and shells do with them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spear_lib.runtime.threads import CpuFacts, Threads, cgroup_quota, choose, physical_cores

REPOSITORY = Path(__file__).resolve().parents[2]
EIGHT = CpuFacts(cpus=16, cores=8)


@pytest.mark.parametrize(
    ("facts", "processes", "given", "number", "why"),
    [
        (EIGHT, 1, None, 8, "8 cores to run on"),  # of 16 hyper-threads
        (CpuFacts(8, 8, quota=1.5), 1, None, 1, "quota of 1.5 CPUs"),
        (CpuFacts(8, 8, quota=0.5), 1, None, 1, "quota of 0.5 CPUs"),  # never 0
        (CpuFacts(8, 1), 1, None, 1, "1 core to run on"),  # affinity
        (CpuFacts(2, 2, load=2.0), 1, None, 1, "load 2.0 on 2 CPUs"),
        (CpuFacts(2, 2, load=0.3), 1, None, 2, "2 cores to run on"),
        (CpuFacts(16, 8, load=11.0), 1, None, 5, "load 11.0 on 16 CPUs"),
        (CpuFacts(2, 2, load=50.0), 1, None, 1, "load 50.0 on 2 CPUs"),
        (EIGHT, 2, None, 4, "8 cores to run on, shared by 2 processes"),
        (EIGHT, 16, None, 1, "8 cores to run on, shared by 16 processes"),
        (CpuFacts(2, 2, load=2.0), 2, "6", 6, "OMP_NUM_THREADS"),  # wins, and is for each process
        (EIGHT, 1, "3,2", 3, "OMP_NUM_THREADS"),
        (EIGHT, 1, "", 8, "8 cores to run on"),
    ],
)
def test_the_smallest_limit_decides(facts, processes, given, number, why):
    assert choose(facts, processes, given) == Threads(number, why)


@pytest.mark.parametrize("given", ["0", "many", "-1", "1.5"])
def test_a_wrong_number_is_refused(given):
    with pytest.raises(ValueError, match="use a whole number of at least 1, or unset it"):
        choose(EIGHT, 1, given)


def test_cores_are_those_that_the_process_may_use(tmp_path):
    for cpu in range(16):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 8},{cpu % 8 + 8}\n", encoding="utf-8")
    assert physical_cores(set(range(16)), tmp_path) == 8
    assert physical_cores({0, 8}, tmp_path) == 1  # two hyper-threads of one core
    assert physical_cores({0, 1, 2}, tmp_path / "unknown") == 3


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n", encoding="utf-8")


def test_quota_of_cgroups_version_2(tmp_path):
    group(tmp_path / "job", cpu__max="150000 100000")
    group(tmp_path / "job" / "step", cpu__max="max 100000")
    assert cgroup_quota("0::/job/step\n", tmp_path) == 1.5  # that of the group above
    group(tmp_path / "job" / "step", cpu__max="50000 100000")
    assert cgroup_quota("0::/job/step\n", tmp_path) == 0.5
    assert cgroup_quota("0::/elsewhere\n", tmp_path) is None


def test_quota_of_cgroups_version_1(tmp_path):
    membership = "9:memory:/box\n4:cpu,cpuacct:/box\n0::/\n"
    group(tmp_path / "cpu" / "box", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert cgroup_quota(membership, tmp_path) is None
    # A container sees its own limit at the root, whatever its path is outside.
    group(tmp_path / "cpu", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    assert cgroup_quota("4:cpu,cpuacct:/docker/abc\n", tmp_path) == 3.0
    assert cgroup_quota("", tmp_path) is None


def python(*arguments: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**inherited, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


COMMAND = """
import os, sys
import spear_lib.bin
assert "torch" not in sys.modules and os.environ["OMP_NUM_THREADS"]  # in time for what reads it at import
import torch
from spear_lib.bin.common import run
from spear_lib.runtime.log import first_screen
def main():
    first_screen("Test", {})
    print("numbers", torch.get_num_threads(), torch.get_num_interop_threads(), os.environ["OMP_NUM_THREADS"])
run(main)
"""


def test_a_given_number_is_used_and_named():
    said = python("-c", COMMAND, OMP_NUM_THREADS="3")
    assert "threads   3 (OMP_NUM_THREADS)\n" in said and "numbers 3 3 3" in said
    # Not the reason of another number.
    assert "3 (OMP_NUM_THREADS)\n" in python("-c", COMMAND, OMP_NUM_THREADS="3", SPEAR_THREADS="2 (2 cores)")
    said = python("-c", COMMAND, OMP_NUM_THREADS="3", SPEAR_THREADS="3 (load 1.0 on 4 CPUs)")
    assert "3 (load 1.0 on 4 CPUs); sums differ in the last digits" in said
    said = python("-c", COMMAND, OMP_NUM_THREADS="many")
    assert "error: OMP_NUM_THREADS is 'many': use a whole number" in said


def test_a_command_chooses_and_tells_its_children():
    said = python("-c", COMMAND)
    numbers = said.split("numbers ")[1].split()[:3]
    assert len(set(numbers)) == 1 and int(numbers[0]) >= 1
    assert f"threads   {numbers[0]} (" in said and "OMP_NUM_THREADS=1 fixes them" in said
    assert "numbers 1 1 1" in python("-c", COMMAND, LOCAL_WORLD_SIZE="4096")


def test_a_shell_asks_once():
    script = str(REPOSITORY / "spear_lib" / "runtime" / "threads.py")
    assert python(script, "2", OMP_NUM_THREADS="3") == ""
    exports = python(script, "4096").splitlines()
    assert exports[0] == "export OMP_NUM_THREADS=1"
    assert exports[1].startswith("export SPEAR_THREADS='1 (") and "shared by 4096 processes" in exports[1]
