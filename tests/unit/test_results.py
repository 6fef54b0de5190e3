"""RESULTS.md is what the records give, and records are what runs left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TOOL = REPOSITORY / "tools" / "results.py"


def load() -> dict:
    names: dict = {"__name__": "results", "__file__": str(TOOL)}
    exec(compile(TOOL.read_text(encoding="utf-8"), str(TOOL), "exec"), names)
    return names


def test_the_page_is_what_the_records_give():
    done = subprocess.run([sys.executable, str(TOOL), "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def report(*commits: str) -> dict:
    return {
        "title": "Toy",
        "corpus": [{"set": "dev", "hours": 0.5}],
        "tasks": {"asr": {"title": "word error rate", "name": "wer", "unit": "%", "better": "lower"}},
        "results": [{"kind": "asr", "set": "dev", "arm": "scratch", "wer": 12.345, "interval_95": [10, 14]}],
        "probes": [],
        "experiments": [
            {"last": {"valid/dev": {"masked_loss": 3.5, "chance": 5.5, "unigram_entropy": 5.1}, "train": {}}}
        ],
        "quantizers": [{"name": "spectral", "report": {"relative_error": {"0": 0.4, "5": 0.3}}}],
        "stages": [{"commit": each, "wall_seconds": 60, "peak_memory_mb": 900.0} for each in commits],
    }


def test_a_record_holds_the_numbers_of_the_run():
    record = load()["of_recipe"](report("abc", "abc"), "./run.sh")
    assert record["commit"] == "abc" and record["corpus"] == "Toy: dev 30.0 min"
    cells = {row[0]: row[1:] for row in record["rows"]}
    assert cells["word error rate, dev, scratch"] == ["12.35 %", "lower", "10.00 to 14.00 (95 %)"]
    assert cells["masked_loss, valid/dev"] == ["3.500 nats", "lower", "chance 5.500, unigram 5.100"]
    assert cells["all stages"] == ["2.0 min", "lower", "largest process 900 MB"]
    assert "12.35 %" in load()["page"]({"toy": record}) and "./run.sh" in load()["page"]({"toy": record})


def test_runs_of_several_commits_are_refused(tmp_path):
    with pytest.raises(ValueError, match="of the commits abc, def: run it again at one commit"):
        load()["of_recipe"](report("abc", "def"), "./run.sh")
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report("abc", "def")))
    command = [sys.executable, str(TOOL), "recipe", str(path), "--name", "x", "--command", "y"]
    assert subprocess.run(command, capture_output=True, text=True).returncode == 1


def test_failed_tests_are_counted(tmp_path):
    cases = (
        '<testcase classname="tests.numerics.test_mvq_golden" name="test_codes"/>'
        '<testcase classname="tests.numerics.test_mvq_golden" name="test_loss"><failure/></testcase>'
    )
    (tmp_path / "junit.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    rows = load()["of_tests"]([tmp_path / "junit.xml"])["rows"]
    assert rows[0][:2] == ["golden numbers of the reference implementations", "1 passed, 1 not"]
    assert rows[-1][1] == "1 failure, 1 passed"
