"""tools/slurm without Slurm: stand-ins for its commands, a toy recipe around real pre-training."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests" / "data"))
from pretraining_fixtures import make_corpus, write_config  # noqa: E402

MAX_STEPS = 60
# Both signals in the quick tests, both for every template in the nightly ones.
slow = pytest.mark.slow
USR1, TERM = signal.SIGUSR1, signal.SIGTERM
TIMES = ("seconds", "_per_second", "hours")

RUN = r"""#!/usr/bin/env bash
# A toy: pre-training alone.

set -euo pipefail
caller_dir=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../common/parse_options.sh
source ../common/stages.sh
option stage 10 "First stage" int
option stop_stage 10 "Last stage" int
option data_dir data "Data" path
option exp_dir exp "Where it writes" path
option nproc 1 "Processes" int
option num_nodes 1 "Machines" int
option node_rank 0 "This machine" int
option rendezvous "" "Where they meet"
parse_options "$@"
find_python
stage_10() {
  launch spear_lib.bin.pretrain --config "$data_dir/config.yaml" --experiment_dir "$exp_dir/pretrain"
}
run_stage 10 "pre-training" stage_10 --leaves "$exp_dir/pretrain"
"""
# Says what it was given, and does what the file "behaviour" beside it says.
PREPARE = r"""#!/usr/bin/env bash
here=$(dirname "$0")
printf '%s\n' "$*" >>"$here/arguments.txt"
source "$here/behaviour"
"""
STAND_INS = {
    "scontrol": """
if [[ $* == *"show job"* ]]; then
  printf 'JobId=1 JobState=%s Restarts=0\\n' "${SPEAR_TEST_STATE:-RUNNING}"
else
  printf "scontrol %s\\n" "$*" >>"$SPEAR_TEST/calls.txt"
fi
""",
    # As Slurm's: a task has the signals' defaults, SIGUSR1 is passed on to it, the highest status counts.
    "srun": f"""exec {sys.executable} - "$@" <<'PYTHON'
import os, signal, subprocess, sys
command = sys.argv[1:]
options = {{}}
while command[0].startswith("--"):
    name, _, value = command.pop(0).partition("=")
    options[name] = value
