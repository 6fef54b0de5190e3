"""Done-markers of recipe stages: what made a stage, and whether it still stands. Called by stages.sh only.

``check`` exits 0 when the stage is done with the same options (one line says so), 10 when it must run (and
notes the options it starts with, so that a killed stage is not continued with others), 1 when it must not:
made or begun with other options, an input stage missing, or an input stage redone since. ``write`` leaves the
marker.

A stage's ``id`` is a hash of its options, configurations, identities and the ids of its input stages: redoing
a stage with the same options keeps the id, so what follows stays valid.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from spear_lib.runtime import files
from spear_lib.runtime.overlays import flatten, read_overlays

MUST_RUN = 10
FIRST_RUN_STAGE = 10  # stages below it belong to prepare.sh and live in the data folder


class Refused(RuntimeError):
    """The stage must not run; the message says why and what to do."""


def script_of(number: int) -> str:
    return "./prepare.sh" if number < FIRST_RUN_STAGE else "./run.sh"


def done_dir(arguments: argparse.Namespace, number: int) -> Path:
    return Path(arguments.data_dir if number < FIRST_RUN_STAGE else arguments.exp_dir) / ".done"


def marker_path(arguments: argparse.Namespace, number: int) -> Path:
    return done_dir(arguments, number) / f"stage-{number}.json"


def read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return files.read_json(path)
    except ValueError as error:
        raise Refused(str(error)) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


def read_config(path: str) -> dict[str, Any]:
    """The values of a configuration and of all that it extends, {"a.b": value}."""
    file = Path(path)
    if not file.is_file():
        # The recipe's own configurations of that kind, and those that all recipes share.
        below_conf = file.parent.parts[file.parent.parts.index("conf") + 1 :] if "conf" in file.parts else ()
        folders = [file.parent, Path(__file__).parent / "conf" / Path(*below_conf)]
        found = {other.stem for folder in folders for other in folder.glob("*.yaml")}
        raise Refused(f"no configuration {path}; there are: {', '.join(sorted(found)) or 'none'}")
    try:
        return flatten(read_overlays(path))
    except ValueError as error:
        raise Refused(str(error)) from error


def read_identity(text: str) -> tuple[str, Any]:
    """``name=file.json:key`` -> (name, the value in the file)."""
    name, _, place = text.partition("=")
    path, _, key = place.rpartition(":")
    content = read_json(Path(path))
    if content is None or key not in content:
        raise Refused(f"{path} does not say its {key}, which identifies the {name}")
    return name, content[key]


def input_ids(arguments: argparse.Namespace) -> dict[str, str]:
    """The ids of the input stages; refuses when one is missing or itself out of date."""
    ids: dict[str, str] = {}
    for number in arguments.after:
        marker = read_json(marker_path(arguments, number))
        if marker is None:
            raise Refused(
                f"stage {arguments.number} ({arguments.description}) reads what stage {number} makes, and "
                f"{marker_path(arguments, number)} is not there.\n"
                f"  Run first: {script_of(number)} --stage {number} --stop-stage {number} "
                "(with your other options)"
            )
        for earlier, recorded in marker["inputs"].items():
            current = read_json(marker_path(arguments, int(earlier)))
            if current is not None and current["id"] != recorded:
                raise Refused(stale_message(arguments, marker, [earlier]))
        ids[str(number)] = marker["id"]
    return ids


def remove_advice(arguments: argparse.Namespace, number: int, leaves: list[str]) -> str:
    paths = [str(marker_path(arguments, number)), str(started_path(arguments, number)), *leaves]
    there = [path for path in paths if Path(path).exists() or Path(path).is_symlink()]
    return "rm -rf " + " ".join(shlex.quote(path) for path in there)


def stale_message(arguments: argparse.Namespace, marker: dict[str, Any], changed: list[str]) -> str:
    stages = " and ".join(f"stage {number}" for number in changed)
    number = marker["stage"]
    return (
        f"stage {number} ({marker['description']}) is out of date: {stages} was made again with other "
        f"options since.\n  To make it again: {remove_advice(arguments, number, marker['leaves'])}\n"
        f"  then: {script_of(number)} --stage {number} (with your other options)"
    )


def started_path(arguments: argparse.Namespace, number: int) -> Path:
    return done_dir(arguments, number) / f"stage-{number}.started.json"


def recipe_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides the result of the stage, before it runs."""
    options = dict(item.split("=", 1) for item in arguments.option)
    configs = {path: read_config(path) for path in arguments.config}
    return {"options": options, "configs": configs, "inputs": input_ids(arguments)}


