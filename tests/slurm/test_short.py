"""The shortest jobs under a real Slurm, without training: the only ones among the quick tests. Skipped where
Debian's slurm-wlm and munge are not installed; .ci/run installs them where it can."""

import time

import pytest
from checkout import Checkout
from cluster import Slurm, why_not

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is a Slurm"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with Slurm(tmp_path_factory.mktemp("slurm"), nodes=1, cpus=8) as cluster:
        yield cluster


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


def test_scancel_cancels_and_a_failure_is_not_requeued(slurm, tmp_path):
    prepare = 'touch "$here/started"\n[[ $* != *fail* ]] || exit 3\nsleep 300\n'
    checkout = Checkout(tmp_path, slurm, prepare)
    job = checkout.submit("tokens_array.sh", "--array=1-1", "--gpus-per-node=0")
    checkout.until((checkout.recipe / "started").exists)
    slurm("scancel", job)
    failing = checkout.submit("tokens_array.sh", "--array=1-1", "--gpus-per-node=0", words=("--fail", "1"))
    assert slurm.finish(f"{job}_1", 90) == "CANCELLED" and slurm.finish(f"{failing}_1", 90) == "FAILED"
    time.sleep(1)
    assert [slurm.job(f"{number}_1")["Restarts"] for number in (job, failing)] == ["0", "0"], checkout.log
    assert "failed with status 3" in checkout.log and "requeued; it goes on" not in checkout.log
