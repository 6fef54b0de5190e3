"""What the evaluation commands share: which encoders are measured, and the file that their results go to.

A result file is written after every task, and a command that is run again goes on with what is missing. What
a result was made with (encoder, layers, data, protocol) stands beside it; where any of that has changed, the
task is measured again.
"""

import hashlib
import json
import logging
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spear_lib.interfaces.aligned import AlignedEncoder
from spear_lib.interfaces.upstreams import LOG_MEL, RANDOM, is_ours, load_upstream, upstream_id
from spear_lib.runtime.files import read_json, write_json
from spear_lib.runtime.locks import exclusive
from spear_lib.runtime.log import commit, versions
from spear_lib.runtime.world import choose_device

logger = logging.getLogger(__name__)

RESULTS_NAME = "results.json"


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """Encoders and where the results go."""

    encoders: list[str] = field(default_factory=list)
    """What is measured, each ``PATH`` or ``NAME=PATH``: folders or checkpoints that load_encoder reads,
    folders of transformers (WavLM, HuBERT, wav2vec 2.0), log-mel, or random:PATH (that shape, random
    weights)."""
    output_dir: str
    """Receives results.json and cached features."""
    baselines: bool = True
    """Measure log-mel features, and the first encoder of ours with random weights, as well."""
    device: str = "auto"
    """cpu, cuda or auto."""
    seed: int = 0
    """First seed: of random weights, and of whatever a task draws."""
    num_seeds: int = 3
    """Runs of every task that draws anything, for mean and standard deviation."""

    def __post_init__(self) -> None:
        if not self.encoders and not getattr(self, "stores", None):
            raise ValueError("encoders is empty: name one or more, PATH or NAME=PATH")
        if self.num_seeds < 1:
            raise ValueError(f"num_seeds is {self.num_seeds}: use 1 or more")

    @property
    def seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.num_seeds))

    def named(self) -> dict[str, str]:
        """Name -> what load_upstream reads, the baselines last.

        Raises:
          ValueError: two encoders of one name.
        """
        found = by_name(self.encoders, "encoders")
        if self.baselines and found:
            ours = [path for path in found.values() if is_ours(path)]
            for baseline in [f"{RANDOM}{path}" for path in ours[:1]] + [LOG_MEL]:
                if baseline not in found.values():
                    found["random weights" if baseline.startswith(RANDOM) else LOG_MEL] = baseline
        return found

    def load(self, layers: str) -> Iterator[tuple[str, AlignedEncoder]]:
        """Every encoder with its name, on the device. Of log-mels there is one layer, whatever is asked."""
        device = choose_device(self.device)
        for name, path in self.named().items():
            encoder = load_upstream(path, self.seed)
            of_one = layers if len(encoder.hidden_dims) > 1 or layers == "all" else "output"
            yield name, AlignedEncoder(encoder, of_one).to(device)


def by_name(entries: list[str], option: str) -> dict[str, str]:
    """Name -> path, of entries ``PATH`` or ``NAME=PATH``.

    Raises:
      ValueError: one name twice; ``option`` is what to change.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, _, path = entry.rpartition("=")
        name = name or path
        if name in found:
            raise ValueError(f"{option} has {name!r} twice: give them names, NAME=PATH")
        found[name] = path
    return found


class Results:
    """Results by encoder and task, in a file.

    Args:
      folder: of the file.
      kind: of the results, for the report: "hear", "abx", ...
      command: as it was typed.
    """

    def __init__(self, folder: str | Path, kind: str, command: str) -> None:
        self.path = Path(folder) / RESULTS_NAME
        self.content: dict[str, Any] = {"kind": kind, "results": {}}
        if self.path.exists():
            self.content = read_json(self.path)
            if self.content.get("kind") != kind:
                raise ValueError(
                    f"{self.path} holds results of {self.content.get('kind')!r}, not of {kind!r}: give "
                    "another output_dir"
                )
        self.content |= {"command": command, "code": commit(), "versions": versions()}

    def get(self, encoder: str, task: str) -> dict[str, Any] | None:
        """What is known of a task, None if nothing."""
        return self.content["results"].get(encoder, {}).get(task)

    def measure(
        self, encoder: str, task: str, facts: dict[str, Any], compute: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """The result of a task: that of the file where it was made with the same facts, else ``compute()``.

        Args:
          encoder: name in the table.
          facts: what decides the result: identity of the encoder, layers, data and protocol (JSON values).
          compute: -> scores and whatever else is worth keeping.
        """
        facts = json.loads(json.dumps(facts))
        known = self.get(encoder, task)
        if known is not None and known.get("facts") == facts:
            logger.info("%s, %s: measured before", encoder, task)
            return known
        if known is not None:
            old = known.get("facts", {})
            changed = [name for name in {*facts, *old} if facts.get(name) != old.get(name)]
            logger.info("%s, %s: measured again, as %s changed", encoder, task, ", ".join(sorted(changed)))
        made = {name: self.content[name] for name in ("code", "versions")}
        result = finite(compute()) | {"facts": facts, **made}
        with exclusive(self.path.with_name("results.lock"), str(self.path), wait=True):
            if self.path.exists():  # another command may have added its tasks meanwhile
                self.content["results"] = read_json(self.path)["results"]
            self.content["results"].setdefault(encoder, {})[task] = result
            write_json(self.path, self.content)
        return result

    def __iter__(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for encoder, tasks in self.content["results"].items():
            for task, result in tasks.items():
                yield encoder, task, result


def encoder_facts(encoder: AlignedEncoder) -> dict[str, Any]:
    """What tells features of one encoder from those of another."""
    return {
        "encoder": upstream_id(encoder.encoder),
        "layers": encoder.layers,
        "features": encoder.identity(),
    }


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits of JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def finite(value: Any) -> Any:
    """JSON values with None for what is not finite."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def mean_and_deviation(values: list[float]) -> dict[str, Any]:
    """What a table shows of several runs: mean, std (0 of one), the values."""
    deviation = statistics.pstdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "values": list(values)}


def log_table(results: dict[str, dict[str, str]]) -> None:
    """Encoders by tasks, in the log; ``results``: encoder -> task -> text."""
    tasks = list(dict.fromkeys(task for row in results.values() for task in row))
    width = max(map(len, results), default=0)
    logger.info("%s  %s", " " * width, "  ".join(f"{task:>18}" for task in tasks))
    for encoder, row in results.items():
        logger.info("%s  %s", encoder.ljust(width), "  ".join(f"{row.get(task, '–'):>18}" for task in tasks))
