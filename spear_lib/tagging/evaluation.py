"""Tagging sets of clips and scoring them: the files of stage 13 (spec evaluation §6).

Legend: n clips, K classes.
"""

import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spear_lib.data.manifests import Manifest
from spear_lib.data.problems import Problems
from spear_lib.runtime.files import atomic_file, write_text
from spear_lib.tagging.class_labels import LabelTable
from spear_lib.tagging.events import Event, EventConfig, find_events
from spear_lib.tagging.inference import Tagger, tag_cuts
from spear_lib.tagging.metrics import TaggingScore, d_prime


@dataclass
class TaggedSet:
    """What a tagger said of a set; the clips are those that could be read and have a known label."""

    ids: list[str]
    targets: np.ndarray
    """(n, K) bool."""
    probabilities: np.ndarray
    """(n, K) float32."""
    events: dict[str, list[Event]]
    """Clip id -> sounds with their times."""
    seconds: float
    """Audio in all."""


def tag_set(
    tagger: Tagger,
    manifest: Manifest,
    labels: LabelTable,
    problems: Problems,
    events: EventConfig,
    batch_seconds: float,
    name: str,
) -> TaggedSet:
    """Every clip of a set, in the order of its manifest; clips that cannot be read or have no label of the
    class list are counted in ``problems``.

    Raises:
      ValueError: too many of them.
    """
    found: dict[int, tuple[np.ndarray, list[Event]]] = {}
    for position, tags in tag_cuts(tagger, manifest, problems, batch_seconds, f"tagging {name}"):
        if len(labels.of(position)):
            found[position] = tags.clip, find_events(tags, events)
    for cut in labels.unlabelled:
        problems.note(f"without a label of the class list ({cut})")
    order = sorted(found)
    ids = manifest.ids
    return TaggedSet(
        ids=[ids[position] for position in order],
        targets=np.array([labels.row(position) for position in order], dtype=bool),
        probabilities=np.array([found[position][0] for position in order], dtype=np.float32),
        events={ids[position]: found[position][1] for position in order},
        seconds=float(np.asarray(manifest.durations)[order].sum()),
    )


def write_predictions(path: str | os.PathLike, tagged: TaggedSet, classes: dict[str, str]) -> None:
    """``predictions-<set>.npz``: ids (n,), labels (K,), targets (n, K) bool, probabilities (n, K) float32."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        ids=np.array(tagged.ids),
        labels=np.array(list(classes)),
        targets=tagged.targets,
        probabilities=tagged.probabilities,
    )
    with atomic_file(path) as file:
        file.write(buffer.getvalue())


def write_classes(path: str | os.PathLike, score: TaggingScore) -> None:
    """``classes-<set>.csv``: one line per class with positives, those of most support first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "label", "name", "support", "average_precision", "roc_area", "d_prime"])
    for each in score.classes:
        values = (each.average_precision, each.roc_area, d_prime(each.roc_area))
        writer.writerow(
            [each.index, each.label, each.name, each.support, *(f"{value:.6g}" for value in values)]
        )
    write_text(path, text.getvalue())


def write_events(path: str | os.PathLike, tagged: TaggedSet, classes: dict[str, str]) -> None:
    """``events-<set>.tsv``: the columns of AudioSet's strong labels, and the highest probability."""
    labels = list(classes)
    lines = ["segment_id\tstart_time_seconds\tend_time_seconds\tlabel\tprobability\n"]
    for name, events in tagged.events.items():
        lines += [
            f"{name}\t{event.start:.3f}\t{event.end:.3f}\t{labels[event.index]}\t{event.probability:.4f}\n"
            for event in events
        ]
    write_text(path, "".join(lines))


def write_score(path: Path, score: TaggingScore, facts: dict) -> None:
    """``tagging-<set>.json``: the summary, the classes, and where the numbers come from."""
    classes = [
        {
            "label": each.label,
            "name": each.name,
            "support": each.support,
            "average_precision": round(each.average_precision, 6),
            "roc_area": None if np.isnan(each.roc_area) else round(each.roc_area, 6),
        }
        for each in score.classes
    ]
    content = {**score.summary(), "classes": classes, **facts}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
