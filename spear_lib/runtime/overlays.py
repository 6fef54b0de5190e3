"""YAML files that build on others, so that a value stands once (ours).

The first line of a configuration may name what lies below it, relative to its own folder::

    extends: [base.yaml, ../../../common/conf/shared/encoder_large.yaml]

The files are read in that order, each with what it builds on itself, and then the file's own values: a later
value replaces an earlier one, group by group; a list is replaced whole. To see every value of a configuration
with the file that it comes from::

    python -m spear_lib.runtime.overlays conf/pretrain/large.yaml
"""

import os
import sys
from pathlib import Path
from typing import Any

import yaml

from spear_lib.runtime.text_files import read_text

EXTENDS = "extends"


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The values of one file alone. Raises ValueError when it is missing or no list of names and values."""
    try:
        if not Path(path).exists():
            raise ValueError(f"configuration file {path} does not exist.")
        values = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"configuration file {path} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(
            f"configuration file {path} must hold 'name: value' lines, got {type(values).__name__}."
        )
    return values


def layers(path: str | os.PathLike, above: tuple[str, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """(file, its own values) of everything that the file ``path`` is made of, lowest first.

    Raises:
      ValueError: a file is missing or damaged, ``extends`` is no file name, or it leads back to its own file.
    """
    name = os.path.normpath(path)
    if name in above:
        raise ValueError(f"configuration files extend each other in a circle: {' -> '.join([*above, name])}")
    values = read_yaml(path)
    below = values.pop(EXTENDS, [])
    below = [below] if isinstance(below, str) else below
    if not isinstance(below, list) or not all(isinstance(item, str) for item in below):
        raise ValueError(f"{EXTENDS} of {path} must be a file name or a list of them, got {below!r}.")
    found = [layer for item in below for layer in layers(Path(path).parent / item, (*above, name))]
    return [*found, (name, values)]


def overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``below`` with the values of ``above`` in their place, group by group."""
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = overlay(merged[name], value) if both else value
    return merged


def read_overlays(path: str | os.PathLike) -> dict[str, Any]:
    """The values of the file ``path`` on those of the files that it extends; errors as ``layers``."""
    merged: dict[str, Any] = {}
    for _, values in layers(path):
        merged = overlay(merged, values)
    return merged


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as {"group.name": value}."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat.update(flatten(item, f"{prefix}.{name}" if prefix else str(name)))
    return flat


def main(argv: list[str] | None = None) -> int:
    """Prints every value of a configuration and the file that it comes from."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m spear_lib.runtime.overlays FILE.yaml", file=sys.stderr)
        return 2
    try:
        found = layers(arguments[0])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    origin = {name: file for file, values in found for name in flatten(values)}
    for name, value in flatten(read_overlays(arguments[0])).items():
        print(f"{f'{name}: {value}':<60} {origin[name]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
