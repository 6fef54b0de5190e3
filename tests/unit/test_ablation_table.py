"""tools/studies/ablation_table.py: what becomes of the probes of short runs."""

import json
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "studies" / "ablation_table.py"


def write_probes(run: Path, seed: int, **scores: dict[str, float]) -> None:
    """``scores``: probe -> kind of features -> mean in percent."""
    folder = run / f"seed-{seed}" / "probe"
    folder.mkdir(parents=True)
    tasks = {
        task: {name: {"mean": value, "std": 0.5, "layer": 1} for name, value in features.items()}
        for task, features in scores.items()
    }
    (folder / "probes.json").write_text(json.dumps({"tasks": tasks}), encoding="utf-8")


def run_tool(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(TOOL), str(folder)], capture_output=True, text=True, check=False
    )


def test_means_spread_and_order(tmp_path):
    for seed, value in enumerate((20.0, 22.0)):
        words = {"pre-trained": value, "log-mel": 12.0, "random weights": 14.0}
        write_probes(tmp_path / "base", seed, words=words)
    write_probes(tmp_path / "alpha-0", 0, words={"pre-trained": 18.0, "log-mel": 12.0})
    write_probes(tmp_path / "encoder-transformer", 0, words={"pre-trained": 18.4, "random weights": 8.6})
    write_probes(
        tmp_path / "strategy-joint",
        0,
        words={"pre-trained": 21.0},
        events={"pre-trained": 60.0, "log-mel": 50.0},
    )
    (tmp_path / "mixing-none" / "seed-0").mkdir(parents=True)  # began and is not done
    result = run_tool(tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "| run | events | words |",
        "|---|---|---|",
        "| base |  | 21.0 ± 1.4 (20.0, 22.0) |",
        "| alpha-0 |  | 18.0 (18.0) |",
        "| encoder-transformer |  | 18.4 (18.4) |",
        "| strategy-joint | 60.0 (60.0) | 21.0 (21.0) |",
        "| log-mel | 50.0 (50.0) | 12.0 ± 0.0 (12.0, 12.0) |",
        "| random weights |  | 14.0 ± 0.0 (14.0, 14.0) |",
    ]


def test_no_folder_is_explained(tmp_path):
    result = run_tool(tmp_path / "none")
    assert result.returncode == 2 and "ablation.sh" in result.stderr
