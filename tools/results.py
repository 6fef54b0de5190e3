#!/usr/bin/env python3
"""RESULTS.md, made of records that runs left: no number is typed.

    tools/results.py recipe egs/librispeech/exp/report/report.json --name librispeech-mini --command '...'
    tools/results.py tests junit.xml                       # of pytest --junit-xml=junit.xml
    tools/results.py write                                 # RESULTS.md from docs/results/*.json
    tools/results.py check                                 # is RESULTS.md what the records give?

A record is docs/results/<name>.json: {"claim", "command", "commit", "corpus", "columns", "rows"}; ``rows``
are the cells of its table. What has no record is not in RESULTS.md; what was tried before is in docs/notes.
"""

import argparse
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RECORDS = REPOSITORY / "docs" / "results"
PAGE = REPOSITORY / "RESULTS.md"
CLAIMS = ("quality", "exactness and reliability", "speed")
HEAD = """# Results

Written by `tools/results.py write` from the records in [docs/results](docs/results); each names its command
and commit. The machine: 2 cores of a shared AMD EPYC, no GPU; other work runs beside, so times are upper
bounds and ratios count. What was tried, and what failed: [docs/notes](docs/notes/README.md). No result of the
paper is claimed as reproduced.
"""
# Folder and word in the name of a test file -> what its tests show.
GROUPS = {
    "golden": "golden numbers of the reference implementations",
    "kill": "killed and run again = the unbroken run",
    "resum": "resumed = the unbroken run",
    "distributed": "several processes = one; batch jobs",
    "before_layout": "data and checkpoints of earlier versions",
}


def commit() -> str:
    """The commit of this checkout, with "+changes" where files differ from it."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=12", "--dirty=+changes"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def of_recipe(report: dict[str, Any], command: str) -> dict[str, Any]:
    """The record of a finished run.sh, from its report.json.

    Raises:
      ValueError: its stages were run at more than one commit.
    """
    commits = sorted({stage["commit"] for stage in report["stages"]})
    if len(commits) != 1:
        raise ValueError(
            f"the stages of this run are of the commits {', '.join(commits)}: run it again at one commit"
        )
    rows = []
    for result in report["results"]:
        measure = report["tasks"][result["kind"]]
        low, high = result.get("interval_95", (None, None))
        chance = f"{low:.2f} to {high:.2f} (95 %)" if low is not None else ""
        if "chance_map" in result:
            chance = f"chance {result['chance_map']:.2f}"
        name = f"{measure['title']}, {result['set']}, {result['arm']}"
        rows.append([name, f"{result[measure['name']]:.2f} {measure['unit']}", measure["better"], chance])
        if "cer" in result:
            name = f"character error rate, {result['set']}, {result['arm']}"
            rows.append([name, f"{result['cer']:.2f} %", "lower", ""])
    for probes in report["probes"]:
        for task, features in probes["tasks"].items():
            for name, value in features.items():
                shown = f"{value['mean']:.2f} ± {value['std']:.2f} %"
                rows.append([f"probe of {task}, {name}", shown, "higher", value["metric"]])
    for run in report["experiments"]:
        for lines, last in run["last"].items():
            for name, value in last.items():
                if name.split("/")[-1] != "masked_loss" or name.count("/") > 1 or lines == "train":
                    continue
                prefix = name.removesuffix("masked_loss")
                beside = (
                    f"chance {last[prefix + 'chance']:.3f}, unigram {last[prefix + 'unigram_entropy']:.3f}"
                )
                rows.append([f"{name}, {lines}", f"{value:.3f} nats", "lower", beside])
    for quantizer in report["quantizers"]:
        errors = quantizer["report"]["relative_error"]
        last = list(errors)[-1]
        name = f"quantiser {quantizer['name']}, relative error after {last} refinements"
        rows.append([name, f"{errors[last]:.4f}", "lower", f"{errors['0']:.4f} after none"])
    minutes = sum(stage.get("wall_seconds") or 0 for stage in report["stages"]) / 60
    memory = max(stage.get("peak_memory_mb") or 0 for stage in report["stages"])
    rows.append(["all stages", f"{minutes:.1f} min", "lower", f"largest process {memory:,.0f} MB"])
    sets = ", ".join(
        f"{row['set']} {60 * row['hours']:.1f} min" for row in report["corpus"] if "hours" in row
    )
    return {
        "claim": "quality",
        "command": command,
        "commit": commits[0],
        "corpus": f"{report['title']}: {sets}",
        "columns": ["what", "ours", "better", "compare with"],
        "rows": rows,
    }


def of_tests(junit: list[Path]) -> dict[str, Any]:
    """The record of a run of the tests, from pytest's junit files (one for each part that was run)."""
    passed, others, total = Counter(), Counter(), Counter()
    for case in (case for path in junit for case in ElementTree.parse(path).iter("testcase")):
        name = f"{case.get('classname')}.{case.get('name')}"
        bad = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), None)
        total[bad or "passed"] += 1
        for word in GROUPS:
            if word in name:
                passed[word] += bad is None
                others[word] += bad is not None
    rows = [
        [what, f"{passed[word]} passed, {others[word]} not", "all", f"tests with {word!r} in their name"]
        for word, what in GROUPS.items()
    ]
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(total.items()))
    rows.append(["every quick test", counts, "all", "tests/"])
    return {
        "claim": "exactness and reliability",
        "command": "tools/check.sh",
        "commit": commit(),
        "corpus": "tests/golden, and data that the tests make",
        "columns": ["what", "ours", "wanted", "where"],
        "rows": rows,
    }


def page(records: dict[str, dict[str, Any]]) -> str:
    """RESULTS.md of the records, name -> record."""
    parts = [HEAD]
    for claim in CLAIMS:
        chosen = {name: record for name, record in records.items() if record["claim"] == claim}
        if chosen:
            parts.append(f"## {claim.capitalize()}\n")
        for name, record in chosen.items():
            parts.append(f"### {name}\n")
            parts.append(f"    {record['command']}\n\nCommit {record['commit']}. {record['corpus']}.\n")
            lines = [record["columns"], ["---"] * len(record["columns"]), *record["rows"]]
            parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
    return "\n".join(parts)


def read_records(folder: Path = RECORDS) -> dict[str, dict[str, Any]]:
    """Name -> record, in the order of their names."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def save(name: str, record: dict[str, Any]) -> None:
    RECORDS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    (RECORDS / f"{name}.json").write_text(text, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recipe = verbs.add_parser("recipe", help="a record of a finished run.sh")
    recipe.add_argument("report", type=Path, help="report.json of stage 14")
    recipe.add_argument("--name", required=True, help="of the record")
    recipe.add_argument("--command", required=True, help="what was typed")
    tests = verbs.add_parser("tests", help="a record of the tests")
    tests.add_argument("junit", type=Path, nargs="+", help="what pytest --junit-xml wrote")
    verbs.add_parser("write", help="RESULTS.md from the records")
    verbs.add_parser("check", help="is RESULTS.md what the records give?")
    options = parser.parse_args(argv)
    try:
        if options.verb == "recipe":
            report = json.loads(options.report.read_text(encoding="utf-8"))
            save(options.name, of_recipe(report, options.command))
        elif options.verb == "tests":
            save("tests", of_tests(options.junit))
        elif options.verb == "write":
            PAGE.write_text(page(read_records()), encoding="utf-8")
        elif PAGE.read_text(encoding="utf-8") != page(read_records()):
            print(
                "error: RESULTS.md is not what docs/results gives: run tools/results.py write",
                file=sys.stderr,
            )
            return 1
    except (ValueError, OSError, ElementTree.ParseError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
