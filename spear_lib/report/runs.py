"""The sections of the report about training runs: their curves and last values, as their task.json says."""

from collections.abc import Iterable

from spear_lib.report import plots
from spear_lib.report.data import Experiment, ReportData
from spear_lib.report.probes import probes_in_training
from spear_lib.report.render import Fold, Picture, Section, Table, facts_table, number
from spear_lib.runtime.task_file import EACH_VALIDATION, FIRST_VALIDATION, TRAINING, Panel


def training_runs(data: ReportData) -> list[Section]:
    """A section for each run that stands by itself, then one for each kind whose runs are compared."""
    alone = [run for run in data.experiments if not run.description.side_by_side]
    kinds: dict[str, list[Experiment]] = {}
    for run in data.experiments:
        if run.description.side_by_side:
            kinds.setdefault(run.kind, []).append(run)
    return [_alone(run) for run in alone] + [_side_by_side(runs) for runs in kinds.values()]


def level_values(run: Experiment, lines: str) -> list[tuple[str, str, bool, dict[str, float]]]:
    """(label, words, measured, {token field: value}) of each level that the run's curves are compared with.

    Measured on the validation set ``lines`` if possible, else on the others.
    """
    fields = [field_of(metric) for metric in run.names(lines, run.description.measure.name)]
    found = []
    for level in run.description.levels:
        values = {}
        for field in fields:
            metric = f"{field}/{level.metric}" if field else level.metric
            measured = (run.last(each, metric) for each in (lines, *run.valid_kinds))
            value = next((each for each in measured if each is not None), None)
            if value is not None:
                values[field] = value
        if values:
            found.append((level.label, level.words, level.measured, values))
    return found


def field_of(metric: str) -> str:
    """What stands before the name of a metric, the token field of pre-training; empty where there is one."""
    return metric.rsplit("/", 1)[0] if "/" in metric else ""


def _alone(run: Experiment) -> Section:
    description = run.description
    section = Section(f"{description.title}: {run.name}", [description.text] if description.text else [])
    slug = run.name.replace("/", "-")
    for curves in description.curves:
        panels = [each for panel in curves.panels for each in _panels(run, panel)]
        if panels:
            png = plots.lines(panels)
            section.blocks.append(Picture(f"{curves.name}-{slug}", png, curves.caption))
    section.blocks += probes_in_training(run, slug)
    section.blocks += _schedule(run, slug)
    hidden = description.unlisted
    values = {
        lines: {
            name: value for name, value in run.last_line(lines).items() if not (hidden and hidden in name)
        }
        for lines in [TRAINING, *run.valid_kinds]
    }
    section.blocks.append(Fold("Last values", [facts_table(values)]))
    return section


def _side_by_side(runs: list[Experiment]) -> Section:
    description = runs[0].description
    section = Section(description.title, [description.text] if description.text else [])
    columns: list[Panel] = []
    for curves in description.curves:
        panels = [_panel_of_runs(runs, panel) for panel in curves.panels]
        panels = [panel for panel in panels if panel.curves]
        if panels:
            section.blocks.append(Picture(curves.name, plots.lines(panels), curves.caption))
        columns += [panel for panel in curves.panels if panel.column]
    rows = [
        [
            run.name,
            number(run.records[-1].get("step") if run.records else None),
            *(number(_last(run, panel), panel.digits) for panel in columns),
        ]
        for run in runs
    ]
    section.blocks.append(Table(["arm", "steps", *(panel.column for panel in columns)], rows))
    return section


def _sets(run: Experiment, panel: Panel) -> list[tuple[str, str]]:
    """(kind of line, title) of the diagrams that a panel stands for."""
    if panel.lines == TRAINING:
        return [(TRAINING, "training")]
    if panel.lines == FIRST_VALIDATION:
        return [(kind, "validation") for kind in run.valid_kinds[:1]]
    if panel.lines == EACH_VALIDATION:
        return [(kind, kind.replace("valid/", "validation ")) for kind in run.valid_kinds]
    return [(panel.lines, panel.lines)]


def _panels(run: Experiment, panel: Panel) -> Iterable[plots.LinePanel]:
    """The diagrams of one run: a curve for each metric, and for each token field of it."""
    for lines, title in _sets(run, panel):
        curves = {}
        for legend, name in panel.metrics.items():
            for metric in run.names(lines, name):
                steps, values = run.curve(lines, metric)
                field = field_of(metric)
                if steps:
                    words = f"{field}: {legend}" if field else legend
                    curves[words] = (steps, [panel.factor * value for value in values])
        if curves:
            levels = _level_lines(run, lines) if panel.levels else []
            yield plots.LinePanel(title, panel.axis, curves, panel.logarithmic, levels)


def _level_lines(run: Experiment, lines: str) -> list[plots.LevelLine]:
    """Each value once; with the token field where fields differ."""
    drawn = []
    for label, _, measured, values in level_values(run, lines):
        same = len(set(values.values())) == 1
        for field, value in list(values.items())[: 1 if same else None]:
            suffix = "" if same and (len(values) > 1 or not field) else f"\n({field})"
            drawn.append(plots.LevelLine(value, f"{label} {value:.2f}{suffix}", measured))
    return drawn


def _panel_of_runs(runs: list[Experiment], panel: Panel) -> plots.LinePanel:
    """One diagram with a curve for each run."""
    metric, title, curves = next(iter(panel.metrics.values())), "", {}
    for run in runs:
        for lines, words in _sets(run, panel)[:1]:
            title, curve = words, run.curve(lines, metric)
            if curve[0]:
                curves[run.name] = (curve[0], [panel.factor * value for value in curve[1]])
    return plots.LinePanel(title, panel.axis, curves, panel.logarithmic)


def _last(run: Experiment, panel: Panel) -> float | None:
    metric = next(iter(panel.metrics.values()))
    values = [run.last(lines, metric) for lines, _ in _sets(run, panel)[:1]]
    return panel.factor * values[0] if values and values[0] is not None else None


def _schedule(run: Experiment, slug: str) -> list[Picture]:
    """Learning rate and speed, which every run writes."""
    panels = []
    for title, axis, name in (
        ("learning rate", "learning rate (relative)", "learning_rate"),
        ("throughput", "audio seconds per second", "audio_seconds_per_second"),
    ):
        curve = run.curve(TRAINING, name)
        if curve[0]:
            panels.append(plots.LinePanel(title, axis, {run.name: curve}))
    if not panels:
        return []
    caption = "Learning rate of the schedule, and seconds of audio trained on per second of time."
    return [Picture(f"schedule-{slug}", plots.lines(panels), caption)]
