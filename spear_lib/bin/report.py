"""Write the report of a recipe: corpus, quantiser, tokens, curves, error rates, probes, cost (stage 14)."""

import logging
from dataclasses import dataclass
from pathlib import Path

from spear_lib.asr import description as asr
from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.pretraining import description as pretraining
from spear_lib.runtime.log import commit, first_screen
from spear_lib.tagging import description as tagging

logger = logging.getLogger(__name__)

BEFORE_TASK_FILES = {
    "masked_loss": pretraining.DESCRIPTION,
    "map": tagging.DESCRIPTION,
    "wer": asr.DESCRIPTION,
    "loss": asr.DESCRIPTION,
}
"""Runs made before they wrote task.json: metric -> what such a run trained. New tasks do not belong here."""


@dataclass(frozen=True)
class ReportOptions:
    """What the report reads and where it goes."""

    data_dir: str
    """Folder that prepare.sh filled: manifests, quantizers, tokens and its stage markers."""
    experiment_dirs: list[str]
    """Training runs in reading order (pre-training first). Results (the files that the task.json of a run
    names) and probes.json are found anywhere below; the last part of the folder's name names the arm."""
    output_dir: str
    """Receives report.md, report.html (one file, opens offline), report.json and pictures/."""
    exp_dir: str = ""
    """Folder of run.sh with its stage markers in .done; empty: the folder that holds output_dir."""
    title: str = "SPEAR: from a corpus to a word error rate"
    """Heading."""


def main(argv: list[str] | None = None) -> None:
    options = parse(
        ReportOptions,
        argv,
        prog="python -m spear_lib.bin.report",
        description="Write report.md, report.html and report.json from what the stages left behind.",
    )
    # Imported here: matplotlib takes a second, and --help should not.
    from spear_lib.report.pages import write_report

    output_dir = Path(options.output_dir)
    exp_dir = Path(options.exp_dir) if options.exp_dir else output_dir.resolve().parent
    first_screen(
        "Writing the report",
        {
            "data": options.data_dir,
            "experiments": ", ".join(options.experiment_dirs),
            "markers": exp_dir / ".done",
        },
    )
    content = write_report(
        data_dir=Path(options.data_dir),
        experiment_dirs=[Path(folder) for folder in options.experiment_dirs],
        exp_dir=exp_dir,
        output_dir=output_dir,
        title=options.title,
        code=commit(),
        before_task_files=BEFORE_TASK_FILES,
    )
    for missing in content["missing"]:
        logger.warning("not in the report: %s", missing)
    for result in content["results"]:
        measure = content["tasks"][result["kind"]]
        value = f"{result[measure['name']]:.2f} {measure['unit']}"
        logger.info("%s, %s: %s %s", result["set"], result["arm"], measure["title"], value)
    logger.info("report: %s", (output_dir / "report.html").resolve())


if __name__ == "__main__":
    run(main)
