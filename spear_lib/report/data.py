"""What the report knows: everything a run left behind, read from the folders that were named to it.

Nothing is recomputed. What is absent is listed under ``missing``, with the stage that makes it, instead of
being left out silently.
"""

import logging
import math
import platform
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from spear_lib.report.benchmarks import Measured, collect_benchmarks
from spear_lib.runtime.files import read_json
from spear_lib.runtime.metrics_log import read_metrics
from spear_lib.runtime.overlays import read_yaml
from spear_lib.runtime.task_file import FILE_NAME, TaskDescription, read_task

logger = logging.getLogger(__name__)


@dataclass
class Experiment:
    """One training run: its folder's metrics and configuration."""

    name: str
    """Short name used in tables and legends."""
    description: TaskDescription
    """What it trained, from its task.json."""
    records: list[dict[str, Any]]
    """Lines of metrics.jsonl in the order of their steps."""
    config: dict[str, Any]
    """config.yaml as it was run."""

    @property
    def kind(self) -> str:
        return self.description.kind

    def curve(self, kind: str, name: str) -> tuple[list[int], list[float]]:
        """(steps, values) of metric ``name`` in lines of ``kind`` ("train", "valid/dev")."""
        points = [
            (record["step"], record[name])
            for record in self.records
            if record.get("kind") == kind and _is_number(record.get(name))
        ]
        return [step for step, _ in points], [value for _, value in points]

    def names(self, kind: str, name: str) -> list[str]:
        """Metrics called ``name`` in lines of ``kind``: with several token fields there is one per field
        ("field/masked_loss"). Those of one domain ("field/speech/masked_loss") are left out: a validation set
        has one."""
        found = (key for record in self.records if record.get("kind") == kind for key in record)
        return [key for key in dict.fromkeys(found) if key.split("/")[-1] == name and key.count("/") < 2]

    @property
    def valid_kinds(self) -> list[str]:
        """Names of the validation sets, in the order of appearance."""
        return list(
            dict.fromkeys(r["kind"] for r in self.records if str(r.get("kind", "")).startswith("valid"))
        )

    def last(self, kind: str, name: str) -> float | None:
        """The last value of a metric; None when it was never written."""
        values = self.curve(kind, name)[1]
        return values[-1] if values else None

    def last_line(self, kind: str) -> dict[str, Any]:
        """The last line of metrics.jsonl of one kind; empty if there is none."""
        return next((line for line in reversed(self.records) if line.get("kind") == kind), {})


@dataclass
class ReportData:
    """Everything the renderer needs."""

    corpus: list[dict[str, Any]] = field(default_factory=list)
    """One row per set of cuts."""
    tables: list[dict[str, Any]] = field(default_factory=list)
    """Of a corpus of clips: "table", "clips" in it, how many are "missing" on disk or useless for "other"
    reasons."""
    quantizers: list[dict[str, Any]] = field(default_factory=list)
    """{"name", "report" (dict), "picture" (path or None)} each."""
    tokens: list[dict[str, Any]] = field(default_factory=list)
    """{"name", "info" (dict), "entropies" (nats per codebook)} each."""
    experiments: list[Experiment] = field(default_factory=list)
    """Training runs in the order they were named."""
    tasks: dict[str, TaskDescription] = field(default_factory=dict)
    """Kind of run -> its description, in the order of the runs."""
    results: list[dict[str, Any]] = field(default_factory=list)
    """Contents of result files (wer-<set>.json, ...) with "kind", "arm" and "set"."""
    probes: list[dict[str, Any]] = field(default_factory=list)
    """probes.json contents with "arm"."""
    benchmarks: list[Measured] = field(default_factory=list)
    """Tasks of stage 15, if it has run."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """Done-markers in the order of their stage numbers."""
    versions: dict[str, str] = field(default_factory=dict)
    """Package -> version."""
    missing: list[str] = field(default_factory=list)
    """What was not found, and what would make it."""

    def unigram_entropy(self) -> float | None:
        """Mean entropy of the codes of the tokens, nats per codebook and frame; None if unknown. With several
        token stores that of the "train" set counts."""
        stores = [store for store in self.tokens if store["entropies"]]
        train = [store for store in stores if store["set"] == "train"] or stores
        return float(np.mean(train[0]["entropies"])) if train else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def collect(
    data_dir: Path,
    experiment_dirs: list[Path],
    exp_dir: Path,
    before_task_files: dict[str, TaskDescription] | None = None,
) -> ReportData:
    """Read everything.

    Args:
      data_dir: what prepare.sh filled (manifests, quantizers, tokens, .done).
      experiment_dirs: training runs; results (the files that task.json names, probes.json) may lie anywhere
        below.
      exp_dir: folder of run.sh, whose .done holds the markers of stages 10 to 15.
      before_task_files: metric -> description of a run without task.json that wrote this metric.

    Raises:
      ValueError: data_dir or a named experiment folder does not exist, or a file in it is damaged.
    """
    if not data_dir.is_dir():
        raise ValueError(f"data folder {data_dir} does not exist; run prepare.sh first or name another.")
    absent = [str(folder) for folder in experiment_dirs if not folder.is_dir()]
    if absent:
        raise ValueError(f"experiment folder {absent[0]} does not exist; run.sh stages 10 to 13 make them.")
    data = ReportData()
    _collect_corpus(data, data_dir)
    _collect_quantizers(data, data_dir)
    _collect_tokens(data, data_dir)
    names = short_names(experiment_dirs)
    for folder, name in zip(experiment_dirs, names):
        _collect_experiment(data, folder, name, before_task_files or {})
    evaluated = {result["kind"] for result in data.results}
    for kind, description in data.tasks.items():
        if description.results and kind not in evaluated:
            data.missing.append(
                f"{description.measure.title} of the test sets ({description.results.files}-*.json): run.sh "
                "stage 13 evaluates them"
            )
    if not any(description.results for description in data.tasks.values()):
        data.missing.append("fine-tuned models: run.sh stages 12 and 13 train and evaluate them")
    if not data.probes:
        data.missing.append("frozen-feature probes (probes.json): python -m spear_lib.bin.probe")
    data.benchmarks = collect_benchmarks(exp_dir / "benchmarks")
    _collect_stages(data, [data_dir / ".done", exp_dir / ".done"])
    data.versions = package_versions()
    return data


def short_names(folders: list[Path]) -> list[str]:
    """The shortest tails of the paths that tell them apart, without "finetune_", e.g. "scratch"."""
    for depth in range(1, 5):
        parts = [folder.resolve().parts[-depth:] for folder in folders]
        names = ["/".join((*part[:-1], part[-1].removeprefix("finetune_"))) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _collect_corpus(data: ReportData, data_dir: Path) -> None:
    paths = sorted((data_dir / "manifests").glob("*.json"))
    for path in paths:
        statistics = read_json(path)
        # A mixture has the sets of several corpora.
        corpus = f"{path.stem.removesuffix('_statistics')}, " if len(paths) > 1 else ""
        # Corpora of clips say of each table how many clips are there.
        for name, counts in statistics.pop("tables", {}).items():
            found = {kind: counts[kind]["skipped"] for kind in ("missing", "other")}
            data.tables.append({"table": name, "clips": counts["missing"]["seen"], **found})
        for name, values in corpus_rows(path.stem, statistics):
            data.corpus.append({"set": corpus + name if name != path.stem else name, **values})
    if not data.corpus:
        data.missing.append("corpus statistics (data/manifests/*.json): prepare.sh stage 1")


def corpus_rows(name: str, value: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Rows of a statistics file: the object itself if it holds numbers, else one row per set inside it."""
    numbers = {key: item for key, item in value.items() if _is_number(item)}
    if numbers:
        return [(str(value.get("set", name)), numbers)]
    rows = []
    for key, item in value.items():
        if isinstance(item, dict):
            rows += corpus_rows(key, item)
    return rows


