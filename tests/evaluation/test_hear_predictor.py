"""HEAR's predictor against the means of heareval over seeds, on its embeddings."""

import json
from pathlib import Path

import numpy as np
import pytest

from spear_lib.evaluation.hear import predictor
from spear_lib.evaluation.hear.predictor import PredictorConfig, Setting, grid, train_predictor
from spear_lib.evaluation.hear.tasks import EVENT, Embedded, read_task

GOLDEN = Path(__file__).parents[1] / "golden" / "hear"
RUNS = json.loads((GOLDEN / "scores.json").read_text(encoding="utf-8"))["runs"]


def embedded(task, split: str) -> Embedded:
    """The rows in heareval's own order."""
    content = np.load(task.folder / f"{split}.npz")
    labels = [json.loads(text) for text in content["labels"]]
    targets = np.array([[label in own for label in task.labels] for own in labels])
    if task.embedding_type != EVENT:
        return Embedded(content["embeddings"], targets)
    names, times = content["filename"], content["timestamp_ms"]
    starts = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist()]
    parts = np.split(times, starts[1:])
    files = [str(names[start]) for start in starts]
    events = [task.clips[split][name] for name in files]
    return Embedded(content["embeddings"], targets, files, parts, events)


@pytest.mark.parametrize("name", ["tones", "mixes", pytest.param("beeps", marks=pytest.mark.slow)])
def test_means_over_seeds_are_those_of_heareval(name):
    task = read_task(GOLDEN / "embeddings" / f"{name}-v1.0-small")
    runs = [run for run in RUNS if run["task"] == f"{name}-v1.0-small"]
    expected = np.mean([test["test_score"] for run in runs for test in run["test"].values()])
    config = PredictorConfig(max_epochs=runs[0]["conf"]["max_epochs"])
    data = {split: embedded(task, split) for split in task.splits}
    values = []
    for seed in range(len(runs)):
        for train, valid, test in task.rounds():
            trained = train_predictor(
                task, Embedded.join([data[split] for split in train]), data[valid], Setting(), config, seed
            )
            values.append(predictor.test_scores(task, trained, data[test])[task.scores[0]])
    assert len(values) == sum(len(run["test"]) for run in runs)
    assert abs(np.mean(values) - expected) < 0.05, (np.mean(values), expected)


def test_rounds():
    tones = read_task(GOLDEN / "embeddings" / "tones-v1.0-small")
    assert tones.rounds() == [
        (["fold02"], "fold01", "fold00"),
        (["fold00"], "fold02", "fold01"),
        (["fold01"], "fold00", "fold02"),
    ]
    assert read_task(GOLDEN / "embeddings" / "beeps-v1.0-small").rounds() == [(["train"], "valid", "test")]


def test_the_grid():
    settings = grid(PredictorConfig(grid_points=16), 0)
    assert len(set(settings)) == 16 and len(grid(PredictorConfig(), 0)) == 8
    assert grid(PredictorConfig(grid_points=16), 0) == settings != grid(PredictorConfig(grid_points=16), 1)


def test_a_last_row_alone_joins_the_batch_before():
    sizes = {count: [r.stop - r.start for r in predictor._batches(count)] for count in (1, 1024, 1025, 2050)}
    assert sizes == {1: [1], 1024: [1024], 1025: [1025], 2050: [1024, 1024, 2]}
