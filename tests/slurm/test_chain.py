"""tools/slurm/submit.sh: the whole tiny recipe under a real Slurm, and what it prints without one."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import Slurm, why_not

REPOSITORY = Path(__file__).resolve().parents[2]
KINDS = ["data", "quantizer", "tokens", "close", "pretrain", "average", "finetune", "evaluate", "report"]
STANDSTILL = 600
"""Seconds in which no job begins or ends and no log grows: the chain hangs."""
SMALL = "all: --cpus-per-task=2 --time=60\npretrain: --gpus-per-node=1\nfinetune: --gpus-per-node=1\n"


def submit(
    folder: Path, *options: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    command = ["bash", str(REPOSITORY / "tools" / "slurm" / "submit.sh"), "egs/librispeech", "--conf", "tiny"]
    command += ["--mini", "true", "--data-dir", "data", "--exp-dir", "exp", "--num-splits", "3", *options]
    own = {**(environment or os.environ), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=own, cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_dry_run_prints_the_chain_and_leaves_nothing(tmp_path):
    (tmp_path / "own").write_text("all: --account=speech\ntokens: --time=8:00:00\n")
    done = submit(tmp_path, "--dry-run", "--nodes", "4", "--throttle", "2", "--sbatch-file", "own")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("--job-name=spear-")[1].split()[0] for line in lines] == KINDS
    for before, line in zip(KINDS, lines[1:]):
        assert rf"--dependency=afterok:\<{before}\>" in line and "--kill-on-invalid-dep=yes" in line
    assert all("--account=speech" in line and f"{tmp_path}/exp" in line for line in lines)
    assert "--array=1-3%2" in lines[2] and "--time=8:00:00" in lines[2] and "--nodes=4" in lines[4]
    # Absolute, since the jobs run in a copy of the code.
    assert all(f"--data-dir {tmp_path}/data" in line for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own"]


def test_what_is_done_is_not_submitted(tmp_path):
    for number in (0, 1, 2, 3, 4):
        marker = tmp_path / "data" / ".done" / f"stage-{number}.json"
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text("{}")
    # Part 2 of 3 is missing in one of the two stores.
    for name, made in (("train", (0, 2)), ("dev", (0, 1, 2))):
        store = tmp_path / "data" / "tokens" / "spectral" / name
        (store / "shards").mkdir(parents=True)
        (store / "plan.json").write_text(json.dumps({"ends": [1, 2, 3]}))
        for shard in made:
            (store / "shards" / f"shard-{shard:05d}.bin").touch()
            (store / "shards" / f"shard-{shard:05d}.json").write_text('{"num_bytes": 0}')
    done = submit(tmp_path, "--dry-run")
    lines = done.stdout.splitlines()
    assert len(lines) == 7, done.stderr
    assert "--array=2 " in lines[0] and "SPEAR_NUM_SPLITS=3" in lines[0] and "--dependency" not in lines[0]


def test_more_parts_than_an_array_may_have_are_chunks(tmp_path):
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 'MaxArraySize            = 1001'\n")
    (tmp_path / "scontrol").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ("--dry-run", "--throttle", "64")
    text = submit(tmp_path, *command, environment=environment).stdout
    assert text.count("--array=") == 1
    script = [str(REPOSITORY / "tools" / "slurm" / "submit.sh"), "egs/librispeech", "--num-splits", "2500"]
    script += ["--exp-dir", str(tmp_path / "exp"), "--data-dir", str(tmp_path / "data"), *command]
    done = subprocess.run(
        ["bash", *script], env={**environment, "PYTHON": sys.executable}, capture_output=True, text=True
    )
    arrays = [line for line in done.stdout.splitlines() if "--array=" in line]
    assert [line.split("--array=")[1].split()[0] for line in arrays] == ["1-1000%64", "1-1000%64", "1-500%64"]
    assert [line.split("SPEAR_SPLIT_OFFSET=")[1].split()[0] for line in arrays] == ["0", "1000", "2000"]


@pytest.mark.parametrize(
    "options, words",
    [
        (("--stage", "3"), "--stage: each job has its own; leave it out"),
        (("--nodes", "0"), "--nodes takes a whole number of at least 1, got '0'"),
        (("--confg", "x"), "unknown option --confg: neither egs/librispeech/prepare.sh nor run.sh has it"),
        (("--sbatch-file", "none"), "there is no file"),
        (("stray",), "positional argument 'stray'"),
        (("--teacher",), "--teacher needs a value"),
        (("--status",), "no chain was submitted for"),
    ],
)
def test_mistakes_end_with_one_line(tmp_path, options, words):
    done = submit(tmp_path, *options)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


class Chain:
    """The tiny recipe in a folder of its own."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm, self.folder = slurm, folder
        folder.mkdir()
        (folder / "own").write_text(SMALL)

    def submit(self, *options: str) -> str:
        done = submit(self.folder, "--sbatch-file", "own", *options, environment=self.slurm.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ids(self) -> dict[str, str]:
        lines = (self.folder / "exp" / "slurm" / "jobs.txt").read_text().splitlines()
        return dict(line.split() for line in lines)

    def states(self) -> dict[str, str]:
        """Of the last job of each kind."""
        return {kind: self.slurm.state(number) for kind, number in self.ids().items()}

    def waiting(self) -> list[str]:
        return self.slurm("squeue", "--noheader", "--format=%A").split()

    def running(self, kind: str) -> bool:
        """Whether the last job of this kind, or a task of it, runs or has run."""
        states = self.slurm(
            "squeue", "--noheader", "--states=all", f"--jobs={self.ids()[kind]}", "--format=%T"
        )
        return bool(set(states.split()) - {"PENDING"})

    def finish(self) -> None:
        """Waits until no job is left, as long as anything moves: how long it takes says how busy the machine
        is, and nothing of the chain."""
        seen, since = None, time.monotonic()
        while self.waiting():
            logs = sorted((path.name, path.stat().st_size) for path in self.folder.glob("exp/slurm/*.log"))
            now = self.slurm("squeue", "--noheader", "--format=%A %T"), logs
            if now != seen:
                seen, since = now, time.monotonic()
            assert time.monotonic() - since < STANDSTILL, f"nothing moves: {seen}"
            time.sleep(1)

    def results(self) -> dict[str, object]:
        data, exp = self.folder / "data", self.folder / "exp"
        shards = sorted((data / "tokens").rglob("shard-*.bin"))
        tokens = [hashlib.sha256(path.read_bytes()).hexdigest() for path in shards]
        metrics = (exp / "pretrain" / "metrics.jsonl").read_text().splitlines()
        losses = [{key: json.loads(line).get(key) for key in ("kind", "step", "loss")} for line in metrics]
        weights = (exp / "pretrain" / "encoder" / "model.safetensors").read_bytes()
        # Below the first line, which names the folder.
        recognised = [
            path.read_text().split("\n", 1)[1] for path in sorted(exp.glob("finetune_*/decode/errs-*.txt"))
        ]
        assert tokens and len(recognised) == 6
        return {
            "tokens": tokens,
            "losses": losses,
            "encoder": hashlib.sha256(weights).hexdigest(),
            "recognised": recognised,
        }


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is a Slurm")
def test_the_chain_of_a_recipe_killed_at_three_moments_gives_the_same(tmp_path):
    """The moments: some seconds after a job of data or tokens, of pre-training, and of what follows began."""
    draws = random.Random(21)
    with Slurm(tmp_path / "slurm", nodes=2) as slurm:
        whole = Chain(slurm, tmp_path / "whole")
        began = time.monotonic()
        assert whole.submit().count("submitted") == len(KINDS)
        whole.finish()
        minutes = (time.monotonic() - began) / 60
        states = whole.states()
        logs = "".join(path.read_text()[-1500:] for path in (tmp_path / "whole/exp/slurm").glob("*.log"))
        assert set(states.values()) == {"COMPLETED"}, f"{states}\n{logs[-6000:]}"
        print(f"the chain took {minutes:.1f} min: {states}")
        assert (tmp_path / "whole/exp/report/report.html").exists()
        assert (
            "all stages are done" in whole.submit()
            and "stages done: 0 1 2 3 4 5 6 7 10 11" in whole.submit("--status")
        )

        killed = Chain(slurm, tmp_path / "killed")
        parts = KINDS[:3], ["pretrain"], KINDS[5:]
        for kind in [draws.choice(part) for part in parts]:
            killed.submit()
            slurm.wait(lambda kind=kind: killed.running(kind), STANDSTILL + 60 * minutes, f"job {kind}")
            time.sleep(draws.uniform(0, 8))
            print(f"killed in {kind}: {sorted(killed.states().values())}")
            slurm("scancel", *killed.waiting(), check=False)
            killed.finish()
        killed.submit()
        killed.finish()
        assert set(killed.states().values()) <= {"COMPLETED", "CANCELLED"}, killed.states()
        assert whole.results() == killed.results()
