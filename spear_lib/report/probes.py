"""Sections of the report about probes: of the finished encoder, and of the encoder while it was trained."""

from spear_lib.report import plots
from spear_lib.report.data import Experiment, ReportData
from spear_lib.report.render import Picture, Section, Table

BESIDE = "log_mel/"
"""What the names of log-mel values begin with in metrics.jsonl (``evaluation.validation_probe``)."""


def probes(data: ReportData) -> Section | None:
    """Linear probes of stage 13."""
    if not data.probes:
        return None
    section = Section("Probes of the frozen features")
    section.blocks.append(
        "A linear classifier on top of features that are not trained further: what it can read is already "
        "there. Log-mel features and the same encoder with random weights are the comparison."
    )
    for index, item in enumerate(data.probes):
        tasks = item.get("tasks", {})
        if not tasks:
            continue
        rows = [
            [
                task,
                name,
                f"{value['mean']:.1f} ± {value['std']:.1f}",
                value["metric"],
                str(value.get("layer", "–")),
            ]
            for task, features in tasks.items()
            for name, value in features.items()
        ]
        header = ["probe", "features", "result (%)", "measure", "layer (chosen on dev)"]
        section.blocks.append(Picture(f"probes-{index}", plots.probes(tasks), "Higher is better."))
        section.blocks.append(Table(header, rows, numeric=False))
        section.blocks += [f"{task}: {text}" for task, text in item.get("description", {}).items()]
    return section


def probes_in_training(run: Experiment, slug: str) -> list[Picture | str]:
    """Curves of what the probe found at every validation, beside log-mel features; empty without a probe."""
    kinds = dict.fromkeys(str(record.get("kind", "")) for record in run.records)
    panels = []
    for kind in kinds:
        if not kind.startswith("probe/"):
            continue
        names = dict.fromkeys(name for record in run.records if record.get("kind") == kind for name in record)
        for name in names:
            if f"{BESIDE}{name}" not in names:
                continue
            curves = {"encoder": run.curve(kind, name), "log-mel": run.curve(kind, BESIDE + name)}
            title = f"{name.replace('_', ' ')}, {kind.removeprefix('probe/')}"
            panels.append(plots.LinePanel(title, "percent", curves))
    if not panels:
        return []
    caption = "Cheap probe of the encoder's features at every validation; higher is better."
    return [Picture(f"probe-{slug}", plots.lines(panels), caption)]
