"""task.json: what a run trains, how it is judged, and what the report shows of it (ours).

Every run writes it beside its metrics.jsonl, from the ``description`` of its task. The report reads it and
knows no task by name, so that a new task comes with its own curves and tables.

A *template* is text with the keys of a result file in braces, ``"{num_words:,} words"``, as in str.format.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spear_lib.runtime.files import read_json, write_json

FILE_NAME = "task.json"

TRAINING, FIRST_VALIDATION, EACH_VALIDATION = "train", "valid", "valid/*"
"""Whose lines of metrics.jsonl a panel draws; ``valid/*`` makes a panel of each validation set."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What a run is judged by first."""

    name: str
    """In metrics.jsonl and in the result files."""
    title: str
    """In words, "word error rate"."""
    unit: str
    """Of its values: "%", "nats"."""
    better: str
    """lower | higher."""

    def __post_init__(self) -> None:
        if self.better not in ("lower", "higher"):
            raise ValueError(f"measure {self.name}: better is {self.better!r}, it must be lower or higher")


@dataclass(frozen=True, kw_only=True)
class Level:
    """What is reached without learning, for example by guessing: a line to compare curves with."""

    metric: str
    """In the lines of the validation sets; the last value counts."""
    label: str
    """Beside the line in a picture."""
    words: str
    """In tables."""
    measured: bool = False
    """On the data of the run (a dotted line with its words below); else known beforehand (dashed, above)."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One diagram over the optimiser steps."""

    lines: str
    """train | valid (the first validation set) | valid/* (a panel of each set)."""
    metrics: dict[str, str]
    """Name in the legend -> metric. Where runs stand side by side: one metric; the legend names the runs."""
    axis: str
    """What is drawn, with its unit."""
    factor: float = 1.0
    """On the values: 100 makes percent of a share."""
    logarithmic: bool = False
    """Draw with a logarithmic axis where values differ by more than a factor of ten."""
    levels: bool = False
    """Draw the levels of the description too."""
    column: str = ""
    """Title of the column that holds the last value, in the table of runs side by side; empty: none."""
    digits: int = 4
    """Of that column."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """One picture: panels side by side."""

    name: str
    """Of the file."""
    caption: str
    panels: list[Panel]


@dataclass(frozen=True, kw_only=True)
class Bars:
    """The picture of a set of results: one bar for each test set and run."""

    axis: str
    """What is drawn, with its unit."""
    caption: str
    parts: list[str] = field(default_factory=list)
    """Keys of counts that the bar is divided into (errors by their kind); none: one bar of the measure."""
    parts_of: str = ""
    """Key of the count that they are shares of, in percent."""
    interval: str = ""
    """Key of a pair: how far chance reaches."""
    chance: str = ""
    """Key of what guessing reaches."""
    highest: float | None = None
    """The best possible value; None: there is none."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A table of the first items of a list in each result file, folded."""

    items: str
    """Key of the list."""
    title: str
    """Template."""
    columns: dict[str, str]
    """Title -> template of an item's cell."""
    limit: int


@dataclass(frozen=True, kw_only=True)
class ItemScores:
    """A score for each item of a list in the result files (each class), all runs in one picture and table."""

    items: str
    """Key of the list, the same in all runs."""
    id: str
    """Key of what an item is known by; ``item`` is the key of its name, ``size`` of how much there is of it,
    ``score`` of its score, a share in 0..1 that is shown in percent."""
    item: str
    size: str
    score: str
    title: str
    """Template of the folded table's title, as ``caption`` of the picture's: {set}."""
    caption: str
    item_axis: str
    size_axis: str
    score_axis: str
    columns: list[str]
    """Titles of item and size, and a template of that of each run's score: {arm}."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the evaluation leaves and how it is shown."""

    files: str
    """``<files>-<set>.json``, anywhere below the run's folder, with "set", the measure and more."""
    title: str
    """Of the section."""
    text: str
    """What the measure means, for a first reader."""
    columns: dict[str, str]
    """Title -> template of a cell; {set} and {arm} (the run's short name) are known too."""
    compare_with: str
    """Template of the facts beside the measure in the table at the top of the report."""
    bars: Bars
    listing: Listing | None = None
    item_scores: ItemScores | None = None


@dataclass(frozen=True, kw_only=True)
class TaskDescription:
    """All that the report must know of a kind of run."""

    kind: str
    """Short name, written into checkpoints; only a run of the same kind goes on from them."""
    title: str
    """Heading of the first screen and of the section in the report."""
    measure: Measure
    summary: str = ""
    """One sentence: what this does to the encoder."""
    text: str = ""
    """What to see in the curves, for a first reader."""
    side_by_side: bool = True
    """Runs of the kind share pictures and a table, to be compared; False: a section for each run, with its
    probe, its schedule and all last values."""
    curves: list[Curves] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    """What the measure is compared with."""
    unlisted: str = ""
    """Part of the names of metrics that the table of last values leaves out; empty: none."""
    results: Results | None = None
    """None: the run is judged by its validation."""


def write_task(folder: Path, description: TaskDescription) -> None:
    """Write ``folder/task.json``."""
    write_json(folder / FILE_NAME, dataclasses.asdict(description))


def read_task(folder: Path) -> TaskDescription:
    """Raises ValueError naming the file, when it is damaged or has keys that this version does not know."""
    path = folder / FILE_NAME
    try:
        return _build(TaskDescription, read_json(path))
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a description of a task as this version writes it ({error}): start the training "
            "command of that folder again, which writes the file"
        ) from error


def _build(hint: Any, value: Any) -> Any:
    """Dataclasses of nested dicts, by the type hints of their fields."""
    if isinstance(hint, types.UnionType):  # "X | None"
        return None if value is None else _build(hint.__args__[0], value)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{name: _build(hints.get(name), item) for name, item in value.items()})
    if typing.get_origin(hint) is list:
        return [_build(hint.__args__[0], item) for item in value]
    return value
