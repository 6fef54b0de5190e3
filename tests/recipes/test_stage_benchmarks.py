"""Stage 15: on an encoder that is named, off by default, skipped when it is done."""

import subprocess
import sys

from toy_recipe import REPOSITORY
from zipformer_fixtures import TINY

from spear_lib.encoders import load_encoder, save_encoder
from spear_lib.encoders.zipformer import ZipformerConfig


def test_benchmarks_of_an_encoder(tmp_path):
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
    }
    environment["PYTHONPATH"] = str(REPOSITORY)

    def run(*command: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600
        )

    save_encoder(load_encoder(ZipformerConfig(**TINY)), tmp_path / "encoder", {})
    command = ["egs/librispeech/run.sh", "--stage", "15", "--stop-stage", "15", "--conf", "tiny"]
    command += ["--encoder", str(tmp_path / "encoder"), "--exp-dir", str(tmp_path / "exp")]
    command += ["--data-dir", str(tmp_path / "data")]
    first = run(*command)
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "exp/benchmarks/onsets/results.json").is_file()
    assert "event_onset_200ms_fms" in (tmp_path / "exp/benchmarks/report.md").read_text()
    assert (tmp_path / "exp/.done/stage-15.json").is_file()
    again = run(*command)
    assert again.returncode == 0 and "stage 15" in again.stdout + again.stderr
    assert "task 1 of" not in again.stderr
