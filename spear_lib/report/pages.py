"""The report of a recipe: sections made of what was read, as report.md, report.html and report.json."""

import time
from pathlib import Path
from typing import Any

from spear_lib.config import to_dict
from spear_lib.report import render
from spear_lib.report.data import ReportData, collect
from spear_lib.report.sections import build_sections
from spear_lib.runtime.files import write_json, write_text
from spear_lib.runtime.task_file import TaskDescription


def write_report(
    data_dir: Path,
    experiment_dirs: list[Path],
    exp_dir: Path,
    output_dir: Path,
    title: str,
    code: str,
    before_task_files: dict[str, TaskDescription] | None = None,
) -> dict[str, Any]:
    """Collect, render, write.

    Args:
      data_dir, experiment_dirs, exp_dir, before_task_files: see ``data.collect``.
      output_dir: receives report.md, report.html, report.json and pictures/*.png.
      title: heading of the report.
      code: which commit wrote it.

    Returns:
      What report.json holds.
    """
    data = collect(data_dir, experiment_dirs, exp_dir, before_task_files)
    sections = build_sections(data)
    meta = f"Written {time.strftime('%Y-%m-%d %H:%M')} by {code}."
    output_dir.mkdir(parents=True, exist_ok=True)
    render.write_pictures(sections, output_dir / "pictures")
    write_text(output_dir / "report.md", render.to_markdown(title, meta, sections, "pictures"))
    write_text(output_dir / "report.html", render.to_html(title, meta, sections))
    content = {"title": title, "code": code, **to_json(data)}
    write_json(output_dir / "report.json", content)
    return content


def to_json(data: ReportData) -> dict[str, Any]:
    """Every number of the report, for programs; the curves are in each experiment's metrics.jsonl."""
    content = to_dict(data)
    content["tasks"] = {kind: to_dict(task.measure) for kind, task in data.tasks.items()}
    content["experiments"] = [
        {
            "name": run.name,
            "kind": run.kind,
            "config": to_dict(run.config),
            "last": {lines: run.last_line(lines) for lines in ["train", *run.valid_kinds]},
        }
        for run in data.experiments
    ]
    content["unigram_entropy"] = data.unigram_entropy()
    return content
