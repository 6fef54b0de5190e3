"""Prints what ablation.sh measured as a Markdown table: means over seeds, and every seed's value."""

import json
import statistics
import sys
from pathlib import Path

# The order of the rows; what a run was compared to comes first.
ORDER = (
    "base",
    "alpha-0",
    "alpha-1",
    "mixing-none",
    "mixing-denoising",
    "tokens-mvq8",
    "tokens-mvq16",
    "tokens-kmeans500",
    "encoder-transformer",
    "single-speech",
    "single-audio",
    "strategy-joint",
    "strategy-disjoint",
    "strategy-asymmetrical",
)


def scores(run: Path) -> dict[str, dict[str, list[float]]]:
    """Probe -> kind of features -> its score in percent for every seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for path in sorted(run.glob("seed-*/probe/probes.json")):
        for task, features in json.loads(path.read_text(encoding="utf-8"))["tasks"].items():
            for name, result in features.items():
                found.setdefault(task, {}).setdefault(name, []).append(result["mean"])
    return found


def with_spread(values: list[float]) -> str:
    """'mean ± standard deviation (value, value)'; the deviation needs two values."""
    each = ", ".join(f"{value:.1f}" for value in values)
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation} ({each})"


def rows(folder: Path) -> list[str]:
    """The table; features that no training touches (log-mel, random weights) are rows of their own, from the
    first run that was probed so: base for speech (random weights of the Transformer are others).
    """
    runs = {run.name: scores(run) for run in folder.iterdir() if run.is_dir()}
    unknown = sorted(set(runs) - set(ORDER))
    runs = {name: runs[name] for name in (*ORDER, *unknown) if runs.get(name)}
    tasks = sorted({task for found in runs.values() for task in found})
    lines = [f"| run | {' | '.join(tasks)} |", "|---" * (1 + len(tasks)) + "|"]
    for name, found in runs.items():
        cells = [with_spread(found[task]["pre-trained"]) if task in found else "" for task in tasks]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for features in ("log-mel", "random weights"):
        cells = []
        for task in tasks:
            of_task = [run[task] for run in runs.values() if features in run.get(task, {})]
            cells.append(with_spread(of_task[0][features]) if of_task else "")
        lines.append(f"| {features} | {' | '.join(cells)} |")
    return lines


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: ablation_table.py FOLDER_OF_RUNS (made by tools/studies/ablation.sh)", file=sys.stderr)
        return 2
    print("\n".join(rows(Path(arguments[0]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
