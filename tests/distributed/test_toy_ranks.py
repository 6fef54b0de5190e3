"""The loop on two gloo processes with a toy task: sums, freezing, accumulation, stopping together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spear_lib.runtime.metrics_log import read_metrics

REPOSITORY = Path(__file__).parents[2]


def start(folder, processes, options, *more):
    """Runs toy_run.py; returns (status, standard error)."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    script = str(Path(__file__).with_name("toy_run.py"))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*launcher, script, str(folder), json.dumps(options), *more],
        env=environment,
        capture_output=True,
        text=True,
        timeout=550,
    )
    return result.returncode, result.stderr


def losses(folder):
    return {(line["kind"], line["step"]): line["loss"] for line in read_metrics(folder / "metrics.jsonl")}


def test_frozen_then_thawed_with_accumulation_on_two_ranks(tmp_path):
    options = {"freeze": ["encoder"], "freeze_steps": 5, "accumulate_batches": 2, "log_interval": 2}
    for processes in (1, 2):
        status, log = start(tmp_path / str(processes), processes, options)
        assert status == 0, log
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert list(one) == list(two) and len(one) == 9
    assert two == pytest.approx(one, abs=1e-5)


def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on(tmp_path):
    status, log = start(tmp_path / "two", 2, {}, "4")
    assert status != 0 and (tmp_path / "two" / "checkpoints" / "last.pt").exists(), log
    assert max(step for _, step in losses(tmp_path / "two")) == 4
    # The rest of it on one process: the position in the data belongs to the run, not to a rank.
    assert start(tmp_path / "two", 1, {})[0] == 0
    assert start(tmp_path / "one", 1, {})[0] == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
