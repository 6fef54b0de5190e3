"""One way to turn a frozen dataclass into a command line, a YAML file and back (on jsonargparse).

A command describes what it can do as a frozen dataclass, with a docstring under each field. ``parse`` makes
the command line of it: ``--config file.yaml`` first, with the files that it extends (runtime/overlays.py),
then ``--group.name value`` overrides. A key that does not exist is an error that names the nearest one.
One field may be ``positional()``: what is typed without a name, ``command a.flac b.flac --option value``.
"""

import dataclasses
import difflib
import json
import os
import re
import sys
import typing
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from spear_lib.runtime.files import write_text
from spear_lib.runtime.overlays import read_overlays

Options = TypeVar("Options")

MAY_CHANGE = {"on_resume": "exact"}
"""Metadata of a field, ``field(default=2, metadata=MAY_CHANGE)``: a run that is gone on with may give it, and
all that is below it, another value, because it changes no weight."""
RESEED_MAY_CHANGE = {"on_resume": "reseed"}
"""The same with ``training.resume reseed`` alone: the field says which batches there are."""


def may_change(options: Any, metadata: dict[str, str], prefix: str = "") -> list[str]:
    """Dotted names of the fields of ``options`` (a dataclass) that carry ``metadata``."""
    names = []
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), prefix + field.name
        if field.metadata.get("on_resume") == metadata["on_resume"]:
            names.append(name)
        elif dataclasses.is_dataclass(value):
            names += may_change(value, metadata, name + ".")
    return names


def positional(help: str) -> Any:
    """A required field, ``list[str]``, that is given without its name: one or more words.

    Args:
      help: what ``--help`` says of it (the docstring under such a field is for readers of the code only).
    """
    return dataclasses.field(metadata={"positional": help})


class _OptionParser(ArgumentParser):
    """Errors in one line, with the nearest valid key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(_plain(message))


def _plain(message: str) -> str:
    """The parser's words for a value that fits none of several types, in ours."""
    found = re.match(
        r'Parser key "([^"]+)":\s+Does not validate against any of the Union subtypes\s+'
        r"Subtypes: [\[(](.*?)[\])]\s+Errors:.*Given value: (.*)",
        message,
        re.DOTALL,
    )
    if not found:
        return message
    key, kinds, value = found.groups()
    kinds = re.sub(r"<class '([\w.]+)'>", r"\1", kinds).replace("NoneType", "null")
    return f"option {key}: {value} is none of these: {kinds}"


def _parser(cls: type, prog: str | None = None, description: str | None = None) -> _OptionParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _OptionParser(prog=prog, description=description, exit_on_error=True)
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file of options, on those that it extends; later options on the command line override it.",
    )
    words = {field.name: field.metadata.get("positional") for field in dataclasses.fields(cls)}
    words = {name: help for name, help in words.items() if help}
    for name, help in words.items():
        parser.add_argument(name, nargs="+", type=str, help=help)
    parser.add_class_arguments(cls, as_group=False, skip=set(words))
    return parser


def _keys(cls: type, prefix: str = "") -> list[str]:
    """Every option of ``cls`` as a dotted name, groups included."""
    names = []
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        names.append(name)
        nested = _nested_dataclass(cls, field.name)
        if nested is not None:
            names += _keys(nested, name + ".")
    return names


def _nested_dataclass(cls: type, name: str) -> type | None:
    hint = typing.get_type_hints(cls)[name]
    candidates = [hint, *typing.get_args(hint)]
    return next((c for c in candidates if isinstance(c, type) and dataclasses.is_dataclass(c)), None)


def _check_keys(cls: type, names: list[str], where: str) -> None:
    known = _keys(cls)
    for name in names:
        if name.rstrip("+") in known or name in ("config", "help", "print_config"):
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        leaf = [k for k in known if k.split(".")[-1] == name.split(".")[-1]]
        nearest = (leaf or close or ["--help lists them"])[0]
        raise ValueError(f"unknown option '{name}' in {where}; the nearest known option is '{nearest}'.")


def _dotted(values: dict[str, Any], cls: type, prefix: str = "") -> list[str]:
    names = []
    for name, value in values.items():
        names.append(prefix + str(name))
        nested = _nested_dataclass(cls, name) if name in {f.name for f in dataclasses.fields(cls)} else None
        if isinstance(value, dict) and nested is not None:
            names += _dotted(value, nested, f"{prefix}{name}.")
    return names


def _resolved(argv: list[str], cls: type) -> list[str]:
    """``--config FILE`` with the values of the file, and of all that it extends, in the place of its name."""
    resolved = list(argv)
    for position, argument in enumerate(argv):
        if argument == "--config" and position + 1 < len(argv):
            place, prefix, path = position + 1, "", argv[position + 1]
        elif argument.startswith("--config="):
            place, prefix, path = position, "--config=", argument.removeprefix("--config=")
        else:
            continue
        values = read_overlays(path)
        _check_keys(cls, _dotted(values, cls), path)
        resolved[place] = prefix + yaml.safe_dump(values)
    return resolved


