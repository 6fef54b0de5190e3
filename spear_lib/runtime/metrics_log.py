"""What a run leaves to be read: log.txt, metrics.jsonl and TensorBoard curves (ours)."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


@contextmanager
def log_file(experiment_dir: str | Path, active: bool = True) -> Iterator[None]:
    """While inside, the library's messages also go to ``experiment_dir/log.txt`` (appended; once if
    nested)."""
    path = (Path(experiment_dir) / "log.txt").absolute()
    library = logging.getLogger("spear_lib")
    if not active or any(getattr(h, "baseFilename", None) == str(path) for h in library.handlers):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    level = library.level
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    try:
        yield
    finally:
        library.removeHandler(handler)
        library.setLevel(level)
        handler.close()


class MetricsLog:
    """metrics.jsonl and TensorBoard of an experiment; written by the main rank only.

    Lines after the step from which a killed run resumes are taken away first: the file then reads like that
    of an unbroken run.

    Args:
      experiment_dir: gets metrics.jsonl and tensorboard/.
      step: the step from which training goes on, 0 for a new run.
      active: False on ranks other than the main one.
      validated: step of the last validation that came to its end (None: all did); what later ones left is
        taken away too, as they are done again.
    """

    def __init__(
        self, experiment_dir: Path, step: int, active: bool = True, validated: int | None = None
    ) -> None:
        self._file = self._board = None
        if not active:
            return
        path = experiment_dir / "metrics.jsonl"

        def stays(line: dict[str, Any]) -> bool:
            again = validated is not None and line["kind"] != "train" and line["step"] > validated
            return line["step"] <= step and not again

        kept = [json.dumps(line) + "\n" for line in read_metrics(path) if stays(line)]
        partial = path.with_suffix(".jsonl.tmp")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.warning("no TensorBoard curves (pip install tensorboard); all numbers are in %s", path)
        else:
            self._board = SummaryWriter(str(experiment_dir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, epoch: int, kind: str, values: dict[str, float]) -> None:
        """One line: ``kind`` is ``train`` or ``valid/<set>``."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, "epoch": epoch, "kind": kind, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Lines of a metrics.jsonl; a last line torn by a kill is left out. Empty without a file."""
    path = Path(path)
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    texts = path.read_text(encoding="utf-8").splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            if number < len(texts):
                raise ValueError(
                    f"{path} line {number} is not JSON ({error}): delete or mend that line"
                ) from error
    return lines
