"""The quantiser's training on two gloo ranks is that on one; SIGKILL at any point, and the next run ends the
same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from spear_lib.quantization import Quantizer
from spear_lib.runtime.files import write_text

REPOSITORY = Path(__file__).parents[2]
sys.path.append(str(REPOSITORY / "tests" / "numerics"))
from quantizer_fixtures import toy_frames, write_embeddings  # noqa: E402

CONFIG = """
training:
  num_codebooks: 3
  codebook_size: 16
  shuffle_frames: 700
  init_frames: 900
  init_iterations: 4
  rounds: 5
  frames_per_round: 1000
  classifier_frames: 1000
  classifier_steps: 120
  classifier_batch: 128
"""
REFERENCE = """
training:
  method: reference
  search: reference
  num_codebooks: 1
  shuffle_frames: 700
  phase_one_steps: 8
  phase_two_steps: 8
  batch_frames: 128
"""


def command(folder: Path, config: str, ranks: int = 1) -> list[str]:
    """Trains on toy frames into folder/out."""
    if not (folder / "embeddings").exists():
        write_embeddings(folder / "embeddings", toy_frames(2000))
        write_text(folder / "quantizer.yaml", config)
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    module = ["-m", "spear_lib.bin.train_quantizer", "--config", str(folder / "quantizer.yaml")]
    return [
        *launcher,
        *module,
        "--embeddings",
        str(folder / "embeddings"),
        "--output_dir",
        str(folder / "out"),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def train(folder: Path, config: str, ranks: int = 1) -> tuple[Quantizer, dict]:
    done = subprocess.run(
        command(folder, config, ranks), env=environment(), capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return Quantizer.load(folder / "out"), json.loads((folder / "out" / "report.json").read_text())


@pytest.mark.parametrize("config", [CONFIG, REFERENCE], ids=["least squares", "reference"])
def test_two_ranks_train_the_quantiser_of_one(config, tmp_path):
    one, report_one = train(tmp_path / "1", config)
    two, report_two = train(tmp_path / "2", config, ranks=2)
    assert two.search == one.search
    for first, second in zip(report_one["history"], report_two["history"]):
        assert second == pytest.approx(first, rel=1e-3)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, atol=2e-3, rtol=1e-2)
    x = toy_frames(400, seed=7)
    assert (one.encode(x) == two.encode(x)).float().mean() > 0.98


def killed_after(folder: Path, config: str, stop) -> bool:
    """Starts the training and kills it with SIGKILL as soon as ``stop()``; False if it ended before."""
    process = subprocess.Popen(
        command(folder, config), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        if stop():
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    return False


def saved(folder: Path) -> int:
    """When the training state was last renamed, ns; 0 before the first time."""
    path = folder / "out" / "training_state.pt"
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def assert_killed_ends_the_same(tmp_path: Path, config: str, saves_before_kill: list[int]) -> None:
    whole, report = train(tmp_path / "whole", config)
    kills = 0
    for count in saves_before_kill:
        seen = {saved(tmp_path / "killed")}

        def enough(seen=seen, count=count) -> bool:
            seen.add(saved(tmp_path / "killed"))
            return len(seen) > count

        kills += killed_after(tmp_path / "killed", config, enough)
    # On a fast machine a run may end before the kill arrives; most must have been hit.
    assert kills > len(saves_before_kill) // 2
    again, again_report = train(tmp_path / "killed", config)
    assert again.id == whole.id
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    # Folders differ by name only.
    assert again_report["history"] == report["history"]
    assert again_report["relative_error"] == report["relative_error"]


def test_sigkill_and_the_next_run_ends_bit_for_bit_the_same(tmp_path):
    assert_killed_ends_the_same(tmp_path, CONFIG, [2, 3])


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, saves", [(CONFIG, [1, 1, 1, 1, 1, 1, 1, 1]), (CONFIG, [7]), (CONFIG, [3, 1, 2, 2])]
)
def test_sigkill_at_many_points(config, saves, tmp_path):
    assert_killed_ends_the_same(tmp_path, config, saves)
