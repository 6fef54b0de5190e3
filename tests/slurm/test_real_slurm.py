"""Training by tools/slurm under a real Slurm (cluster.py brings one up): what stand-ins cannot show.

Slow: run by tools/check_full.sh slow-slurm.
"""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from checkout import REPOSITORY, Checkout
from cluster import Slurm, patience, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is a Slurm"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with Slurm(tmp_path_factory.mktemp("slurm"), nodes=3) as cluster:
        yield cluster


ONE = ("single_node.sh", "--gpus-per-node=1")
TWO_TASKS = ("single_node.sh", "--gpus-per-node=2")
TWO_NODES = ("multi_node.sh", "--nodes=2", "--gpus-per-node=1")


@pytest.fixture(scope="module")
def unbroken(slurm, tmp_path_factory):
    """Losses of the run that nobody stops, of two processes on two nodes."""
    checkout = Checkout(tmp_path_factory.mktemp("unbroken"), slurm).corpus()
    checkout.complete(checkout.submit(*TWO_NODES))
    return checkout.losses()


@pytest.mark.parametrize("template", [TWO_NODES, TWO_TASKS], ids=["two nodes", "two tasks of a node"])
def test_usr1_saves_requeues_and_goes_on_exactly(slurm, unbroken, tmp_path, template):
    checkout = Checkout(tmp_path, slurm).corpus()
    job = checkout.submit(*template)
    checkout.until(checkout.saved)
    slurm("scancel", "--batch", "--signal=USR1", job)
    checkout.until(lambda: slurm.job(job)["Restarts"] == "1")
    assert "stage 10 was told to stop and saved its state" in checkout.log, checkout.log[-3000:]
    assert "requeued; it goes on" in checkout.log and "failed with status" not in checkout.log
    checkout.complete(job)
    assert checkout.losses() == unbroken


def test_usr1_while_a_job_of_two_nodes_starts_is_not_lost(slurm, tmp_path):
    """The tasks died of it, or the whole grace went by."""
    checkout = Checkout(tmp_path, slurm).corpus()
    job = checkout.submit(*TWO_NODES, SPEAR_GRACE_SECONDS="100")
    checkout.until(lambda: "stage 10: pre-training" in checkout.log)
    began = time.monotonic()
    slurm("scancel", "--batch", "--signal=USR1", job)
    checkout.until(lambda: slurm.job(job)["Restarts"] == "1", 90)
    assert "still running after" not in checkout.log and time.monotonic() - began < patience(90)
    checkout.complete(job)


@pytest.mark.parametrize("template", [ONE, TWO_NODES], ids=["one process", "two nodes"])
def test_scancel_cancels(slurm, tmp_path, template):
    checkout = Checkout(tmp_path, slurm).corpus(100_000)
    job = checkout.submit(*template)
    checkout.until(checkout.saved)
    slurm("scancel", job)
    assert slurm.finish(job, 90) == "CANCELLED", checkout.log[-3000:]
    time.sleep(3)
    assert slurm.job(job)["JobState"] == "CANCELLED" and slurm.job(job)["Restarts"] == "0"
    assert "requeued; it goes on" not in checkout.log


def test_two_jobs_share_a_node(slurm, tmp_path):
    jobs = []
    for name in ("a", "b"):
        checkout = Checkout(tmp_path / name, slurm).corpus(20)
        jobs.append(
            (
                checkout,
                checkout.submit(
                    "single_node.sh", "--gpus-per-node=1", "--nodelist=n1", words=("--nproc", "2")
                ),
            )
        )
    for checkout, job in jobs:
        checkout.complete(job)


def test_without_the_environment_the_nodes_use_this_checkout(slurm, tmp_path):
    """sbatch --export=NONE: srun passed nothing on."""
    checkout = Checkout(tmp_path, slurm).corpus(20)
    # The only things that a job without the environment of its submission lacks here.
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "egs" / "common").unlink()
    (tmp_path / "egs" / "common").mkdir()
    for path in (REPOSITORY / "egs" / "common").iterdir():
        target = tmp_path / "egs" / "common" / path.name
        target.write_bytes(path.read_bytes()) if path.is_file() else target.symlink_to(path)
    job = checkout.submit(*TWO_NODES, f"--export=SLURM_CONF={os.fspath(slurm.folder / 'slurm.conf')}")
    checkout.complete(job)


def test_a_killed_process_is_begun_again_in_the_job(slurm, unbroken, tmp_path):
    checkout = Checkout(tmp_path, slurm).corpus()
    job = checkout.submit(*TWO_NODES)
    checkout.until(checkout.saved)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            facts = set((process / "environ").read_bytes().split(b"\0"))
        except OSError:
            continue
        if {
            b"SLURM_JOB_ID=%s" % job.encode(),
            b"RANK=1",
            f"SLURM_CONF={slurm.folder}/slurm.conf".encode(),
        } <= facts:
            os.kill(int(process.name), signal.SIGKILL)
    checkout.complete(job)
    assert slurm.job(job)["Restarts"] == "0" and "begun again, 1 of 2 times" in checkout.log
    assert checkout.losses() == unbroken


def test_a_lost_node_restarts_the_job_and_it_goes_on(slurm, unbroken, tmp_path):
    """On the other nodes: the lost one, back within seconds, would be sent what was meant for the job's first
    life."""
    checkout = Checkout(tmp_path, slurm).corpus()
    job = checkout.submit(*TWO_NODES)
    checkout.until(checkout.saved)
    lost = slurm("scontrol", "show", "hostnames", slurm.job(job)["NodeList"]).split()[-1]
    slurm.kill_node(lost)
    try:
        checkout.until(lambda: slurm.job(job)["Restarts"] == "1", 120)
        checkout.complete(job)
    finally:
        slurm.start_node(lost)
    assert checkout.losses() == unbroken
