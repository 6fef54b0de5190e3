"""kill -9 of two ranks with two data workers each, on both domains with every augmentation on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from dataset_fixtures import make_cuts
from pretraining_fixtures import command, environment, run, write_two_domain_config

from spear_lib.data.manifests import save_cuts
from spear_lib.runtime.metrics_log import read_metrics

STEPS = 14


def children(process: int) -> list[int]:
    """The process and all its descendants."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it ended meanwhile
    found = [process]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def reported(experiment_dir: Path) -> dict:
    """(kind, step) -> everything but times."""
    lines = read_metrics(experiment_dir / "metrics.jsonl")
    timing = {"seconds", "audio_seconds_per_second"}
    values = {
        (line["kind"], line["step"]): {name: line[name] for name in line.keys() - timing} for line in lines
    }
    assert len(values) == len(lines), "a line was written twice"
    return values


@pytest.fixture
def config(tmp_path) -> Path:
    """Speech and audio, asymmetrical, the audio corpus twice per epoch; noise, utterances and tokens mixed
    in."""
    path = write_two_domain_config(
        tmp_path, "asymmetrical", max_steps=STEPS, save_interval=4, valid_interval=7
    )
    save_cuts(make_cuts(tmp_path / "noise", 3, prefix="noise"), tmp_path / "noise.jsonl.gz")
    options = yaml.safe_load(path.read_text())
    options["data"] |= {
        "noise_cuts": [str(tmp_path / "noise.jsonl.gz")],
        "train_repeats": [1.0, 2.0],
        "num_workers": 2,
        "batch_seconds": 6.0,
        "mixing": {"noise_probability": 0.3, "utterance_probability": 0.3, "token_probability": 0.4},
    }
    path.write_text(yaml.safe_dump(options))
    return path


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch_equals_unbroken(config, tmp_path):
    run(command(config, tmp_path / "unbroken", processes=2))
    expected = reported(tmp_path / "unbroken")
    epochs = [values["epoch"] for (kind, _), values in expected.items() if kind == "train"]
    assert len(epochs) == STEPS and epochs[-1] >= 1
    mixed = {name for values in expected.values() for name in values if name.startswith("data/mixed_")}
    assert mixed == {"data/mixed_noise", "data/mixed_utterance", "data/mixed_tokens"}
    assert all(sum(values.get(name, 0) for values in expected.values()) > 0 for name in mixed)

    metrics = tmp_path / "killed" / "metrics.jsonl"
    arguments = command(config, metrics.parent, processes=2)
    with subprocess.Popen(arguments, env=environment(), stderr=subprocess.DEVNULL) as launcher:
        end = time.monotonic() + 400
        while time.monotonic() < end and launcher.poll() is None:
            if metrics.exists() and metrics.read_text().count("\n") >= 6:
                break
            time.sleep(0.01)
        family = children(launcher.pid)
        for process in family:
            os.kill(process, signal.SIGKILL)
    assert launcher.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert len(family) >= 7  # the launcher, two ranks, two workers of each
    log = run(command(config, metrics.parent, processes=2))
    assert "step 4, epoch" in log.split("going on from", 1)[1].splitlines()[0]
    assert reported(metrics.parent) == expected
