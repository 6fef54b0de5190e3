"""Prints what realmini.sh measured as a Markdown table: means over seeds, and every seed's value."""

import json
import sys
from pathlib import Path

from ablation_table import with_spread

ORDER = ("log-mel", "random weights", "speech", "audio", "disjoint", "joint", "asymmetrical", "no-mixing")


def scores(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Row -> measure -> its value for every seed; and the row "chance" -> measure -> its values."""
    found: dict[str, dict[str, list[float]]] = {}
    for path in sorted(folder.glob("seed-*/results.json")):
        for row, tasks in json.loads(path.read_text(encoding="utf-8"))["results"].items():
            for task, result in tasks.items():
                found.setdefault(row, {}).setdefault(task, []).append(result["mean"])
                found.setdefault("chance", {}).setdefault(task, []).append(result["chance"])
                if "knn" in result:
                    found[row].setdefault(f"{task}, 10-NN", []).append(result["knn"])
    return found


def rows(folder: Path) -> list[str]:
    """The table. Log-mels and chance are the same for every seed."""
    found = scores(folder)
    columns = list(dict.fromkeys(name for measures in found.values() for name in measures))
    chance = found.pop("chance", {})
    lines = [f"| encoder | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name in (*ORDER, *sorted(set(found) - set(ORDER))):
        values = {task: found.get(name, {}).get(task, []) for task in columns}
        if name == "log-mel":
            values = {task: each[:1] for task, each in values.items()}
        if any(values.values()):
            cells = [
                with_spread(each) if len(each) > 1 else f"{each[0]:.1f}" if each else ""
                for each in values.values()
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    cells = [f"{chance[task][0]:.1f}" if task in chance else "" for task in columns]
    return [*lines, f"| chance | {' | '.join(cells)} |"]


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or not list(Path(arguments[0]).glob("seed-*/results.json")):
        print(
            "usage: realmini_table.py FOLDER_OF_EVALUATIONS (made by tools/studies/realmini.sh)",
            file=sys.stderr,
        )
        return 2
    print("\n".join(rows(Path(arguments[0]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
