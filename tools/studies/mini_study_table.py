"""Prints what tools/studies/mini_study.sh measured as Markdown tables: medians over seeds and every value."""

import json
import statistics
import sys
from pathlib import Path


def word_error_rate(folder: Path, set_name: str) -> float | None:
    """WER in percent of a decoded experiment, or None where it was not decoded."""
    path = folder / "decode" / f"wer-{set_name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["wer"] if path.is_file() else None


def spread(values: list[float], digits: int = 2) -> str:
    """'median (value, value, value)'."""
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.median(values):.{digits}f} ({each})"


def grid_table(folder: Path) -> list[str]:
    """Dev WER of every learning rate that was tried, best first in each arm."""
    runs = [(word_error_rate(run, "dev"), run.name) for run in sorted(folder.iterdir()) if run.is_dir()]
    lines = ["| run | dev WER % |", "|---|---|"]
    for arm in ("scratch", "pretrained"):
        done = sorted((rate, name) for rate, name in runs if rate is not None and name.startswith(arm))
        lines += [f"| {name} | {rate:.2f} |" for rate, name in done]
    return lines


def seeds_table(folder: Path) -> list[str]:
    """WER of both arms per set with their ratio, from every seed-N folder."""
    seeds = sorted(path for path in folder.glob("seed-*") if path.is_dir())
    lines = ["| set | from scratch | pre-trained | ratio of medians |", "|---|---|---|---|"]
    for set_name in ("dev", "test-clean", "test-other"):
        rates = {}
        for arm in ("scratch", "pretrained"):
            found = [word_error_rate(seed / f"finetune_{arm}", set_name) for seed in seeds]
            rates[arm] = [rate for rate in found if rate is not None]
        if all(rates.values()):
            ratio = statistics.median(rates["pretrained"]) / statistics.median(rates["scratch"])
            lines.append(
                f"| {set_name} | {spread(rates['scratch'])} | {spread(rates['pretrained'])} | {ratio:.2f} |"
            )
    return lines


def probes_table(folder: Path) -> list[str]:
    """Mean scores of the linear probes on frozen features, per task and kind of feature, over the seeds."""
    scores: dict[tuple[str, str], list[float]] = {}
    for path in sorted(folder.glob("seed-*/pretrain/probe/probes.json")):
        for task, features in json.loads(path.read_text(encoding="utf-8"))["tasks"].items():
            for feature, result in features.items():
                scores.setdefault((task, feature), []).append(result["mean"])
    lines = ["| probe | features | score % |", "|---|---|---|"]
    return lines + [f"| {task} | {name} | {spread(values)} |" for (task, name), values in scores.items()]


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: mini_study_table.py STUDY_FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    for title, table in (("grid", grid_table), ("seeds", seeds_table), ("probes", probes_table)):
        if title == "grid" and not (folder / "grid").is_dir():
            continue
        print(f"\n{title}\n")
        print("\n".join(table(folder / "grid" if title == "grid" else folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
