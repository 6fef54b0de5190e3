"""The sections of the report: what was read, as sentences, tables and pictures."""

import math
from pathlib import Path
from typing import Any

from spear_lib.report import plots
from spear_lib.report.benchmarks import benchmark_section
from spear_lib.report.data import Experiment, ReportData
from spear_lib.report.probes import probes
from spear_lib.report.render import Code, Fold, Picture, Section, Table, facts_table, number, ordered
from spear_lib.report.results import headlines, result_sections
from spear_lib.report.runs import field_of, level_values, training_runs
from spear_lib.runtime.progress import format_seconds


def build_sections(data: ReportData) -> list[Section]:
    """The report in reading order; a part without anything to show is named in the last section instead."""
    sections = [_summary(data), _corpus(data), _quantizers(data), _tokens(data)]
    sections += [*training_runs(data), *result_sections(data), probes(data)]
    sections.append(benchmark_section(data.benchmarks))
    sections += [_stages(data), _reproduction(data)]
    return [section for section in sections if section is not None]


def _summary(data: ReportData) -> Section:
    section = Section("In short")
    sentences = [description.summary for description in data.tasks.values() if description.summary]
    if any(description.side_by_side for description in data.tasks.values()):
        sentences.append("The same model trained from random weights (from scratch) is the comparison.")
    if sentences:
        section.blocks.append(" ".join(sentences))
    rows = [row for run in data.experiments if not run.description.results for row in _last_measures(run)]
    rows += headlines(data)
    if rows:
        section.blocks.append(Table(["what", "result", "compare with"], rows, numeric=False))
    if data.missing:
        section.blocks.append("Not found, therefore not in this report: " + "; ".join(data.missing) + ".")
    return section


def _last_measures(run: Experiment) -> list[list[str]]:
    """[what, value, what to compare it with] of a run that is judged by its validation sets."""
    measure, rows = run.description.measure, []
    for lines in run.valid_kinds or ["train"]:
        levels = level_values(run, lines)
        for metric in run.names(lines, measure.name):
            field = field_of(metric)
            where = ", ".join(filter(None, (run.name, lines, field)))
            beside = [f"{words} {number(values.get(field))}" for _, words, _, values in levels]
            title = f"{measure.title[0].upper()}{measure.title[1:]} ({where})"
            rows.append([title, f"{number(run.last(lines, metric))} {measure.unit}", ", ".join(beside)])
    return rows


def _corpus(data: ReportData) -> Section | None:
    if not data.corpus:
        return None
    columns = ordered(key for row in data.corpus for key in row if key != "set")
    rows = [
        [row["set"], *(_corpus_cell(column, row.get(column)) for column in columns)] for row in data.corpus
    ]
    titles = {"hours": "audio", "mean_seconds": "mean (s)", "max_seconds": "longest (s)"}
    header = ["set", *(titles.get(column, column.replace("_", " ")) for column in columns)]
    section = Section(
        "Corpus", ["The audio that went in, after validation. Fine-tuning reads the labelled set alone."]
    )
    section.blocks.append(Table(header, rows))
    if data.tables:
        section.blocks.append(
            "Of the clips in the tables of the corpus, some are not on disk or cannot be used."
        )
        counts = [
            [row["table"], *(number(row[name]) for name in ("clips", "missing", "other"))]
            for row in data.tables
        ]
        section.blocks.append(Table(["table", "clips", "missing", "useless otherwise"], counts))
    return section


def _corpus_cell(column: str, value: Any) -> str:
    if column == "hours" and value is not None:
        return f"{value:,.1f} h" if value >= 3 else f"{60 * value:.1f} min"
    return number(value, 1)


