"""tools/slurm under a real Slurm (cluster.py brings one up): what stand-ins cannot show.

Slow: run by tools/check_full.sh slow-slurm.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
from cluster import Slurm, why_not
from pretraining_fixtures import make_corpus, write_config
from test_slurm_templates import RUN, TIMES

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is a Slurm")]

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_STEPS = 60
TEMPLATES = REPOSITORY / "tools" / "slurm"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with Slurm(tmp_path_factory.mktemp("slurm"), nodes=3) as cluster:
        yield cluster


class Checkout:
    """A checkout with a toy recipe around real pre-training."""

    def __init__(self, folder: Path, slurm: Slurm, prepare: str = "exit 0\n") -> None:
        self.folder, self.slurm = folder, slurm
        self.recipe = folder / "egs" / "toy"
        data = self.recipe / "data"
        data.mkdir(parents=True)
        for name in ("tools", "spear_lib", "egs/common"):
            (folder / name).symlink_to(REPOSITORY / name)
        here = '#!/usr/bin/env bash\nhere=$(dirname "$0")\n'
        for name, text in (("run.sh", RUN), ("prepare.sh", here + prepare)):
            (self.recipe / name).write_text(text, encoding="utf-8")
            (self.recipe / name).chmod(0o755)

    def corpus(self, max_steps: int = MAX_STEPS) -> "Checkout":
        data = self.recipe / "data"
        train, valid = make_corpus(data, 12), make_corpus(data, 3, "dev")
        write_config(data, train, valid, max_steps=max_steps, save_interval=10, valid_interval=0)
        return self

    def submit(self, template: str, *options: str, words: tuple[str, ...] = (), **variables: str) -> str:
        """Number of the job; its log is job.log."""
        environment = {
            **self.slurm.environment,
            "PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        command = ["sbatch", "--parsable", "--cpus-per-task=2", "--time=60"]
        command += [f"--output={self.folder}/job.log", *options, str(TEMPLATES / template), "egs/toy", *words]
        before, self.slurm.environment = self.slurm.environment, environment
        try:
            return self.slurm(*command, cwd=self.folder).strip()
        finally:
            self.slurm.environment = before

    @property
    def log(self) -> str:
        path = self.folder / "job.log"
        return path.read_text() if path.exists() else ""

    def saved(self, step: int = 10) -> bool:
        return (self.recipe / f"exp/pretrain/checkpoints/step-{step:08d}.pt").exists()

    def until(self, condition, seconds: float = 150) -> None:
        try:
            self.slurm.wait(condition, seconds, "such a moment")
        except TimeoutError as error:
            raise AssertionError(self.log[-4000:]) from error

    def losses(self) -> list[dict]:
        lines = (self.recipe / "exp/pretrain/metrics.jsonl").read_text().splitlines()
        return [
            {key: value for key, value in json.loads(line).items() if not any(time in key for time in TIMES)}
            for line in lines
        ]

    def complete(self, job: str) -> None:
        assert self.slurm.finish(job) == "COMPLETED", self.log[-4000:]
        assert (self.recipe / "exp/.done/stage-10.json").exists()


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
    assert "still running after" not in checkout.log and time.monotonic() - began < 90
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


def test_the_last_task_of_an_array_is_requeued_alone(slurm, tmp_path):
    prepare = (
        'echo "$SLURM_ARRAY_TASK_ID" >>"$here/started"\n'
        "[[ $SLURM_ARRAY_TASK_ID == 3 && -z ${SLURM_RESTART_COUNT:-} ]] || exit 0\nsleep 300\n"
    )
    checkout = Checkout(tmp_path, slurm, prepare)
    job = checkout.submit("tokens_array.sh", "--array=1-3", "--gpus-per-node=0")
    started = checkout.recipe / "started"
    checkout.until(lambda: started.exists() and sorted(started.read_text().split()) == ["1", "2", "3"])
    slurm("scancel", "--batch", "--signal=USR1", f"{job}_3")
    checkout.until(lambda: slurm.job(f"{job}_3").get("Restarts") == "1")
    assert slurm.finish(f"{job}_3") == "COMPLETED", checkout.log
    assert [slurm.job(f"{job}_{task}")["Restarts"] for task in "12"] == ["0", "0"]
    assert sorted(started.read_text().split()) == ["1", "2", "3", "3"]


def test_an_array_from_zero_is_refused(slurm, tmp_path):
    checkout = Checkout(tmp_path, slurm)
    job = checkout.submit("tokens_array.sh", "--array=0-1", "--gpus-per-node=0")
    assert slurm.finish(f"{job}_0") == "FAILED"
    assert "task 0 is no part of 1 to 1" in checkout.log


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
    checkout = Checkout(tmp_path, slurm).corpus()
    job = checkout.submit(*TWO_NODES, "--nodelist=n2,n3")
    checkout.until(checkout.saved)
    slurm.kill_node("n3")
    try:
        checkout.until(lambda: slurm.job(job)["Restarts"] == "1", 120)
    finally:
        slurm.start_node("n3")
    checkout.complete(job)
    assert checkout.losses() == unbroken
