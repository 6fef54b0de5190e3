"""Data that a suite's task makes first (``make:`` in its file), each kind a function of a folder (ours)."""

import inspect
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spear_lib.corpora.benchmarks.registry import write_manifests
from spear_lib.evaluation.benchmarks.mixtures import make_noisy_speech, make_two_speakers
from spear_lib.evaluation.benchmarks.synthetic import make_events, make_pitches
from spear_lib.runtime.files import read_json, write_json

logger = logging.getLogger(__name__)


def make_manifests(folder: Path, corpus: str, source: str, fold: int = 1) -> None:
    """Of a corpus in its own folder ``source`` (``corpora.benchmarks``)."""
    write_manifests(corpus, source, folder, fold)


MAKERS: dict[str, Callable[..., None]] = {
    "events": make_events,
    "pitch": make_pitches,
    "corpus": make_manifests,
    "two_speakers": make_two_speakers,
    "noisy_speech": make_noisy_speech,
}
"""Kind -> what fills a folder, given the parameters of the suite."""
MADE = "made.json"


def make(folder: Path, parameters: dict[str, Any], where: str) -> None:
    """Fill ``folder``; nothing where it was filled with the same parameters. Killed, it begins again.

    Args:
      parameters: ``kind``, one of MAKERS, and what its function takes.
      where: task, for messages.

    Raises:
      ValueError: an unknown kind or parameter.
    """
    given = dict(parameters)
    kind = given.pop("kind", None)
    if kind not in MAKERS:
        raise ValueError(f"{where}: make.kind is {kind!r}, use {', '.join(MAKERS)}")
    known = list(inspect.signature(MAKERS[kind]).parameters)[1:]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{where}: make has {unknown[0]!r}, {kind} takes {', '.join(known)}")
    if (folder / MADE).exists() and read_json(folder / MADE) == parameters:
        return
    unfinished = folder.with_name(folder.name + ".tmp")
    for old in (unfinished, folder):
        shutil.rmtree(old, ignore_errors=True)
    logger.info("%s: making %s", where, kind)
    unfinished.mkdir(parents=True)
    MAKERS[kind](unfinished, **given)
    write_json(unfinished / MADE, parameters)
    unfinished.rename(folder)
