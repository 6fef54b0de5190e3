"""tools/gpu_check.sh here, without a GPU: its report, its limits, and that nothing stops it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import gpu_check

    return gpu_check


def _step(check, name, code, limit=30.0):
    return check.Step(name, limit, ["-c", code], check.lines_with("figure"))


def test_no_step_stops_the_others(check, monkeypatch, tmp_path, capsys):
    planned = [
        _step(check, "good", "print('a figure of 7 | 8')"),
        _step(check, "bad", "print('figure'); raise ValueError('no memory')"),
        _step(check, "slow", "import time; time.sleep(60)", 0.2),
        _step(check, "last", "pass"),
    ]
    monkeypatch.setattr(check, "steps", lambda options: planned)
    assert check.main(["--out", str(tmp_path), "--device", "cuda"]) == 1
    report = json.loads((tmp_path / "gpu_report.json").read_text())
    steps = report["steps"]
    assert {name: step["status"] for name, step in steps.items()} == {
        "good": "passed",
        "bad": "failed",
        "slow": "too slow",
        "last": "passed",
    }
    assert steps["bad"]["why"] == "ValueError: no memory (exit status 1)"
    assert "limit" in steps["slow"]["why"] and steps["good"]["figures"] == {"lines": ["a figure of 7 | 8"]}
    assert report["versions"]["torch"] and "| good | passed |" in (tmp_path / "gpu_report.md").read_text()
    assert "==== bad\nfigure\n" in (tmp_path / "gpu_logs.txt").read_text()
    assert len(list(tmp_path.iterdir())) == 3
    assert "a figure of 7 / 8" in capsys.readouterr().out  # a bar would end the cell


def test_processes_of_a_stopped_step_end_with_it(check, tmp_path):
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'])"
    )
    code += "; print('figure', p.pid, flush=True); p.wait()"
    result = check.run_step(_step(check, "parent", code, 3.0), 3.0, tmp_path)
    assert result["status"] == "too slow"
    lines = result["figures"]["lines"]
    if lines:  # a busy machine may not have come so far
        stat = Path(f"/proc/{lines[0].split()[1]}/stat")
        ends = time.monotonic() + 20
        while _lives(stat) and time.monotonic() < ends:
            time.sleep(0.1)
        assert not _lives(stat)


def _lives(stat):
    try:
        return stat.read_text().split()[2] not in "ZX"
    except OSError:
        return False


def test_when_the_minutes_are_over(check, monkeypatch, tmp_path):
    monkeypatch.setattr(check, "steps", lambda options: [_step(check, "late", "pass")])
    assert check.main(["--out", str(tmp_path), "--minutes", "0.01"]) == 1
    (result,) = json.loads((tmp_path / "gpu_report.json").read_text())["steps"].values()
    assert result["status"] == "not run" and "0.01 minutes were over" in result["why"]


def test_the_script_names_every_wheel(check):
    text = (TOOLS / "gpu_check.sh").read_text(encoding="utf-8")
    assert all(f" {wheel}" in text for wheel in check.WHEELS)


def test_missing_packages_are_named_with_the_command(check, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(check, "NEEDED", ("json", "no_such_package"))
    assert check.main(["--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "lacks no_such_package" in said and "pip download" in said and "lhotse==" in said
    assert f"--python-version {sys.version_info[0]}.{sys.version_info[1]}" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nothing"], "--only names nothing; there are environment, kernels, step_base"),
        (["--train-cuts", "a"], "belong together"),
    ],
)
def test_wrong_options(check, arguments, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        check.main(["--out", str(tmp_path), *arguments])
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_every_step_names_files_that_exist_and_all_fit_the_time(check, tmp_path):
    import argparse

    options = argparse.Namespace(tiny=False, device="cuda", work=tmp_path, train_cuts="")
    planned = check.steps(options)
    assert len({step.name for step in planned}) == len(planned) >= 11
    for step in planned:
        assert all(Path(each).exists() for each in step.command if each.endswith(".py")), step.name


@pytest.mark.slow
def test_all_steps_on_a_cpu(tmp_path):
    command = [str(TOOLS / "gpu_check.sh"), "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    report = json.loads((tmp_path / "gpu_report.json").read_text())
    steps = report["steps"]
    assert done.returncode == 0, done.stdout
    assert {step["status"] for step in steps.values()} == {"passed"}, done.stdout
    assert steps["step_base"]["figures"]["planned kernels"] > 500
    assert abs(steps["curves"]["figures"]["bf16, mean ratio to fp32"] - 1) < 0.05
    assert steps["ddp"]["figures"]["gradients differ by"] < 1e-4
    assert "torch" in steps["transducer_device"]["figures"]
    for name in ("tests", "stage_5", "transducer", "loader"):
        assert steps[name]["figures"]["lines"], name