def _collect_quantizers(data: ReportData, data_dir: Path) -> None:
    for path in sorted((data_dir / "quantizers").glob("**/report.json")):
        picture = path.with_suffix(".png")
        name = str(path.parent.relative_to(data_dir / "quantizers"))
        data.quantizers.append(
            {"name": name, "report": read_json(path), "picture": str(picture) if picture.exists() else None}
        )
    if not data.quantizers:
        data.missing.append("quantiser report (data/quantizers/*/report.json): prepare.sh stage 4")


def _collect_tokens(data: ReportData, data_dir: Path) -> None:
    root = data_dir / "tokens"
    for path in sorted(root.glob("**/store.json")):
        info = read_json(path)
        entropies = info.get("unigram_entropy_nats", [])
        name = str(path.parent.relative_to(root))
        data.tokens.append({"name": name, "set": path.parent.name, "info": info, "entropies": entropies})
    if not data.tokens:
        data.missing.append("token stores (data/tokens/*/*/store.json): prepare.sh stage 5")


def _collect_experiment(
    data: ReportData, folder: Path, name: str, before_task_files: dict[str, TaskDescription]
) -> None:

    metrics, probes = folder / "metrics.jsonl", sorted(folder.glob("**/probes.json"))
    records = read_metrics(metrics)
    for path in probes:
        data.probes.append({**read_json(path), "arm": name})
    description = _describe(folder, records, before_task_files)
    if description is None:
        if records:
            data.missing.append(
                f"what {folder} trained ({FILE_NAME}): its training command, started again, writes the file"
            )
        elif not probes:
            data.missing.append(f"{folder}: neither metrics.jsonl nor {FILE_NAME} nor probes.json inside")
        return
    data.tasks.setdefault(description.kind, description)
    if records:
        config_path = folder / "config.yaml"
        config = read_yaml(config_path) if config_path.exists() else {}
        data.experiments.append(Experiment(name, description, records, config))
    files = description.results.files if description.results else None
    for path in sorted(folder.glob(f"**/{files}-*.json")) if files else ():
        result = {"set": path.stem.removeprefix(f"{files}-"), **read_json(path)}
        # One set measured twice (decode, decode_lm): the second one is named after its folder too.
        again = any(each["set"] == result["set"] and each["arm"] == name for each in data.results)
        arm = f"{name}, {path.parent.relative_to(folder)}" if again else name
        data.results.append({**result, "kind": description.kind, "arm": arm})


def _describe(
    folder: Path, records: list[dict[str, Any]], before_task_files: dict[str, TaskDescription]
) -> TaskDescription | None:
    """What a run trained: its task.json, or for one that was made before there was this file, the entry of a
    metric that it wrote."""
    if (folder / FILE_NAME).exists():
        return read_task(folder)
    names = {name.split("/")[-1] for record in records for name in record}
    return next((each for metric, each in before_task_files.items() if metric in names), None)


def _collect_stages(data: ReportData, folders: list[Path]) -> None:
    for folder in folders:
        for path in folder.glob("stage-*.json"):
            if path.name.removesuffix(".json").removeprefix("stage-").isdigit():
                data.stages.append(read_json(path))
    data.stages.sort(key=lambda marker: marker.get("stage", 0))
    if not data.stages:
        data.missing.append("stage markers (.done/stage-*.json): prepare.sh and run.sh leave one per stage")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    versions = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in ("torch", "lhotse", "numpy", "sentencepiece", "kaldialign", "scikit-learn"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