count, nodes = int(options["--ntasks"]), int(options["--nodes"])
facts = {{"SLURM_NTASKS": str(count), "SLURM_NNODES": str(nodes), "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}}
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
tasks = []
signal.signal(signal.SIGUSR1, lambda number, frame: [task.send_signal(number) for task in tasks])
for rank in range(count):
    local = rank % (count // nodes)
    own = {{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), **facts}}
    tasks.append(subprocess.Popen(command, env={{**os.environ, **own}}, start_new_session=True))
sys.exit(max(status if status >= 0 else 128 - status for status in [task.wait() for task in tasks]))
PYTHON""",
}


class Cluster:
    """A checkout with a toy recipe, and the commands of Slurm."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        recipe = folder / "egs" / "toy"
        (recipe / "data").mkdir(parents=True)
        for name in ("tools", "spear_lib", "egs/common"):
            (folder / name).symlink_to(REPOSITORY / name)
        self.recipe, self.exp = recipe, recipe / "exp"
        for path, text in ((recipe / "run.sh", RUN), (recipe / "prepare.sh", PREPARE)):
            self._script(path, text)
        (folder / "bin").mkdir()
        for name, text in STAND_INS.items():
            self._script(folder / "bin" / name, f"#!/usr/bin/env bash\n{text}\n")

    @staticmethod
    def _script(path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def corpus(self) -> None:
        data = self.recipe / "data"
        train, valid = make_corpus(data, 12), make_corpus(data, 3, "dev")
        write_config(data, train, valid, max_steps=MAX_STEPS, save_interval=10, valid_interval=0)

    def submit(self, template: str, *arguments: str, **variables: str) -> subprocess.Popen:
        """What Slurm does: the batch script, in a session of its own, from the folder of the submission."""
        environment = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "SPEAR_TEST": str(self.folder),
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_GPUS_ON_NODE": "2",
            **variables,
        }
        log = (self.folder / "log.txt").open("a")
        command = ["bash", str(self.folder / "tools" / "slurm" / template), "egs/toy", *arguments]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def calls(self) -> list[str]:
        path = self.folder / "calls.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def step(self) -> int:
        """Step of the saved state."""
        path = self.exp / "pretrain" / "checkpoints" / "last.pt"
        return torch.load(path, weights_only=True)["step"] if path.exists() else 0

    def losses(self) -> list[dict]:
        lines = (self.exp / "pretrain" / "metrics.jsonl").read_text().splitlines()
        return [
            {key: value for key, value in json.loads(line).items() if not any(time in key for time in TIMES)}
            for line in lines
        ]


def wait_until(condition, process, cluster, seconds=240):
    """Wait for ``condition``, while ``process`` lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended early:\n{cluster.log()[-3000:]}"
        assert time.monotonic() < deadline, cluster.log()[-3000:]
        time.sleep(0.05)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("unbroken"))
    cluster.corpus()
    process = cluster.submit("single_node.sh", SLURM_GPUS_ON_NODE="1")
    assert process.wait(timeout=300) == 0, cluster.log()[-3000:]
    assert cluster.calls() == []
    return cluster


def interrupt_and_finish(cluster, template, number, **variables):
    """A job that gets ``number`` after some steps, and the one that is queued for it."""
    cluster.corpus()
    process = cluster.submit(template, **variables)
    wait_until((cluster.exp / "pretrain" / "checkpoints" / "step-00000010.pt").exists, process, cluster)
    process.send_signal(number)  # to the batch script alone, as --signal=B: does
    assert process.wait(timeout=120) == 75, cluster.log()[-3000:]
    calls = cluster.calls()
    assert f"scontrol requeue {os.getpid()}" in calls
    saved = cluster.step()
    assert 10 <= saved < MAX_STEPS
    assert not (cluster.exp / ".done" / "stage-10.json").exists()
    process = cluster.submit(template, SLURM_RESTART_COUNT="1", **variables)
    assert process.wait(timeout=300) == 0, cluster.log()[-3000:]
    assert f"step {saved}, epoch" in cluster.log()  # "going on from ..."
    assert (cluster.exp / ".done" / "stage-10.json").exists()
    assert cluster.step() == MAX_STEPS
    assert cluster.calls() == []
    return calls


@pytest.mark.parametrize("number", [USR1, pytest.param(TERM, marks=slow)])
def test_a_job_of_one_process_saves_is_requeued_and_goes_on(tmp_path, unbroken, number):
    cluster = Cluster(tmp_path)
    interrupt_and_finish(cluster, "single_node.sh", number, SLURM_GPUS_ON_NODE="1")
    assert cluster.losses() == unbroken.losses()


@slow
@pytest.mark.parametrize("number", [USR1, TERM])
def test_a_job_of_two_processes_saves_is_requeued_and_goes_on(tmp_path, unbroken, number):
    cluster = Cluster(tmp_path)
    interrupt_and_finish(cluster, "single_node.sh", number)
    both = zip(cluster.losses(), unbroken.losses(), strict=True)
    assert all(ours == pytest.approx(theirs, abs=2e-4) for ours, theirs in both)


@pytest.mark.parametrize("number", [pytest.param(USR1, marks=slow), TERM])
def test_a_job_of_two_machines_saves_is_requeued_and_goes_on(tmp_path, unbroken, number):
    cluster = Cluster(tmp_path)
    variables = {"SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "1"}
    interrupt_and_finish(cluster, "multi_node.sh", number, **variables)
    both = zip(cluster.losses(), unbroken.losses(), strict=True)
    assert all(ours == pytest.approx(theirs, abs=2e-4) for ours, theirs in both)


def array_task(tmp_path, behaviour, **variables):
    cluster = Cluster(tmp_path)
    (cluster.recipe / "behaviour").write_text(behaviour, encoding="utf-8")
    variables = {
        "SLURM_ARRAY_JOB_ID": str(os.getpid()),
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_ARRAY_TASK_MAX": "100",
        "SLURM_ARRAY_TASK_COUNT": "100",
        **variables,
    }
    return cluster, cluster.submit("tokens_array.sh", "--teacher", "wavlm", **variables)


def test_a_task_of_an_array_makes_its_part(tmp_path):
    cluster, process = array_task(tmp_path, "exit 0")
    assert process.wait(timeout=60) == 0, cluster.log()
    arguments = (cluster.recipe / "arguments.txt").read_text()
    assert arguments == "--stage 5 --stop-stage 5 --num-splits 100 --split 7 --teacher wavlm\n"
    assert cluster.calls() == []


@pytest.mark.parametrize("number", [USR1, TERM])
def test_a_task_of_an_array_that_is_told_to_stop_is_requeued(tmp_path, number):
    cluster, process = array_task(tmp_path, 'touch "$here/started"\nsleep 60')
    wait_until((cluster.recipe / "started").exists, process, cluster)
    process.send_signal(number)
    assert process.wait(timeout=30) == 75, cluster.log()
    assert cluster.calls() == [f"scontrol requeue {os.getpid()}_7"]  # not the whole array


def test_a_command_that_fails_is_not_requeued(tmp_path):
    cluster, process = array_task(tmp_path, "exit 3")
    assert process.wait(timeout=60) == 3
    assert cluster.calls() == [] and "failed with status 3" in cluster.log()


def test_status_75_is_requeued_until_the_limit(tmp_path):
    cluster, process = array_task(tmp_path, "exit 75", SLURM_RESTART_COUNT="4", SPEAR_MAX_RESTARTS="5")
    assert process.wait(timeout=60) == 75
    assert cluster.calls() == [f"scontrol requeue {os.getpid()}_7"]
    cluster, process = array_task(
        tmp_path / "more", "exit 75", SLURM_RESTART_COUNT="5", SPEAR_MAX_RESTARTS="5"
    )
    assert process.wait(timeout=60) == 75
    assert cluster.calls() == [] and "restarted 5 times (SPEAR_MAX_RESTARTS)" in cluster.log()


def test_what_does_not_stop_is_requeued_when_the_grace_is_over(tmp_path):
    stubborn = "trap '' TERM\ntouch \"$here/started\"\nsleep 4\nexit 0"
    cluster, process = array_task(tmp_path, stubborn, SPEAR_GRACE_SECONDS="1")
    wait_until((cluster.recipe / "started").exists, process, cluster)
    process.send_signal(signal.SIGUSR1)
    wait_until((cluster.folder / "calls.txt").exists, process, cluster, 30)
    assert "still running after 1 s" in cluster.log()
    process.wait(timeout=30)


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PENDING"])
def test_what_slurm_has_ended_is_not_requeued(tmp_path, state):
    """scancel cancels; a job that Slurm itself has requeued is not told to be submitted again."""
    cluster, process = array_task(tmp_path, 'touch "$here/started"\nsleep 60', SPEAR_TEST_STATE=state)
    wait_until((cluster.recipe / "started").exists, process, cluster)
    process.send_signal(TERM)
    assert process.wait(timeout=30) == 75
    assert cluster.calls() == [] and f"Slurm has ended this job (now {state})" in cluster.log()


@pytest.mark.parametrize(
    "variables, words",
    [
        ({"SLURM_ARRAY_TASK_ID": "0"}, "task 0 is no part of 1 to 100: sbatch --array=1-N"),
        ({"SLURM_ARRAY_TASK_COUNT": "3"}, "the array has 3 tasks up to 100"),
        ({"SPEAR_NUM_SPLITS": "5"}, "task 7 is no part of 1 to 5"),
    ],
)
def test_an_array_that_does_not_say_which_part_is_refused(tmp_path, variables, words):
    cluster, process = array_task(tmp_path, "exit 0", **variables)
    assert process.wait(timeout=30) == 2
    assert words in cluster.log() and not (cluster.recipe / "arguments.txt").exists()


def test_a_command_that_a_signal_killed_is_begun_again_a_stated_number_of_times(tmp_path):
    cluster, process = array_task(tmp_path, "kill -BUS $$", SPEAR_MAX_RETRIES="1")
    assert process.wait(timeout=60) == 128 + signal.SIGBUS
    assert cluster.log().count("begun again, 1 of 1 times (SPEAR_MAX_RETRIES)") == 1
    assert len((cluster.recipe / "arguments.txt").read_text().splitlines()) == 2 and cluster.calls() == []


def test_a_template_without_a_recipe_says_how(tmp_path):
    cluster = Cluster(tmp_path)
    environment = {**os.environ, "SLURM_SUBMIT_DIR": str(cluster.folder)}
    for template in ("single_node.sh", "multi_node.sh", "tokens_array.sh"):
        path = cluster.folder / "tools" / "slurm" / template
        done = subprocess.run(
            ["bash", str(path)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0 and f"tools/slurm/{template} egs/librispeech" in done.stderr


def test_templates_ask_for_requeueing_and_a_signal():
    for template in ("single_node.sh", "multi_node.sh", "tokens_array.sh"):
        text = (REPOSITORY / "tools" / "slurm" / template).read_text(encoding="utf-8")
        for line in ("--requeue", "--open-mode=append", "--signal=B:USR1@120"):
            assert f"#SBATCH {line}\n" in text, (template, line)
        assert template in (REPOSITORY / "tools" / "slurm" / "README.md").read_text(encoding="utf-8")
