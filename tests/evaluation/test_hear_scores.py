"""HEAR's scores, post-processing and frame labels against heareval's numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from spear_lib.evaluation.hear.events import find_events, frame_targets
from spear_lib.evaluation.hear.scores import CLIP_SCORES, EVENT_SCORES, Event, event_scores, primary

GOLDEN = Path(__file__).parents[1] / "golden" / "hear"
CASES = json.loads((GOLDEN / "scorer_cases.json").read_text(encoding="utf-8"))


def equal(value: float, expected: float | str) -> bool:
    expected = float(expected)  # "nan" and "inf" are strings
    return (math.isnan(value) and math.isnan(expected)) or value == pytest.approx(expected, abs=1e-9)


def events_of(files: dict) -> dict[str, list[Event]]:
    return {name: [Event(**event) for event in events] for name, events in files.items()}


@pytest.mark.parametrize("case", CASES["clips"], ids=lambda case: case["name"])
def test_scores_of_clips(case):
    scores, targets = np.array(case["prediction"]), np.array(case["target"])
    for name, expected in case["scores"].items():
        assert equal(CLIP_SCORES[name](scores, targets), expected), name


@pytest.mark.parametrize("case", CASES["events"], ids=lambda case: case["name"])
def test_scores_of_events(case):
    predicted, target = events_of(case["predicted"]), events_of(case["target"])
    for name, expected in case["scores"].items():
        values = EVENT_SCORES[name](predicted, target)
        assert set(values) == set(expected)
        assert all(equal(values[key], expected[key]) for key in expected), (name, values)


def test_nothing_predicted_counts_nothing():
    values = event_scores({"f": []}, {"f": [Event("a", 0, 1)]}, 0.2)
    assert math.isnan(values["f_measure"]) and primary(values) == 0.0
    assert primary({"error_rate": 0.25}) == -0.25


def test_events_from_frames():
    cases = CASES["postprocessing"]
    probabilities, times = np.array(cases["probabilities"]), np.array(cases["timestamps_ms"])
    for case in cases["results"]:
        found = find_events(
            probabilities, times, cases["labels"], case["median_filter_ms"], case["min_duration"]
        )
        expected = [Event(**event) for event in case["events"]]
        key = lambda event: (event.start, event.label, event.end)  # noqa: E731
        assert sorted(found, key=key) == sorted(expected, key=key)
        assert [event.start for event in found] == sorted(event.start for event in found)


def test_labels_of_frames():
    case = CASES["labels_of_timestamps"]
    events = [Event(**event) for event in case["events"]]
    labels = sorted({event.label for event in events})
    targets = frame_targets(events, np.array(case["timestamps_ms"]), labels)
    assert [[labels[k] for k in np.flatnonzero(row)] for row in targets] == [
        sorted(each) for each in case["labels"]
    ]


def test_published_predictions_give_the_published_scores():
    """Test predictions of heareval's seed 42 -> its scores (float32)."""
    runs = json.loads((GOLDEN / "scores.json").read_text(encoding="utf-8"))["runs"]
    checked = 0
    for path in sorted(GOLDEN.glob("*.predictions.npz")):
        task, split = path.name.removesuffix(".predictions.npz").rsplit(".", 1)
        content = np.load(path)
        (run,) = [run for run in runs if run["task"] == task and run["seed"] == 42]
        if split in run["test"]:
            expected = run["test"][split]
            for name in CLIP_SCORES:
                if f"test_{name}" in expected:
                    value = CLIP_SCORES[name](content["prediction"], content["target"])
                    assert value == pytest.approx(float(expected[f"test_{name}"]), abs=1e-6)
                    checked += 1
    files = json.loads((GOLDEN / "beeps-v1.0-small.test.events.json").read_text(encoding="utf-8"))
    (run,) = [run for run in runs if run["task"].startswith("beeps") and run["seed"] == 42]
    predicted, target = events_of(files["predicted"]), events_of(files["target"])
    for name in ("event_onset_200ms_fms", "event_onset_50ms_fms", "segment_1s_er"):
        for key, value in EVENT_SCORES[name](predicted, target).items():
            assert value == pytest.approx(run["test"]["test"][f"test_{name}_{key}"], abs=1e-6)
            checked += 1
    assert checked > 10
