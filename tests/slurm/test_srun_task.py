"""What a process that srun starts is told: its place, and the network that leads to the first machine.

Whatever address /etc/hosts gives the machine's own name: 127.0.1.1 on Debian, which gloo would announce."""

import os
import subprocess
from pathlib import Path

import pytest

TASK = Path(__file__).resolve().parents[2] / "egs" / "common" / "srun_task.sh"
FIRST = "10.7.0.5"
# What iproute2 prints on the first machine, and on another one that has two networks.
ON_THE_FIRST = f"""
case "$*" in
  "-o route get {FIRST}") echo "local {FIRST} dev lo src {FIRST} uid 0 \\\\    cache <local>" ;;
  "-o addr show to {FIRST}") echo "4: ib0    inet {FIRST}/16 brd 10.7.255.255 scope global ib0" ;;
  *) exit 1 ;;
esac
"""
ON_ANOTHER = f"""
case "$*" in
  "-o route get {FIRST}") echo "{FIRST} via 10.6.0.1 dev eth1 src 10.6.0.9 uid 0 \\\\    cache" ;;
  *) exit 1 ;;
esac
"""


def told(folder: Path, ip: str, nodes: int = 2, **environment) -> dict[str, str]:
    """The environment of the process, with a stand-in for the command ``ip``."""
    stand_in = folder / "ip"
    stand_in.write_text(f"#!/bin/sh\n{ip}")
    stand_in.chmod(0o755)
    slurm = {"PROCID": 3, "NTASKS": 4, "LOCALID": 1, "NNODES": nodes, "LAUNCH_NODE_IPADDR": FIRST}
    variables = {f"SLURM_{name}": str(value) for name, value in slurm.items()} | environment
    done = subprocess.run(
        ["bash", str(TASK), "env"],
        env={"PATH": f"{folder}:{os.environ['PATH']}", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize(("ip", "interface"), [(ON_THE_FIRST, "ib0"), (ON_ANOTHER, "eth1")])
def test_gloo_takes_the_network_of_the_first_machine(tmp_path, ip, interface):
    found = told(tmp_path, ip)
    assert found["GLOO_SOCKET_IFNAME"] == interface and found["MASTER_ADDR"] == FIRST
    assert [found[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")] == list("3412")


def test_what_the_user_says_counts_and_one_machine_needs_nothing(tmp_path):
    assert told(tmp_path, ON_ANOTHER, GLOO_SOCKET_IFNAME="bond0")["GLOO_SOCKET_IFNAME"] == "bond0"
    assert "GLOO_SOCKET_IFNAME" not in told(tmp_path, ON_ANOTHER, nodes=1)
    assert "GLOO_SOCKET_IFNAME" not in told(tmp_path, "exit 1")
    assert told(tmp_path, "exit 1", SPEAR_MASTER_ADDR="10.9.0.1")["MASTER_ADDR"] == "10.9.0.1"


def test_the_signal_that_means_save_does_not_kill_what_does_not_listen_yet():
    """Ignored until training sets its handler."""
    command = ["bash", str(TASK), "bash", "-c", "kill -USR1 $$; echo alive"]
    slurm = {"PROCID": "0", "NTASKS": "1", "LOCALID": "0", "NNODES": "1"}
    variables = {f"SLURM_{name}": value for name, value in slurm.items()}
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "alive\n"
