"""tools/studies/realmini_table.py and what realmini.sh refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

STUDIES = Path(__file__).parents[2] / "tools" / "studies"


def table(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(STUDIES / "realmini_table.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


def write(folder: Path, seed: int, results: dict) -> None:
    path = folder / f"seed-{seed}" / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"results": results}))


def test_rows_are_means_over_seeds_and_baselines_come_first(tmp_path):
    for seed, value in ((0, 70.0), (1, 74.0)):
        clips = {"mean": value, "knn": value - 10, "chance": 10.0}
        frames = {"mean": value / 2, "chance": 30.0}
        fixed = {"mean": 50.0, "knn": 40.0, "chance": 10.0}
        write(tmp_path, seed, {"speech": {"esc10": clips, "phones": frames}, "log-mel": {"esc10": fixed}})
    lines = table(tmp_path).stdout.splitlines()
    assert lines[0] == "| encoder | esc10 | esc10, 10-NN | phones |"
    assert lines[2] == "| log-mel | 50.0 | 40.0 |  |"
    assert lines[3].startswith("| speech | 72.0 ± 2.8 (70.0, 74.0) | 62.0 ± 2.8 (60.0, 64.0) | 36.0 ± 1.4")
    assert lines[4] == "| chance | 10.0 |  | 30.0 |"


def test_a_folder_without_results_is_refused(tmp_path):
    done = table(tmp_path)
    assert done.returncode == 2 and "made by tools/studies/realmini.sh" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "tools/studies/realmini.sh CORPUS_DIR [ROWS...]"),
        (("/nowhere",), "/nowhere has no folder noise_rir"),
        (("/nowhere", "both"), "there is no row 'both': use asymmetrical speech audio"),
    ],
)
def test_the_study_says_what_it_takes(arguments, message, tmp_path):
    done = subprocess.run(
        [str(STUDIES / "realmini.sh"), *arguments],
        env={"PATH": "/usr/bin:/bin", "STUDY_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and message in done.stdout + done.stderr
