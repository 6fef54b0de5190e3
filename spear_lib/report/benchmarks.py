"""Results of benchmarks (evaluate_*, stage 15) as a section and a page, the paper's rows beside."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spear_lib.report import plots, render
from spear_lib.report.paper_rows import PAPER, paper_values
from spear_lib.report.render import Picture, Section, Table, ordered
from spear_lib.runtime.files import read_json, write_json, write_text

RESULTS_NAME, STATUS_NAME = "results.json", "benchmarks.json"


@dataclass
class Measured:
    """One task and what encoders reached."""

    task: str
    kind: str
    """Of the command: superb, hear, xares, abx, units."""
    metric: str
    """With its unit in brackets."""
    higher_is_better: bool
    values: dict[str, tuple[float, float]]
    """Encoder -> mean and standard deviation over seeds."""
    counts: dict[str, Any] = field(default_factory=dict)
    paper_column: str = ""
    """Column of the paper with the same task and measure on its own data."""


def _amount(name: str, count: Any) -> str:
    """Such as "80 train", or "48 clips, 4,800 rows train" where a part is counted in several things."""
    if isinstance(count, dict):
        count = ", ".join(f"{number:,} {of_what}" for of_what, number in count.items())
    return f"{count} {name}"


def collect_benchmarks(folder: Path) -> list[Measured]:
    """All that lies in FOLDER/*/results.json, tasks in order of the folders' suite where it is known."""
    status = read_json(folder / STATUS_NAME) if (folder / STATUS_NAME).exists() else {}
    paths = sorted(folder.glob(f"*/{RESULTS_NAME}"))
    order = [entry["folder"] for entry in status.get("tasks", [])]
    paths.sort(key=lambda path: order.index(path.parent.name) if path.parent.name in order else len(order))
    names = {entry["folder"]: entry for entry in status.get("tasks", [])}
    found = []
    for path in paths:
        entry = names.get(path.parent.name, {})
        found += _tasks(read_json(path), str(entry.get("name", path.parent.name)), entry.get("paper", ""))
    return found


def _tasks(content: dict[str, Any], suite_name: str, column: str) -> list[Measured]:
    found: dict[str, Measured] = {}
    results = content.get("results", {})
    single = len({task for tasks in results.values() for task in tasks}) == 1
    for encoder, tasks in results.items():
        for task, result in tasks.items():
            for metric, better, mean, deviation in _scores(result):
                words = suite_name if single or task == suite_name else f"{suite_name}: {task}"
                key = f"{words}, {metric}"
                if key not in found:
                    own = column if metric == next(_scores(result))[0] else ""
                    kind, counts = content.get("kind", ""), result.get("counts", {})
                    found[key] = Measured(words, kind, metric, better == "higher", {}, counts, own)
                found[key].values[encoder] = (mean, deviation)
    return list(found.values())


def _scores(result: dict[str, Any]) -> Any:
    """(metric, better, mean, deviation) of the primary score, then of those beside it."""
    if "scores" in result:  # HEAR: 0..1
        name = result["metric"]
        score = result["scores"][name]
        yield f"{name} (%)", "higher", 100 * score["mean"], 100 * score["std"]
        return
    if result.get("mean") is None:
        return
    yield result["metric"], result.get("better", "higher"), result["mean"], result.get("std", 0.0)
    if result.get("knn") is not None:
        yield "10-NN accuracy (%)", "higher", result["knn"], 0.0
    for name, beside in result.get("beside", {}).items():
        yield name, beside["better"], beside["mean"], beside.get("std", 0.0)


