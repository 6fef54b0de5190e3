"""A suite of benchmarks on frozen encoders (stage 15 of run.sh): the tasks of a YAML file, one by one.

    python -m spear_lib.bin.benchmark --suite conf/benchmarks/mini.yaml --encoders '[exp/pretrain/encoder]' \\
        --corpora_dir /corpora --data_dir data --output_dir exp/benchmarks

Tasks whose data is not there are left out and named at the end. Results of a task lie in
OUTPUT_DIR/TASK/results.json, a page of all of them in OUTPUT_DIR/report.html. Run the same command again to
go on after a crash; tasks that are done are not measured again.
"""

import importlib
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.evaluation.benchmarks.makers import make
from spear_lib.evaluation.benchmarks.suite import SuiteTask, read_suite
from spear_lib.runtime.files import read_json, write_json
from spear_lib.runtime.log import commit, first_screen

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """The suite, what is measured, and where data and results lie."""

    suite: str
    """YAML file of tasks (egs/common/conf/benchmarks, spear_lib/evaluation/benchmarks/suite.py)."""
    encoders: list[str]
    """What is measured, each ``PATH`` or ``NAME=PATH``, as for evaluate_superb."""
    output_dir: str
    """Receives a folder of results for each task, and the page."""
    corpora_dir: str = ""
    """{corpora} in the suite: the folder that holds the corpora."""
    data_dir: str = ""
    """{data} in the suite: what prepare.sh filled."""
    tasks: list[str] = field(default_factory=list)
    """Names of the tasks to run; all by default."""
    baselines: bool = True
    """Measure log-mel features, and the first encoder of ours with random weights, as well."""
    device: str = "auto"
    """cpu, cuda or auto."""
    seed: int = 0
    """First seed of every task."""
    title: str = "Benchmarks"
    """Heading of the page."""

    def read(self) -> list[SuiteTask]:
        """The tasks of the suite."""
        places = {
            "corpora": self.corpora_dir,
            "data": self.data_dir,
            "made": str(Path(self.output_dir) / "data"),
        }
        return read_suite(self.suite, places, self.tasks)


def run_task(task: SuiteTask, options: BenchmarkOptions) -> None:
    """Data first, then the command of the task in this process."""
    if task.make:
        made = Path(options.output_dir) / "data" / task.folder_name
        make(made, task.make, f"task {task.name}")
    given = [
        f"--encoders={json.dumps(options.encoders)}",
        f"--output_dir={Path(options.output_dir) / task.folder_name}",
        f"--baselines={str(options.baselines).lower()}",
        f"--device={options.device}",
        f"--seed={options.seed}",
    ]
    command = importlib.import_module(f"spear_lib.bin.{task.command}")
    try:
        command.main([*given, *task.arguments()])
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"task {task.name} ({task.command}): {error}") from error


def write_status(
    output: Path, options: BenchmarkOptions, ready: list[SuiteTask], left_out: dict[str, str]
) -> None:
    """Names and order of the tasks, for the page; with --tasks, those of earlier runs stay."""
    from spear_lib.report.benchmarks import STATUS_NAME  # see main

    now = {
        task.folder_name: {"name": task.name, "folder": task.folder_name, "paper": task.paper_column}
        for task in ready
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / STATUS_NAME
    before = {entry["folder"]: entry for entry in read_json(path)["tasks"]} if path.exists() else {}
    content = {"suite": options.suite, "tasks": list((before | now).values()), "left_out": left_out}
    write_json(path, content | {"code": commit()})


def main(argv: list[str] | None = None) -> None:
    options = parse(BenchmarkOptions, argv, prog="python -m spear_lib.bin.benchmark", description=__doc__)
    # Imported here: matplotlib takes a second, and --help should not.
    from spear_lib.report.benchmarks import write_page
    from spear_lib.report.paper_rows import paper_values

    tasks = options.read()
    for task in tasks:
        if task.paper_column:
            paper_values(task.paper_column)  # a wrong name is said before hours of work
    ready = [task for task in tasks if not task.missing]
    if not ready:
        raise ValueError(
            f"no task of {options.suite} can run: {tasks[0].missing}; give --corpora_dir (run.sh: "
            "--benchmark-data) the folder of the corpora"
        )
    first_screen(
        "Benchmarks",
        {
            "suite": options.suite,
            "encoders": ", ".join(options.encoders),
            "tasks": ", ".join(task.name for task in ready),
            "left out": "; ".join(f"{task.name} ({task.missing})" for task in tasks if task.missing)
            or "none",
            "result": Path(options.output_dir) / "report.html",
        },
    )
    output = Path(options.output_dir)
    # Before the work: what a killed suite has measured keeps its name and its place.
    write_status(output, options, ready, {task.name: task.missing for task in tasks if task.missing})
    for number, task in enumerate(ready, 1):
        logger.info("task %d of %d: %s (%s)", number, len(ready), task.name, task.command)
        run_task(task, options)
    write_page(output, options.title, commit())
    for task in tasks:
        if task.missing:
            logger.warning("left out: %s, as %s", task.name, task.missing)
    logger.info("report: %s", (output / "report.html").resolve())


if __name__ == "__main__":
    run(main)