def _quantizers(data: ReportData) -> Section | None:
    if not data.quantizers:
        return None
    section = Section("Quantiser")
    section.blocks.append(
        "The quantiser writes each teacher frame as a few bytes, one per codebook; the frame is approximated "
        "by the sum of the chosen code vectors. Relative reconstruction error 0 would be perfect, 1 is no "
        "better than always answering with the mean."
    )
    for index, item in enumerate(data.quantizers):
        section.blocks.append(f"Teacher: {item['name']}.")
        if item["picture"]:
            png = Path(item["picture"]).read_bytes()
            section.blocks.append(Picture(f"quantizer-{index}", png, f"Quantiser of {item['name']}."))
        report = item["report"]
        errors = report.get("relative_error")
        if isinstance(errors, dict):
            header = ["rounds of refinement", *errors]
            section.blocks.append(Table(header, [["relative error", *(number(v) for v in errors.values())]]))
        section.blocks.append(Fold("All numbers of the quantiser", [facts_table(report)]))
    return section


def _tokens(data: ReportData) -> Section | None:
    if not data.tokens:
        return None
    section = Section("Tokens")
    section.blocks.append(
        "The tokens are what the encoder learns to predict. A codebook is well used when its codes occur "
        "about equally often; the entropy of the codes is the loss of the best guess that does not listen."
    )
    rows, usage = [], {}
    for item in data.tokens:
        info, values = item["info"], item["entropies"]
        mean = sum(values) / len(values) if values else None
        rows.append(
            [
                item["name"],
                number(info.get("num_cuts")),
                number(info.get("num_frames")),
                number(info.get("frame_rate")),
                f"{info.get('num_codebooks')} × {info.get('codebook_size')}",
                number(mean),
            ]
        )
        if values and item["set"].split("-")[-1] == "train":
            usage[item["name"]] = [100 * math.exp(value) / info.get("codebook_size", 256) for value in values]
    header = ["store", "cuts", "frames", "frames/s", "codebooks × codes", "entropy (nats)"]
    section.blocks.append(Table(header, rows))
    if usage:
        png = plots.code_usage(usage)
        caption = (
            "Perplexity of each codebook, the number of equally frequent codes that would be as varied, as a "
            "share of all its codes."
        )
        section.blocks.append(Picture("code-usage", png, caption))
    return section


def _stages(data: ReportData) -> Section | None:
    if not data.stages:
        return None
    section = Section("Time and memory")
    section.blocks.append("What each stage cost on this machine: time on the clock and the largest process.")
    rows = []
    for marker in data.stages:
        seconds, memory = marker.get("wall_seconds"), marker.get("peak_memory_mb")
        rows.append(
            [
                f"{marker.get('stage')} {marker.get('description', '')}".strip(),
                format_seconds(seconds) if seconds is not None else "–",
                f"{memory:,.0f}" if memory is not None else "–",
                str(marker.get("finished", "–")),
            ]
        )
    total = sum(marker.get("wall_seconds") or 0.0 for marker in data.stages)
    largest = max((marker.get("peak_memory_mb") or 0.0 for marker in data.stages), default=0.0)
    rows.append(["all", format_seconds(total), f"{largest:,.0f}", ""])
    section.blocks.append(Table(["stage", "time", "peak memory (MB)", "finished"], rows))
    return section


def _reproduction(data: ReportData) -> Section:
    section = Section("To do it again", ["The exact commands and versions."])
    commands = ordered(str(marker["command"]) for marker in data.stages if marker.get("command"))
    if commands:
        section.blocks.append(Code("\n".join(commands)))
    details = []
    for marker in data.stages:
        options = {key: marker[key] for key in ("options", "identities", "commit") if marker.get(key)}
        if options:
            details += [f"Stage {marker.get('stage')}", facts_table(options)]
    if details:
        section.blocks.append(Fold("Options and identities of every stage", details))
    for run in data.experiments:
        if run.config:
            import yaml

            text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
            section.blocks.append(Fold(f"Configuration of {run.name}", [Code(text.rstrip())]))
    rows = [[name, version] for name, version in data.versions.items()]
    section.blocks.append(Table(["package", "version"], rows, numeric=False))
    return section
