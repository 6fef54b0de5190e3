"""Checkpoints: everything that a run needs to go on as if it had never stopped (DESIGN §4; ours).

A checkpoint is one file read with ``weights_only=True``. Its fields:

    version, kind           of this layout, of the task ("pretraining", "asr", ...)
    config                  all options of the command, as a dict
    model                   state dict of task.model; the encoder's names start with "encoder."
    model_average           {"state": running mean of the model or None, "step": int} (spec optim §3)
    optimizer, scheduler, precision
    sampler                 {"epoch", "batch"}: global batches of the epoch already used
    data                    fingerprint and batching of the data (``resuming.data_state``)
    audio_clock             nominal audio seen, which the schedules go by (``resuming.AudioClock``)
    step, hours, seconds    optimiser steps, nominal hours of audio, seconds of training
    validated               step of the last validation that came to its end
    totals                  sums of the metrics that were not logged yet
    encoder_config, quantizer_ids, ...   whatever task.identity() names

There is no random state: every draw is keyed by (seed, epoch or step, utterance id).
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from spear_lib.runtime.files import atomic_path
from spear_lib.runtime.locks import try_lock

logger = logging.getLogger(__name__)

VERSION = 1


def save(state: dict[str, Any], path: str | Path) -> None:
    """Writes ``state`` aside and renames it, so that ``path`` is always whole, whenever the power goes.

    Raises:
      RuntimeError: when it cannot be written (full disk, no permission); an older file at ``path`` is
      untouched.
    """
    path = Path(path)
    try:
        with atomic_path(path) as partial:
            torch.save({"version": VERSION, **state}, partial)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"the checkpoint {path} could not be written ({error.__cause__ or error}). Checkpoints already "
            "there are whole: make room or mend the permissions, then run the same command again; it goes on "
            "from the last one"
        ) from error


def load(path: str | Path, kind: str | None = None) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU.

    Args:
      kind: what it must be a checkpoint of, e.g. ``"pretraining"``; None accepts all.

    Raises:
      ValueError: no such file, not a checkpoint of this product, another layout version or another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no common base class for unreadable files
        raise ValueError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(state, dict) or "version" not in state or "model" not in state:
        raise ValueError(
            f"{path} is no checkpoint of a spear_lib training run (fields version and model are missing)"
        )
    if state["version"] != VERSION:
        raise ValueError(f"{path} has layout version {state['version']}, this code reads {VERSION}")
    if kind is not None and state.get("kind") != kind:
        raise ValueError(f"{path} is a checkpoint of {state.get('kind')!r}, expected {kind!r}")
    return state


class CheckpointFolder:
    """``experiment_dir/checkpoints``: ``last.pt`` and ``step-00001000.pt``.

    Args:
      keep: how many step files stay (0: all).
    """

    def __init__(self, folder: str | Path, keep: int = 0) -> None:
        self.folder, self.keep = Path(folder), keep

    @property
    def last(self) -> Path:
        return self.folder / "last.pt"

    def steps(self) -> list[tuple[int, Path]]:
        """(step, path) of the kept checkpoints, oldest first."""
        found = []
        for path in self.folder.glob("step-*.pt"):
            match = re.fullmatch(r"step-(\d+)\.pt", path.name)
            if match:
                found.append((int(match.group(1)), path))
        return sorted(found)

    def save(self, state: dict[str, Any], keep_step: bool) -> Path:
        """Writes last.pt, and with ``keep_step`` a step file that shares its blocks on disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not keep_step:
            save(state, self.last)
            return self.last
        path = self.folder / f"step-{state['step']:08d}.pt"
        save(state, path)
        partial = self.last.with_name("last.pt.tmp")
        partial.unlink(missing_ok=True)
        try:
            os.link(path, partial)
        except OSError:  # a file system without hard links
            save(state, self.last)
        else:
            os.replace(partial, self.last)
        for _, old in self.steps()[: -self.keep] if self.keep else []:
            old.unlink()
        return path


@contextmanager
def lock(experiment_dir: str | Path, active: bool = True) -> Iterator[None]:
    """Keeps a second run out of the folder while inside; a killed process lets go of it.

    Raises:
      RuntimeError: another process is training there, or the file system has no locks.
    """
    if not active:
        yield
        return
    Path(experiment_dir).mkdir(parents=True, exist_ok=True)
    path = Path(experiment_dir) / "lock"
    with path.open("w") as file:
        if not try_lock(file, path):
            raise RuntimeError(
                f"another process is training in {experiment_dir}: wait until it ends, or use another "
                "experiment_dir"
            )
        yield
