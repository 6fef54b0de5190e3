"""A suite of benchmarks: a YAML file that names tasks, each a command of ours with its options (ours).

    common:                        # options of every task
      num_seeds: 3
    tasks:
      ESC-10:
        command: evaluate_xares
        options: {task: ESC-10, clips: ["{corpora}/esc10/clips.tsv"]}
      onsets:
        command: evaluate_hear
        make: {kind: events, num_clips: 80}
        options: {tasks: ["{made}"]}

Places in braces: ``{corpora}``, the folder of the corpora; ``{data}``, what prepare.sh filled; ``{made}``,
the task's own folder of data that ``make`` leaves (``makers``). A file may extend others
(runtime/overlays.py); a task that is false there is left out.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spear_lib.runtime.overlays import read_overlays

COMMANDS = ("evaluate_abx", "evaluate_hear", "evaluate_superb", "evaluate_units", "evaluate_xares")
_PLACE = re.compile(r"\{(\w+)\}")
_KEYS = ("command", "options", "make", "paper")


@dataclass(frozen=True)
class SuiteTask:
    """One entry of a suite, with its places filled in."""

    name: str
    command: str
    """One of COMMANDS."""
    options: dict[str, Any]
    """Of the command, by dotted names."""
    make: dict[str, Any] = field(default_factory=dict)
    """Kind of data to make first, and its parameters; empty: none."""
    paper_column: str = ""
    """Column of the paper with the same task and measure, for the report (report/paper_rows.py)."""
    missing: str = ""
    """Why the task cannot run: what is not there."""

    @property
    def folder_name(self) -> str:
        """Of its results."""
        return re.sub(r"\W+", "_", self.name).strip("_").lower()

    def arguments(self) -> list[str]:
        """The options as one types them."""
        return [f"--{name}={_typed(value)}" for name, value in self.options.items()]


def read_suite(path: str | Path, places: dict[str, str], only: list[str] | None = None) -> list[SuiteTask]:
    """The tasks of a suite in their order.

    Args:
      path: YAML file.
      places: name in braces -> folder; an empty one is not known, and tasks that need it cannot run. ``made``
        is the folder that holds the folders of what is made.
      only: names of the tasks to take; all by default.

    Raises:
      ValueError: a key, command or place that is unknown, a task of ``only`` that is not there; two tasks
        whose results would go to one folder.
    """
    content = read_overlays(path)
    _known(content, ("common", "tasks"), str(path))
    common, entries = content.get("common") or {}, content.get("tasks") or {}
    found: list[SuiteTask] = []
    for name, entry in entries.items():
        if not entry:
            continue
        where = f"{path}, task {name!r}"
        _known(entry, _KEYS, where)
        if entry.get("command") not in COMMANDS:
            raise ValueError(f"{where}: command is {entry.get('command')!r}, use {', '.join(COMMANDS)}")
        task = SuiteTask(str(name), entry["command"], {})
        own = places | {"made": str(Path(places["made"]) / task.folder_name)}
        wanted: dict[str, None] = {}
        options = _filled(_flat({**common, **(entry.get("options") or {})}), own, wanted, where)
        make = _filled(dict(entry.get("make") or {}), own, wanted, where)
        paper = str(entry.get("paper") or "")
        found.append(SuiteTask(task.name, task.command, options, make, paper, _missing(wanted, own)))
    folders = [task.folder_name for task in found]
    twice = [task.name for task in found if folders.count(task.folder_name) > 1]
    if twice:
        raise ValueError(
            f"{path}: the tasks {' and '.join(twice[:2])} have one folder of results: rename one of them"
        )
    if only:
        unknown = sorted(set(only) - {task.name for task in found})
        if unknown:
            names = ", ".join(task.name for task in found)
            raise ValueError(f"{path} has no task {unknown[0]!r}: it has {names}")
        found = [task for task in found if task.name in only]
    if not found:
        raise ValueError(f"{path} names no tasks: see egs/common/conf/benchmarks")
    return found


def _known(entry: Any, keys: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(entry) - set(keys)) if isinstance(entry, dict) else [str(entry)]
    if unknown:
        raise ValueError(f"{where}: {unknown[0]!r} is not known, use {', '.join(keys)}")


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _filled(value: Any, places: dict[str, str], wanted: dict[str, None], where: str) -> Any:
    """``value`` with its places filled in; ``wanted`` receives the paths that begin with one."""
    if isinstance(value, dict):
        return {name: _filled(one, places, wanted, where) for name, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, places, wanted, where) for one in value]
    if not isinstance(value, str):
        return value
    for name in _PLACE.findall(value):
        if name not in places:
            raise ValueError(
                f"{where}: {{{name}}} is not known, use {', '.join(f'{{{one}}}' for one in places)}"
            )
        wanted[value] = None
    return _PLACE.sub(lambda match: places[match[1]], value)


def _missing(wanted: dict[str, None], places: dict[str, str]) -> str:
    for text in wanted:
        for name in _PLACE.findall(text):
            if not places[name]:
                return f"{{{name}}} is not given, for {text}"
        path = Path(_PLACE.sub(lambda match: places[match[1]], text).rpartition("=")[2])
        if "{made}" not in text and not path.exists():
            return f"{path} is not there"
    return ""


def _typed(value: Any) -> str:
    """As an option is typed: lists and words in YAML's flow style."""
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else str(value)
