"""A HEAR task measured: embeddings, the best of the grid on the first round, every round with every seed."""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spear_lib.evaluation.hear.predictor import (
    PredictorConfig,
    Setting,
    Trained,
    grid,
    test_scores,
    train_predictor,
)
from spear_lib.evaluation.hear.tasks import EVENT, Embedded, HearTask, embed_split
from spear_lib.evaluation.measured import mean_and_deviation
from spear_lib.interfaces.aligned import AlignedEncoder
from spear_lib.runtime.progress import progress

logger = logging.getLogger(__name__)

CHECK_EVERY = {"dcase2016_task2": 10}
"""Tasks that heareval validates at other times: beginning of the name -> epochs."""


@dataclass(frozen=True)
class _Choice:
    """What the first round chose."""

    setting: Setting
    offset_ms: float
    trained: Trained


def run_task(
    task: HearTask,
    encoder: AlignedEncoder,
    cache: Path,
    config: PredictorConfig,
    seeds: list[int],
    offsets_ms: list[float],
) -> dict[str, Any]:
    """The scores of one task.

    The grid is searched on the validation split of the first round with the first seed; its best setting then
    trains every round with every seed. Of several rounds (folds) a seed's score is the mean.

    Args:
      encoder: of one state.
      cache: folder of this encoder's embeddings of this task.
      offsets_ms: of event tasks, what is added to the times of frames; the best on validation is taken.
    """
    for name, epochs in CHECK_EVERY.items():
        if task.name.startswith(name):
            config = replace(config, check_every=epochs)
    device = next((parameter.device for parameter in encoder.parameters()), "cpu")
    offsets = offsets_ms if task.embedding_type == EVENT else [0.0]
    data = {
        offset: {split: embed_split(task, split, encoder, cache, offset) for split in task.splits}
        for offset in offsets
    }

    def parts(offset: float, round_: tuple[list[str], str, str]) -> tuple[Embedded, Embedded, Embedded]:
        of = data[offset]
        return Embedded.join([of[split] for split in round_[0]]), of[round_[1]], of[round_[2]]

    rounds = task.rounds()
    points = [(offset, setting) for offset in offsets for setting in grid(config, seeds[0])]
    choices = []
    for offset, setting in progress(points, len(points), f"{task.name}, grid", "settings"):
        train, valid, _ = parts(offset, rounds[0])
        trained = train_predictor(task, train, valid, setting, config, seeds[0], device)
        choices.append(_Choice(setting, offset, trained))
    best = max(choices, key=lambda choice: choice.trained.validation)

    scores: dict[str, list[float]] = {name: [] for name in task.scores}
    runs = [(seed, round_) for seed in seeds for round_ in rounds]
    found: dict[int, list[dict[str, float]]] = {seed: [] for seed in seeds}
    for seed, round_ in progress(runs, len(runs), f"{task.name}, seeds and folds", "runs"):
        train, valid, test = parts(best.offset_ms, round_)
        known = seed == seeds[0] and round_ == rounds[0]
        trained = (
            best.trained if known else train_predictor(task, train, valid, best.setting, config, seed, device)
        )
        found[seed].append(test_scores(task, trained, test))
    for name in task.scores:
        scores[name] = [float(np.mean([one[name] for one in found[seed]])) for seed in seeds]
    first = data[offsets[0]]
    return {
        "metric": task.scores[0],
        "scores": {name: mean_and_deviation(values) for name, values in scores.items()},
        "setting": asdict(best.setting),
        "validation": best.trained.validation,
        "epoch": best.trained.epoch,
        "timestamp_offset_ms": best.offset_ms,
        "min_duration_ms": best.trained.min_duration_ms,
        "counts": {
            split: {"clips": len(task.clips[split]), "rows": len(first[split].vectors)}
            for split in task.splits
        },
        "seeds": seeds,
    }
