"""kill -9 in every stage of the recipe, then the same command again: the same tokens, batches and losses."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_recipe import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RECIPE = REPOSITORY / "egs" / "librispeech"
# What differs between two runs of the same training: clocks and speed.
TIMES = ("seconds", "_per_second", "minutes", "memory")


class Run:
    """One data folder and one experiment folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.exp = folder, folder / "data", folder / "exp"

    def command(self, script: str, *arguments: str) -> list[str]:
        options = [
            "--mini",
            "true",
            "--conf",
            "tiny",
            "--data-dir",
            str(self.data),
            "--exp-dir",
            str(self.exp),
        ]
        return [str(RECIPE / script), *options, *arguments]

    def start(self, script: str, *arguments: str) -> subprocess.Popen:
        environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        log = (self.folder / "log.txt").open("a")
        return subprocess.Popen(
            self.command(script, *arguments), env=environment, stdout=log, stderr=log, start_new_session=True
        )

    def finish(self, script: str, *arguments: str) -> None:
        status = self.start(script, *arguments).wait(timeout=1500)
        assert status == 0, (self.folder / "log.txt").read_text()[-3000:]

    def kill(self, script: str, stage: int, when: Callable[[], bool], delay: float = 0.0) -> None:
        """Start one stage, wait for ``when`` and ``delay`` more seconds, and kill the whole group."""
        process = self.start(script, "--stage", str(stage), "--stop-stage", str(stage))
        deadline = time.monotonic() + 300
        while not when():
            assert process.poll() is None, f"stage {stage} ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(delay)
        assert process.poll() is None, f"stage {stage} ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def marker(self, stage: int) -> Path:
        return (self.data if stage < 10 else self.exp) / ".done" / f"stage-{stage}.json"

    def contents(self, pattern: str) -> dict[str, str]:
        """Relative path -> hash of every file of the data folder that fits."""
        paths = (path for path in sorted(self.data.glob(pattern)) if path.is_file())
        return {
            str(path.relative_to(self.data)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
        }

    def losses(self, experiment: str) -> list[dict]:
        """Lines of metrics.jsonl without clocks; of a repeated step the last."""
        lines = (self.exp / experiment / "metrics.jsonl").read_text().splitlines()
        last = {}
        for line in map(json.loads, lines):
            kept = {key: value for key, value in line.items() if not any(time in key for time in TIMES)}
            last[line["step"], line["kind"]] = kept
        return [last[key] for key in sorted(last)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("unbroken"))
    run.finish("prepare.sh")
    run.finish("run.sh", "--stop-stage", "12")
    return run


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("broken"))


# The order matters: each stage needs the ones before it.
@pytest.mark.parametrize("stage", range(8))
def test_a_killed_stage_of_prepare(unbroken, broken, stage):
    started = broken.data / ".done" / f"stage-{stage}.started.json"
    # Once when the Python has just begun, once in the middle of its work.
    usual = json.loads(unbroken.marker(stage).read_text())["wall_seconds"]
    for delay in (0.3, 0.6 * usual):
        broken.kill("prepare.sh", stage, started.exists, delay)
        assert not broken.marker(stage).exists()
    broken.finish("prepare.sh", "--stage", str(stage), "--stop-stage", str(stage))
    assert broken.marker(stage).exists()


def test_the_data_is_that_of_the_unbroken_run(unbroken, broken):
    for pattern in (
        "corpus/*/LibriSpeech/**/*.flac",
        "tokens/**/*.bin",
        "quantizers/**/*.safetensors",
        "units/*",
    ):
        expected = unbroken.contents(pattern)
        assert expected, pattern
        assert broken.contents(pattern) == expected, pattern
    ids = [json.loads(run.marker(4).read_text())["identities"] for run in (unbroken, broken)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("stage", "experiment"), [(10, "pretrain"), (12, "finetune_pretrained"), (12, "finetune_scratch")]
)
def test_killed_training_goes_on_to_the_same_losses(unbroken, broken, stage, experiment):
    if stage == 12:
        broken.finish("run.sh", "--stop-stage", "11")
    checkpoint = broken.exp / experiment / "checkpoints" / "step-00000004.pt"
    broken.kill("run.sh", stage, checkpoint.exists)
    assert not broken.marker(stage).exists()
    if experiment != "finetune_pretrained":
        broken.finish("run.sh", "--stage", str(stage), "--stop-stage", str(stage))
        assert broken.losses(experiment) == unbroken.losses(experiment)
        assert len(broken.losses(experiment)) > 3


def test_the_first_arm_of_fine_tuning_too(unbroken, broken):
    assert broken.losses("finetune_pretrained") == unbroken.losses("finetune_pretrained")
