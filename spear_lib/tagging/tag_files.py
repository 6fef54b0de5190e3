"""Tags of a recording in the forms that other programs read: JSON, a table of events, labels of Audacity."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any


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
