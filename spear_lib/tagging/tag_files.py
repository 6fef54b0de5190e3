"""Tags of a recording in the forms that other programs read: JSON, a table of events, labels of Audacity."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from spear_lib.tagging.events import EventConfig, find_events
from spear_lib.tagging.inference import TaggedFile, Tagger


def results(tagger: Tagger, file: TaggedFile, top: int, events: EventConfig) -> dict:
    """Plain values of one file for JSON."""
    labels, names = list(tagger.classes), list(tagger.classes.values())
    order = np.argsort(-file.tags.clip, kind="stable")[:top].tolist()
    return {
        "audio": str(file.path),
        "seconds": round(file.seconds, 3),
        "sampling_rate": file.sampling_rate,
        "channels": file.num_channels,
        "windows": file.num_windows,
        "classes": [
            {"label": labels[i], "name": names[i], "probability": round(float(file.tags.clip[i]), 4)}
            for i in order
        ],
        "events": [
            {
                "start": round(event.start, 3),
                "end": round(event.end, 3),
                "label": labels[event.index],
                "name": names[event.index],
                "probability": round(event.probability, 4),
            }
            for event in find_events(file.tags, events)
        ],
    }


def _json(content: dict[str, Any], facts: dict[str, Any]) -> str:
    return json.dumps({**content, **facts}, indent=1, ensure_ascii=False) + "\n"


def _csv(content: dict[str, Any], facts: dict[str, Any]) -> str:
    """One line for each event; times in s."""
    columns = ["audio", "start", "end", "label", "name", "probability"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"audio": content["audio"], **event} for event in content["events"])
    return text.getvalue()


def _audacity(content: dict[str, Any], facts: dict[str, Any]) -> str:
    """Lines "start, end, text" with tabs: File > Import > Labels."""
    return "".join(
        f"{e['start']:.6f}\t{e['end']:.6f}\t{' '.join(e['name'].split())} {e['probability']:.2f}\n"
        for e in content["events"]
    )


FORMATS: dict[str, tuple[str, Callable[[dict[str, Any], dict[str, Any]], str]]] = {
    "json": (".json", _json),
    "csv": (".csv", _csv),
    "audacity": (".labels.txt", _audacity),
}
"""Name -> ending of the file, its content of a recording's tags and where the model comes from."""