def differences(old: dict[str, Any], new: dict[str, Any], facts: list[str]) -> list[str]:
    """Readable lines, one for every option, fact or configuration value that differs."""
    lines = []
    for name in sorted({*old["options"], *new["options"]}):
        before, now = old["options"].get(name), new["options"].get(name)
        if (before or "") != (now or ""):
            title = f"{name} of local/corpus.sh" if name in facts else f"--{name.replace('_', '-')}"
            lines.append(f"  {title}: was {show(before)}, now {show(now)}")
    # Configurations are compared in order, so that another file of the same role shows its differing values.
    old_files, new_files = list(old["configs"].items()), list(new["configs"].items())
    for position in range(max(len(old_files), len(new_files))):
        old_name, before = old_files[position] if position < len(old_files) else ("nothing", {})
        new_name, now = new_files[position] if position < len(new_files) else ("nothing", {})
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        title = new_name if old_name == new_name else f"{old_name} -> {new_name}"
        lines += [
            f"  {title}: {key} was {show(before.get(key))}, now {show(now.get(key))}" for key in changed
        ]
    return lines


def show(value: Any) -> str:
    return "not set" if value is None or value == "" else str(value)


def begun(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The note of an unfinished run; None when it left nothing behind that other options could mix with."""
    note = read_json(started_path(arguments, arguments.number))
    return note if note and any(Path(path).exists() for path in note["leaves"]) else None


def check(arguments: argparse.Namespace) -> int:
    number, description = arguments.number, arguments.description
    marker = read_json(marker_path(arguments, number))
    new = recipe_of(arguments)
    made = marker or begun(arguments)
    if made is not None:
        lines = differences(made, new, arguments.fact)
        if lines:
            verb = "was made" if marker else "was begun"
            raise Refused(
                f"stage {number} ({description}) {verb} with other options:\n"
                + "\n".join(lines)
                + "\n  To make it again with the new ones: "
                + remove_advice(arguments, number, made["leaves"])
                + "\n  To keep both: name another --data-dir or --exp-dir."
            )
        changed = [name for name, value in new["inputs"].items() if made["inputs"].get(name) != value]
        if changed:
            raise Refused(stale_message(arguments, made, changed))
    if marker is not None:
        missing = [path for path in marker["leaves"] if not Path(path).exists()]
        if missing:
            raise Refused(
                f"stage {number} ({description}) is marked as done, but {missing[0]} is gone.\n"
                f"  To make it again: {remove_advice(arguments, number, marker['leaves'])}"
            )
        print(f"stage {number}: {description}: done on {marker['finished']} with the same options, skipped")
        return 0
    note = {"stage": number, "description": description, **new, "leaves": arguments.leaves}
    write_json(started_path(arguments, number), note)
    return MUST_RUN


def commit_of(repository: str) -> str:
    """The commit of the working tree, with "+changes" when it differs; "unknown" outside git."""
    try:
        command = ["git", "-C", repository, "describe", "--always", "--abbrev=12", "--dirty=+changes"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def peak_memory_mb(metrics: Path) -> float | None:
    """The largest peak among the processes of the stage, MB (one JSON line each)."""
    if not metrics.exists():
        return None
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    return max((line["peak_memory_mb"] for line in lines if "peak_memory_mb" in line), default=None)


def write(arguments: argparse.Namespace) -> int:
    for path in arguments.leaves:
        place = Path(path)
        if not place.exists() or (place.is_file() and place.stat().st_size == 0):
            raise Refused(
                f"stage {arguments.number} ({arguments.description}) ended without an error but left no "
                f"{path}; no marker is written"
            )
    content = recipe_of(arguments)
    content["identities"] = dict(read_identity(text) for text in arguments.identity)
    # Configurations count by content and order, not by file name.
    hashed = {**content, "stage": arguments.number, "configs": list(content["configs"].values())}
    identity = hashlib.sha256(json.dumps(hashed, sort_keys=True, default=str).encode()).hexdigest()[:16]
    now = time.time()
    marker = {
        "stage": arguments.number,
        "description": arguments.description,
        "id": identity,
        **content,
        "leaves": arguments.leaves,
        "wall_seconds": round(now - arguments.started, 1),
        "peak_memory_mb": peak_memory_mb(Path(arguments.metrics)),
        "command": arguments.command,
        "commit": commit_of(arguments.repository),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)),
    }
    write_json(marker_path(arguments, arguments.number), marker)
    started_path(arguments, arguments.number).unlink(missing_ok=True)
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=["check", "write"])
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--description", required=True)
    parser.add_argument("--command", default="")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--exp-dir", required=True)
    parser.add_argument("--repository", default=".")
    parser.add_argument("--after", type=int, action="append", default=[])
    for name in ("option", "fact", "config", "leaves", "identity"):
        parser.add_argument(f"--{name}", action="append", default=[])
    parser.add_argument("--part", default="")
    parser.add_argument("--metrics", default="")
    parser.add_argument("--started", type=float, default=0.0)
    arguments = parser.parse_args(argv)
    try:
        return check(arguments) if arguments.verb == "check" else write(arguments)
    except Refused as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
