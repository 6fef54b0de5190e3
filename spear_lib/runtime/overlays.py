"""YAML files that build on others: a file says what differs, ``extends`` says from what (ours).

``extends: base.yaml`` or ``extends: [base.yaml, ../shared/large.yaml]``, relative to the file itself; the
files are laid over each other in that order, and the file's own values over all. Groups are merged, lists
replaced.
"""

from pathlib import Path
from typing import Any

import yaml

EXTENDS = "extends"


def read_overlays(path: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """All values of a configuration file, those of the files that it extends included.

    Args:
      above: the files that extend this one, outermost first.

    Raises:
      ValueError: no such file, not YAML, not ``name: value`` lines, or files that extend each other.
    """
    path = Path(path)
    named = f"configuration file {path}" + (f" (extended by {above[-1]})" if above else "")
    if path.resolve() in [other.resolve() for other in above]:
        raise ValueError(f"{named} extends itself, through {' and '.join(map(str, above))}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{named} does not exist.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{named} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{named} must hold 'name: value' lines, got {type(values).__name__}.")
    parents = values.pop(EXTENDS, [])
    merged: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = laid_over(merged, read_overlays(path.parent / parent, (*above, path)))
    return laid_over(merged, values)


def laid_over(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """``lower`` with the values of ``upper``; groups are merged."""
    merged = dict(lower)
    for name, value in upper.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = laid_over(merged[name], value) if both else value
    return merged