def _normalise(argv: list[str]) -> list[str]:
    """Dashes and underscores in option names mean the same: --batch-seconds is --batch_seconds. A value that
    begins with a dash (a path, say) is joined to its option, or argparse would take it for another one."""
    joined: list[str] = []
    for argument in argv:
        if argument.startswith("--"):
            argument = re.sub(r"^--([^=]+)", lambda m: "--" + m.group(1).replace("-", "_"), argument)
        elif argument.startswith("-") and joined and re.fullmatch(r"--[^=]+", joined[-1]):
            argument = f"{joined.pop()}={argument}"
        joined.append(argument)
    return joined


def _types(cls: type, name: str) -> tuple[Any, ...]:
    """What the option takes: its type, and the parts of a union."""
    *groups, leaf = name.split(".")
    for group in groups:
        cls = _nested_dataclass(cls, group)
    hint = typing.get_type_hints(cls)[leaf]
    return (hint, *(() if typing.get_origin(hint) is list else typing.get_args(hint)))


def _quoted_lists(argv: list[str], cls: type) -> list[str]:
    """Lists of paths with their items in quotes, so that a path may hold what means something in YAML (a
    comma, colon, bracket, ``#``): ``--cuts '[a: b.jsonl]'``; one path without brackets is a list of one.

    Raises:
      ValueError: brackets around what is neither a list of texts nor the names of files.
    """
    quoted = list(argv)
    for place, argument in enumerate(argv):
        match = re.match(r"--([^=]+)(=?)(.*)", argument, re.DOTALL)
        types = _types(cls, match[1]) if match is not None and match[1] in _keys(cls) else ()
        if list[str] not in types:
            continue
        if match[2]:
            quoted[place] = f"--{match[1]}={_quoted_list(match[1], match[3], str in types)}"
        elif place + 1 < len(argv) and not argv[place + 1].startswith("--"):
            quoted[place + 1] = _quoted_list(match[1], argv[place + 1], str in types)
    return quoted


def _quoted_list(name: str, text: str, or_text: bool) -> str:
    if not (text.startswith("[") and text.endswith("]")) or os.path.exists(text):
        alone = or_text or not text or text == "null"
        return text if alone else json.dumps([text])
    inner = text[1:-1]
    if os.path.exists(inner):
        return json.dumps([inner])
    try:
        items = yaml.safe_load(text)
    except yaml.YAMLError:
        items = None
    if isinstance(items, list) and not any(isinstance(item, dict | list | None) for item in items):
        return text
    items = [item.strip() for item in inner.split(",")]
    if all(map(os.path.exists, items)):
        return json.dumps(items)
    raise ValueError(
        f"--{name} {text} is no list of texts: put quotes around what holds a comma, colon, bracket or #, as "
        f'in --{name} \'["one, two.jsonl", "three.jsonl"]\''
    )


def parse(
    cls: type[Options], argv: list[str] | None = None, prog: str | None = None, description: str | None = None
) -> Options:
    """Options of a command from its command line.

    Args:
      cls: frozen dataclass; nested dataclasses become groups (``--group.name``).
      argv: arguments without the program's name; the process's own by default.
      prog: how the command is called, shown by ``--help``.
      description: one paragraph shown by ``--help``.

    Raises:
      SystemExit: status 0 for ``--help``; status 2 with one line on standard error for anything wrong.
    """
    argv = _normalise(list(sys.argv[1:] if argv is None else argv))
    try:
        parser = _parser(cls, prog, description)
        given = [re.match(r"--([^=]+)", a).group(1) for a in argv if re.match(r"--[^=]", a)]
        _check_keys(cls, given, "the command line")
        namespace = parser.parse_args(_quoted_lists(_resolved(argv, cls), cls))
        return _instantiate(parser, namespace, cls)
    except ValueError as error:
        message = " ".join(str(error).split())
        print(f"error: {message}\n       `{prog or sys.argv[0]} --help` lists every option.", file=sys.stderr)
        raise SystemExit(2) from error


def load(cls: type[Options], source: str | os.PathLike | dict[str, Any]) -> Options:
    """Options from a YAML file or a (nested) dict. Raises ValueError for unknown keys and wrong types."""
    values = dict(source) if isinstance(source, dict) else read_overlays(source)
    where = "the given values" if isinstance(source, dict) else str(source)
    _check_keys(cls, _dotted(values, cls), where)
    parser = _parser(cls)
    return _instantiate(parser, parser.parse_object(values), cls)


def _instantiate(parser: _OptionParser, namespace: Namespace, cls: type[Options]) -> Options:
    namespace.pop("config", None)
    instantiated = parser.instantiate(namespace)
    values = {field.name: instantiated[field.name] for field in dataclasses.fields(cls)}
    return cls(**{name: _build(cls, name, value) for name, value in values.items()})


def _build(cls: type, name: str, value: Any) -> Any:
    nested = _nested_dataclass(cls, name)
    if nested is not None and isinstance(value, Namespace | dict):
        value = value.as_dict() if isinstance(value, Namespace) else value
        return nested(**{key: _build(nested, key, item) for key, item in value.items()})
    return value


def to_dict(options: Any) -> dict[str, Any]:
    """Plain nested dict (lists, strings, numbers), ready for YAML, JSON or a checkpoint."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return plain(options)


def save(options: Any, path: str | os.PathLike) -> None:
    """Write ``options`` as YAML, aside and renamed."""
    write_text(path, yaml.safe_dump(to_dict(options), sort_keys=False))
