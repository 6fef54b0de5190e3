"""SUPERB tasks through s3prl's problems (s3prl 0.4.18, its nn API), on any labelled cuts.

s3prl's own recipes read the corpora of SUPERB in their own layouts. Here it starts at its stage 1 with tables
of files, which are made of whatever ``clip_sets`` reads: the audio of every cut becomes a file of its own.

| task | problem | what a label is |
|---|---|---|
| SID, KS, ER | SuperbSID, SuperbKS, SuperbER | the class |
| IC | SuperbIC | several, joined by ";" |
| PR | SuperbPR | the phones, between spaces |
| ASR | SuperbASR | the words |
"""

import csv
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile
import yaml

from spear_lib.data.audio import load_audio
from spear_lib.evaluation.clip_sets import SEPARATOR, TEST, TRAIN, VALID, Clip
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.runtime.files import atomic_path
from spear_lib.runtime.progress import progress
from spear_lib.runtime.world import choose_device

logger = logging.getLogger(__name__)

PARTS = ("train", "valid", "test")
_LIBRISPEECH = ("train-clean-100", "dev-clean", "test-clean")


@dataclass(frozen=True)
class Problem:
    """One task as s3prl knows it."""

    name: str
    """Class in s3prl.problem."""
    column: str
    """Of the label in its tables."""
    files: tuple[str, str, str] = PARTS
    """Names of the tables of train, valid and test."""
    metric: str = "accuracy"
    better: str = "higher"
    joined: str | None = None
    """How several labels are written; None: there is one."""


PROBLEMS = {
    "sid": Problem("SuperbSID", "label"),
    "ks": Problem("SuperbKS", "label"),
    "er": Problem("SuperbER", "label"),
    "ic": Problem("SuperbIC", "labels", joined=" ; "),
    "pr": Problem("SuperbPR", "transcription", _LIBRISPEECH, "per", "lower", joined=SEPARATOR),
    "asr": Problem("SuperbASR", "transcription", _LIBRISPEECH, "wer", "lower", joined=SEPARATOR),
}


@dataclass(frozen=True)
class SuperbConfig:
    """How heads are trained; 0 leaves s3prl's own value."""

    total_steps: int = 0
    """Optimiser steps (s3prl: 30,000 to 200,000)."""
    eval_step: int = 0
    """Steps between two validations; the best one is tested."""
    batch_size: int = 0
    """Utterances per batch."""
    gradient_accumulate: int = 0
    """Batches per step."""
    num_workers: int = 2
    """Loader processes of s3prl."""
    hidden_size: int = 0
    """Of our own heads."""
    normalise: bool = False
    """Our own heads: layer norm of every state before the weighted sum; features of other scales, as
    log-mels, then learn as fast."""
    max_gigabytes: float = 2.0
    """Our own heads: features that are kept in memory; the rest is computed at every step."""
    measures: list[str] = field(default_factory=list)
    """Of se and ss: pesq, stoi, si_sdri; the first one chooses the step. By default all three for se,
    si_sdri for ss."""


def write_tables(
    problem: Problem, parts: tuple[list[Clip], list[Clip], list[Clip]], folder: Path, audio: Path
) -> None:
    """The tables of a problem in ``folder``; audio at 16 kHz in ``audio``, where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, clips in zip(problem.files, parts):
        rows = []
        for clip in progress(clips, len(clips), f"audio of {name}", "clips"):
            stem = "-".join(Path(clip.name).with_suffix("").parts[-3:]).strip("/-")
            path = (audio / f"{stem}.wav").absolute()
            if not path.exists():
                with atomic_path(path) as unfinished:
                    soundfile.write(unfinished, load_audio(clip.cut()), SAMPLE_RATE, format="WAV")
            if problem.joined is None and len(clip.labels) != 1:
                raise ValueError(f"{clip.name} has the labels {clip.labels}: {problem.name} wants one")
            label = (problem.joined or "").join(clip.labels)
            rows.append({"id": stem, "wav_path": str(path), problem.column: label})
        if len({row["id"] for row in rows}) < len(rows):
            raise ValueError(f"two clips of {name} have one name: give them ids of their own")
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def run_problem(
    problem: Problem, folder: Path, encoder: str, learning_rate: float, config: SuperbConfig, device: str
) -> dict[str, Any]:
    """Train and test with one learning rate (0: s3prl's) in ``folder``, where the tables are.

    Returns:
      valid and test: name -> value, as s3prl names and counts them (0..1).

    Raises:
      RuntimeError: s3prl is not installed.
    """
    from spear_lib.interfaces import s3prl_upstream, torchaudio_stand_in

    torchaudio_stand_in.install()
    s3prl_upstream.register()
    import s3prl.problem

    given: dict[str, Any] = {
        "target_dir": folder,
        "start": 1,
        "prepare_data.dataset_root": "none",
        "build_upstream.name": s3prl_upstream.NAME,
        "build_upstream.path_or_url": encoder,
        "device": device,
        "num_workers": config.num_workers,
    }
    if learning_rate:
        given["build_optimizer.conf.lr"] = learning_rate
    for name in ("total_steps", "eval_step", "gradient_accumulate"):
        if getattr(config, name):
            given[f"train.{name}"] = getattr(config, name)
    if config.eval_step:
        given |= {"train.save_step": config.eval_step, "train.log_step": config.eval_step}
    if config.batch_size:
        given["build_batch_sampler.train.batch_size"] = config.batch_size
    arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    getattr(s3prl.problem, problem.name)().main(arguments)
    stats = yaml.safe_load((folder / "train" / "valid_best" / "training_stats.yaml").read_text())
    (tested,) = (folder / "evaluate").glob("*/*/result.yaml")
    return {"valid": stats["valid_best_metrics"], "test": yaml.safe_load(tested.read_text())}


def sweep(
    task: str,
    parts: tuple[list[Clip], list[Clip], list[Clip]],
    encoder: str,
    folder: Path,
    name: str,
    learning_rates: list[float],
    config: SuperbConfig,
    device: str,
) -> dict[str, Any]:
    """Every learning rate, and the one that is best on validation.

    Args:
      task: one of PROBLEMS. encoder: what ``load_encoder`` reads; name: its name in tables and folders.
      folder: of all tasks and encoders; audio is shared in it.
    """
    problem = PROBLEMS[task]
    own = folder / task / "".join(c if c.isalnum() else "_" for c in name)
    runs = []
    for rate in learning_rates:
        of_rate = own / f"lr_{rate:g}"
        shutil.rmtree(of_rate, ignore_errors=True)  # of another encoder, or killed half way
        write_tables(problem, parts, of_rate, folder / "audio" / task)
        found = run_problem(problem, of_rate, encoder, rate, config, str(choose_device(device)))
        runs.append({"learning_rate": rate, **found})
        logger.info("%s, learning rate %g: valid %s, test %s", name, rate, found["valid"], found["test"])
    sign = 1 if problem.better == "higher" else -1
    best = max(runs, key=lambda one: sign * one["valid"][problem.metric])
    return {
        "metric": f"{problem.metric} (%)",
        "better": problem.better,
        "mean": 100.0 * best["test"][problem.metric],
        "learning_rate": best["learning_rate"],
        "runs": runs,
        "counts": {part: len(clips) for part, clips in zip((TRAIN, VALID, TEST), parts)},
    }
