"""What a line of a manifest must hold: the types that lhotse takes for granted (ours).

lhotse makes cuts of any JSON; a number where a text should be (manifests by hand, or written by pandas, which
turns ids into numbers and missing texts into NaN) then fails far from the file that holds it.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    expected: str
    needed: bool = False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_channel(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, list) and all(map(_is_whole, value)))


def _or_null(rule: _Rule) -> _Rule:
    return _Rule(lambda value: value is None or rule.holds(value), f"{rule.expected} or null")


_TEXT = _Rule(lambda value: isinstance(value, str), "a text in quotes")
_NUMBER = _Rule(_is_number, "a number")
_LENGTH = _Rule(lambda value: _is_number(value) and value >= 0, "a number of seconds, 0 or more")
_COUNT = _Rule(lambda value: _is_whole(value) and value >= 0, "a whole number, 0 or more")
_CHANNEL = _Rule(_is_channel, "a whole number, or a list of them")
_OBJECT = _Rule(lambda value: isinstance(value, dict), "an object {...}")
_LIST = _Rule(lambda value: isinstance(value, list), "a list [...]")


def _need(rule: _Rule) -> _Rule:
    return rule._replace(needed=True)


_CUT = {
    "id": _need(_TEXT),
    "type": _need(_TEXT),
    "start": _LENGTH,
    "duration": _need(_LENGTH),
    "channel": _CHANNEL,
    "supervisions": _LIST,
    "recording": _OBJECT,
    "features": _OBJECT,
    "custom": _or_null(_OBJECT),
}
_SUPERVISION = {
    "id": _need(_TEXT),
    "recording_id": _need(_TEXT),
    "start": _need(_NUMBER),
    "duration": _need(_NUMBER),
    "channel": _CHANNEL,
    "custom": _or_null(_OBJECT),
    "alignment": _or_null(_OBJECT),
    **dict.fromkeys(("text", "language", "speaker", "gender"), _or_null(_TEXT)),
}
_RECORDING = {
    "id": _need(_TEXT),
    "sources": _need(_LIST),
    "sampling_rate": _need(_Rule(lambda value: _is_whole(value) and value > 0, "a whole number of Hz")),
    "num_samples": _need(_COUNT),
    "duration": _need(_LENGTH),
    "channel_ids": _or_null(_CHANNEL),
    "transforms": _or_null(_LIST),
}
_SOURCE = {
    "type": _need(_TEXT),
    "channels": _need(_CHANNEL),
    "source": _need(_TEXT),
    "video": _or_null(_OBJECT),
}


def parse_cut(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """The fields of a cut's line.

    Raises:
      ValueError: no JSON, no cut, or a field of another type; names file, line (``number`` from 1) and field.
    """
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {number}, is not JSON ({error.msg}): make the manifest again"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, line {number}, is not UTF-8 ({error}): make the manifest again") from error
    if not isinstance(fields, dict) or not {"id", "duration", "type"} <= fields.keys():
        kind = f"it has the fields {', '.join(fields)}" if isinstance(fields, dict) else "it is not an object"
        raise ValueError(
            f"{path}, line {number}, is not a cut ({kind}): expected a manifest of cuts, e.g. "
            "data/manifests/<corpus>_cuts_<set>.jsonl.gz, not of recordings or supervisions"
        )
    problem = _first_problem(fields)
    if problem:
        raise ValueError(f"{path}, line {number}: {problem}: mend this line, or make the manifest again")
    return fields


def _first_problem(fields: dict[str, Any]) -> str | None:
    problem = _compare(fields, _CUT, "")
    if problem:
        return problem
    for row, supervision in enumerate(fields.get("supervisions", ())):
        problem = problem or _compare(supervision, _SUPERVISION, f"supervisions[{row}]")
    recording = fields.get("recording")
    if recording is None or problem:
        return problem
    problem = _compare(recording, _RECORDING, "recording")
    for row, source in enumerate(recording["sources"] if problem is None else ()):
        problem = problem or _compare(source, _SOURCE, f"recording.sources[{row}]")
    return problem


def _compare(values: Any, rules: dict[str, _Rule], where: str) -> str | None:
    """What is wrong with an object, or None."""
    if not isinstance(values, dict):
        return f"{where} is {_shown(values)}, expected an object {{...}}"
    prefix = f"{where}." if where else ""
    for name, rule in rules.items():
        if name in values:
            if not rule.holds(values[name]):
                return f"the field {prefix}{name} is {_shown(values[name])}, expected {rule.expected}"
        elif rule.needed:
            return f"the field {prefix}{name} is missing, expected {rule.expected}"
    unknown = values.keys() - rules.keys()
    if unknown:
        return f"the field {prefix}{min(unknown)} is unknown; expected {', '.join(rules)}"
    return None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"{text[:60]}..." if len(text) > 60 else text
