"""Prints the results of a finished run.sh and where its report is; quickstart.sh ends with it."""

import json
import sys
from pathlib import Path
from typing import Any


def headline(report: dict[str, Any], folder: Path) -> list[str]:
    """Lines for the screen: a table of each task's measure (sets by arms), then where to look."""
    lines = []
    for kind, measure in report["tasks"].items():
        results = [result for result in report["results"] if result["kind"] == kind]
        if results:
            lines += [
                f"{measure['title'].capitalize()} ({measure['unit']})",
                *_table(results, measure["name"]),
            ]
    lines += [f"not in the report: {missing}" for missing in report.get("missing", [])]
    return [*lines, f"report: {(folder / 'report.html').resolve()} (opens in a browser, offline)"]


def _table(results: list[dict[str, Any]], measure: str) -> list[str]:
    values = {(result["set"], result["arm"]): result[measure] for result in results}
    sets = list(dict.fromkeys(name for name, _ in values))
    arms = list(dict.fromkeys(arm for _, arm in values))
    width = max([len(name) for name in sets] + [8])
    lines = [" " * (width + 2) + "".join(f"{arm:>24}" for arm in arms)]
    for name in sets:
        cells = (f"{values[name, arm]:.2f}" if (name, arm) in values else "-" for arm in arms)
        lines.append(f"  {name:<{width}}" + "".join(f"{cell:>24}" for cell in cells))
    return lines


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: headline.py EXP_DIR", file=sys.stderr)
        return 2
    folder = Path(arguments[0]) / "report"
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        print(f"error: no {folder / 'report.json'}: run stage 14 of run.sh first", file=sys.stderr)
        return 1
    print("\n".join(headline(report, folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
