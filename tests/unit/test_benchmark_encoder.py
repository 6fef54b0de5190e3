"""The encoder benchmark: its subjects, its messages, and a run of both tools at mini size."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools" / "benchmarks"


@pytest.fixture
def subjects(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import encoder_subjects

    return encoder_subjects


def test_a_subject_is_a_size_with_changes(subjects):
    config = subjects.parse_size("mini,padding=reference,balancer=false,pos_dim=32")
    assert (config.padding, config.balancer, config.pos_dim) == ("reference", False, 32)
    assert config.encoder_dim == (128,)
    with pytest.raises(ValueError, match="'huge' is not known: use wavlm, wavlm-eager, mini, base"):
        subjects.parse_size("huge")
    with pytest.raises(ValueError, match="'depth' in subject 'base,depth=3' is no field"):
        subjects.parse_size("base,depth=3")


def test_options_of_the_batch(subjects):
    options = subjects.Options(utterances=3, seconds=2.0, shortest=0.5)
    assert options.num_samples() == [32000, 24000, 16000]
    for changes, message in (
        ({"precision": "fp16"}, "use fp32 or bf16"),
        ({"shortest": 0.0}, "use a share"),
        ({"rounds": 0}, "must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            subjects.Options(**changes)


def _run(tool, *arguments):
    command = [sys.executable, str(TOOLS / tool), "--utterances", "2", "--seconds", "0.5", "--threads", "1"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_tables_of_time_memory_and_profile():
    names = ("mini", "mini,checkpoint_activations=true")
    run = _run("encoder.py", "--rounds", "2", "--subjects", str(list(names)).replace("'", '"'))
    assert run.returncode == 0, run.stderr
    rows = [line.strip("| ").split(" | ") for line in run.stdout.splitlines() if line.startswith("|")]
    for label in ("forward", "forward + backward"):
        for name in names:
            time_row, memory_row = [row for row in rows if row[:2] == [label, name]]
            assert float(time_row[2]) > 0 and float(time_row[3]) > 0
            assert float(memory_row[3]) > 50  # the weights alone are 8 MB, Python and torch the rest
    profile = _run("profile_encoder.py", "--subjects", '["mini"]')
    assert profile.returncode == 0, profile.stderr
    assert "| ConvNeXt | 1 |" in profile.stdout and "aten::mm" in profile.stdout


@pytest.mark.slow
def test_a_failing_subject_ends_the_benchmark_with_its_name():
    run = _run("encoder.py", "--subjects", '["mini", "huge"]')
    assert run.returncode == 1
    assert "the process of 'huge' ended with status 1" in run.stderr