def benchmark_section(measured: list[Measured]) -> Section | None:
    """Table and pictures; None without results."""
    if not measured:
        return None
    section = Section(
        "Benchmarks of the frozen features",
        [
            "Encoders are frozen; small heads are trained on their features, or none. ± is the standard "
            "deviation over seeds of the head; of the encoder there is one training."
        ],
    )
    encoders = ordered(encoder for one in measured for encoder in one.values)
    rows = []
    for one in measured:
        best = _best(one)
        cells = [_cell(one, encoder, encoder in best) for encoder in encoders]
        data = ", ".join(_amount(name, count) for name, count in one.counts.items())
        rows.append(
            [one.task, f"{one.metric}, {'higher' if one.higher_is_better else 'lower'}", *cells, data]
        )
    section.blocks.append(Table(["task", "measure, better", *encoders, "data"], rows, numeric=False))
    beaten = _beaten(measured, encoders)
    if beaten:
        section.blocks.append(beaten)
    for start in range(0, len(measured), plots.BENCHMARK_PANELS):
        part = measured[start : start + plots.BENCHMARK_PANELS]
        panels = [
            plots.BenchmarkPanel(
                one.task, one.metric, one.values, paper_values(one.paper_column) if one.paper_column else {}
            )
            for one in part
        ]
        caption = (
            "Coloured: measured here. Grey: the paper's models on the paper's data, the same task and "
            "measure on other and mostly larger data, so only the order of magnitude can be compared."
            if any(one.paper_column for one in part)
            else "Measured here; the paper has no row of these tasks."
        )
        section.blocks.append(
            Picture(f"benchmarks-{start // plots.BENCHMARK_PANELS}", plots.benchmarks(panels), caption)
        )
    published = [one for one in measured if one.paper_column]
    if published:
        models = ordered(model for one in published for model in paper_values(one.paper_column))
        beside = [
            [one.task, f"{PAPER[one.paper_column][0]}, {one.paper_column}"]
            + [
                f"{paper_values(one.paper_column)[m]:g}" if m in paper_values(one.paper_column) else "–"
                for m in models
            ]
            for one in published
        ]
        section.blocks.append("What the paper prints for the same task and measure, on its own data:")
        section.blocks.append(Table(["task", "paper", *models], beside))
    return section


def _best(one: Measured) -> set[str]:
    values = {encoder: mean for encoder, (mean, _) in one.values.items()}
    top = (max if one.higher_is_better else min)(values.values())
    return {encoder for encoder, value in values.items() if value == top}


def _cell(one: Measured, encoder: str, best: bool) -> str:
    if encoder not in one.values:
        return "–"
    mean, deviation = one.values[encoder]
    digits = 1 if "%" in one.metric else 3
    text = f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation else "")
    return f"{text} (best)" if best and len(one.values) > 1 else text


def _beaten(measured: list[Measured], encoders: list[str]) -> str:
    """In how many rows the first encoder beats each other one."""
    if len(encoders) < 2:
        return ""
    first, parts = encoders[0], []
    for other in encoders[1:]:
        both = [one for one in measured if first in one.values and other in one.values]
        wins = sum(
            (one.values[first][0] > one.values[other][0])
            if one.higher_is_better
            else (one.values[first][0] < one.values[other][0])
            for one in both
        )
        parts.append(f"{other} in {wins} of {len(both)} rows")
    return f"{first} beats {', '.join(parts)}."


def write_page(folder: Path, title: str, code: str) -> None:
    """report.md, report.html, report.json and pictures/ of the results in ``folder``."""
    measured = collect_benchmarks(folder)
    section = benchmark_section(measured)
    if section is None:
        raise ValueError(
            f"{folder} holds no results ({RESULTS_NAME}): run evaluate_* or run.sh stage 15 first"
        )
    meta = f"Written {time.strftime('%Y-%m-%d %H:%M')} by {code}."
    render.write_pictures([section], folder / "pictures")
    write_text(folder / "report.md", render.to_markdown(title, meta, [section], "pictures"))
    write_text(folder / "report.html", render.to_html(title, meta, [section]))
    rows = [vars(one) | {"values": one.values} for one in measured]
    write_json(folder / "report.json", {"title": title, "code": code, "benchmarks": rows})
