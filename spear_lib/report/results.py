"""The sections of the report about results: what evaluations left, as the task.json of their runs says."""

import string
from typing import Any

from spear_lib.report import plots
from spear_lib.report.data import ReportData
from spear_lib.report.render import Fold, Picture, Section, Table, ordered
from spear_lib.runtime.task_file import ItemScores, Listing, TaskDescription

Result = dict[str, Any]
"""Content of a result file, with "kind", "arm" and "set"."""


class _Filled(string.Formatter):
    """str.format in which nothing, or a value that is absent, becomes a dash."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        try:
            return super().get_field(field_name, args, kwargs)
        except (KeyError, IndexError):
            return None, field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        return "–" if value is None else super().format_field(value, format_spec)


def fill(template: str, values: dict[str, Any]) -> str:
    """The template with ``values`` in it.

    Raises:
      ValueError: a value is not of the kind that the template formats.
    """
    try:
        return _Filled().vformat(template, (), values)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the template {template!r} of task.json does not fit its result: {error}"
        ) from error


def result_sections(data: ReportData) -> list[Section]:
    """A section for each kind of run that was evaluated."""
    return [
        _results(description, found)
        for kind, description in data.tasks.items()
        if (found := [result for result in data.results if result["kind"] == kind])
    ]


def headlines(data: ReportData) -> list[list[str]]:
    """[what, result of each arm, what to compare it with] for each kind and test set."""
    rows = []
    for kind, description in data.tasks.items():
        measure, results = description.measure, [each for each in data.results if each["kind"] == kind]
        for name in ordered(result["set"] for result in results):
            row = [result for result in results if result["set"] == name]
            values = "; ".join(f"{each['arm']} {each[measure.name]:.2f} {measure.unit}" for each in row)
            facts = fill(description.results.compare_with, row[0])
            rows.append([f"{measure.title[0].upper()}{measure.title[1:]}, {name}", values, facts])
    return rows


def _results(description: TaskDescription, found: list[Result]) -> Section:
    shown = description.results
    sets = ordered(result["set"] for result in found)
    results = [result for name in sets for result in found if result["set"] == name]
    section = Section(shown.title, [shown.text])
    rows = [[fill(cell, result) for cell in shown.columns.values()] for result in results]
    section.blocks.append(Table(list(shown.columns), rows))
    png = plots.result_bars(results, description.measure.name, shown.bars)
    section.blocks.append(Picture(f"{description.kind}-results", png, shown.bars.caption))
    if shown.listing:
        section.blocks += _listings(results, shown.listing)
    if shown.item_scores:
        # The first set is the one that was chosen on; what counts are the others.
        for name in sets[1:] or sets:
            section.blocks += _item_scores(
                [each for each in results if each["set"] == name], shown.item_scores
            )
    return section


def _listings(results: list[Result], listing: Listing) -> list[Fold]:
    folds = []
    for result in results:
        items = result.get(listing.items, [])[: listing.limit]
        if items:
            rows = [[fill(cell, item) for cell in listing.columns.values()] for item in items]
            table = Table(list(listing.columns), rows, numeric=False)
            folds.append(Fold(fill(listing.title, result), [table]))
    return folds


def _item_scores(results: list[Result], shown: ItemScores) -> list[Picture | Fold]:
    """Of one set: all arms in one picture and one table, items in the order of the first arm."""
    arms = {result["arm"]: result[shown.items] for result in results}
    found = {arm: {item[shown.id]: item for item in items} for arm, items in arms.items()}
    rows = [
        [
            item[shown.item],
            f"{item[shown.size]:,}",
            *(f"{100 * found[arm][item[shown.id]][shown.score]:.1f}" for arm in arms),
        ]
        for item in next(iter(arms.values()))
    ]
    item, size, score = shown.columns
    table = Table([item, size, *(fill(score, {"arm": arm}) for arm in arms)], rows)
    png = plots.item_scores(arms, shown)
    picture = Picture(f"{shown.items}-{results[0]['set']}", png, fill(shown.caption, results[0]))
    return [picture, Fold(fill(shown.title, results[0]), [table])]
