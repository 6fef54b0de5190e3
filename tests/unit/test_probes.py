"""Ridge regression against its normal equations, measures against hand counts, probes on made data."""

import numpy as np
import pytest
import torch

from spear_lib.evaluation import probe_cuts, probes, ridge
from spear_lib.evaluation.probe_features import statistics
from spear_lib.runtime import keyed_random


def test_ridge_solves_the_normal_equations():
    random = keyed_random.generator("test_probes", 1)
    x, y = random.standard_normal((40, 6)) * [1, 2, 3, 4, 5, 6] + 7, random.standard_normal((40, 2))
    z = (x - x.mean(0)) / x.std(0)
    weights = np.linalg.solve(z.T @ z / 40 + 0.3 * np.eye(6), z.T @ (y - y.mean(0)) / 40)
    expected = z @ weights + y.mean(0)
    np.testing.assert_allclose(ridge.Ridge(x, y).predict(x, 0.3), expected, atol=1e-10)


def test_ridge_survives_constant_and_more_features_than_examples():
    random = keyed_random.generator("test_probes", 2)
    x = np.concatenate([random.standard_normal((5, 20)), np.ones((5, 1))], axis=1)
    scores = ridge.Ridge(x, np.eye(5)).predict(x, 1e-4)
    assert np.isfinite(scores).all() and (scores.argmax(1) == np.arange(5)).all()


def test_statistics_ignore_padding():
    frames = torch.tensor([[[1.0], [3.0], [float("nan")]], [[2.0], [4.0], [6.0]]])
    assert statistics(frames, torch.tensor([2, 3])).tolist() == [[2.0, 1.0], [4.0, np.sqrt(8 / 3)]]


def test_average_precision_by_hand():
    targets = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    scores = np.array([[0.9, 0], [0.8, 0], [0.7, 0], [0.1, 0]])
    # Word 1: hits at ranks 1 and 3: (1/1 + 2/3) / 2. Word 2 is in every utterance and does not count.
    assert ridge.mean_average_precision(scores, targets) == pytest.approx(100 * (1 + 2 / 3) / 2)
    with pytest.raises(ValueError, match="use more cuts"):
        ridge.mean_average_precision(scores[:, 1:], targets[:, 1:])


def test_frequent_labels_and_targets():
    labels = [["A", "B"], ["A", "C"], ["A", "B"], ["B"]]
    assert probes.frequent_labels(labels, 1) == ["A", "B", "C"]
    assert probes.frequent_labels(labels, 2) == []  # A and B are absent from one utterance alone
    assert probes.label_targets(labels, ["B", "C"]).tolist() == [[1, 0], [0, 1], [1, 0], [1, 0]]


def test_speaker_split_halves_everyone():
    speakers = ["x"] * 4 + ["y"] * 5 + ["lonely"]
    utterances = [str(row) for row in range(10)]
    train, test = ridge.split_by_speaker(speakers, utterances, 0)
    assert sorted([*train, *test]) == list(range(9))  # the one with a single utterance is in neither
    assert [speakers[row] for row in test].count("x") == 2 and [speakers[row] for row in test].count("y") == 2
    assert not np.array_equal(train, ridge.split_by_speaker(speakers, utterances, 1)[0])
    with pytest.raises(ValueError, match="5 utterances have 1 speakers in 5 sessions"):
        ridge.split_by_speaker(["x"] * 5, utterances[:5], 0)


def test_no_session_of_a_speaker_is_in_both_halves():
    speakers = ["x"] * 6 + ["y"] * 6 + ["z"] * 4
    sessions = ["a", "a", "b", "b", "c", "c", "d", "e", "e", "e", "e", "e", "f", "f", "f", "f"]
    for seed in range(5):
        train, test = ridge.split_by_speaker(speakers, sessions, seed)
        assert not {sessions[row] for row in train} & {sessions[row] for row in test}
        assert sorted([*train, *test]) == list(range(12))  # z was recorded once
    with pytest.raises(ValueError, match="two recording sessions"):
        ridge.split_by_speaker(speakers[:6], sessions[:6], 0)


def made_features(texts: list[str], speakers: list[str], signal: float, seed: int) -> np.ndarray:
    """(U, 12): the word and the speaker in a few dimensions each, under noise."""
    random = keyed_random.generator("made_features", seed)
    x = random.standard_normal((len(texts), 12))
    x[:, 0] += signal * np.array(["A" in text.split() for text in texts])
    x[:, 1] += signal * np.array(["B" in text.split() for text in texts])
    for row, who in enumerate(speakers):
        x[row, 2:6] += signal * keyed_random.generator("speaker", who).standard_normal(4)
    return x


def test_probes_find_the_layer_that_knows():
    random = keyed_random.generator("test_probes", 3)
    sets = []
    for number, names in enumerate((["a", "b"], ["c", "d"], ["e", "f", "g"])):
        texts = [" ".join(random.choice(["A", "B", "C"], 2)) for _ in range(90)]
        speakers = [names[index % len(names)] for index in range(90)]
        layers = [made_features(texts, speakers, signal, 10 * number) for signal in (0.0, 4.0, 0.0)]
        sets.append((layers, texts, speakers))
    targets = tuple(
        probes.label_targets([text.split() for text in texts], ["A", "B"]) for _, texts, _ in sets
    )
    words = probes.probe_labels(*(layers for layers, _, _ in sets), targets, num_seeds=3).to_json()
    assert words["layer"] == "2 of 3" and words["mean"] > 97 and len(words["values"]) == 3
    known = [(speakers, [str(row) for row in range(90)]) for _, _, speakers in sets[1:]]
    speaker = probes.probe_speakers(sets[1][0], sets[2][0], *known, num_seeds=3).to_json()
    assert speaker["layer"] == "2 of 3" and speaker["mean"] > 95
    # Without the layer that knows there is chance alone: a third of three speakers, the share of the words.
    empty = [[layers[0]] for layers, _, _ in sets]
    chance = probes.probe_speakers(empty[1], empty[2], *known, 3).to_json()
    assert 15 < chance["mean"] < 55 and chance["layer"] == "–"
    nothing = probes.probe_labels(*empty, targets, 3).to_json()
    assert abs(nothing["mean"] - 100 * targets[2].mean()) < 15


def test_ridge_with_fewer_cuts_than_features_is_the_same_regression():
    random = keyed_random.generator("test_probes", 4)
    x, y, new = (
        random.standard_normal((12, 30)),
        random.standard_normal((12, 2)),
        random.standard_normal((5, 30)),
    )
    z = (x - x.mean(0)) / x.std(0)
    weights = np.linalg.solve(z.T @ z / 12 + 0.2 * np.eye(30), z.T @ (y - y.mean(0)) / 12)
    expected = (new - x.mean(0)) / x.std(0) @ weights + y.mean(0)
    np.testing.assert_allclose(ridge.Ridge(x, y).predict(new, 0.2), expected, atol=1e-10)


def test_speakers_of_one_session_each_are_not_asked_for(caplog):
    def part(number: int, sessions: list[str]) -> probe_cuts.LabelledCuts:
        labels = [
            probe_cuts.Labels(
                words=("A",) if row % 2 else ("B",), speaker=f"{number}-{row % 2}", session=name
            )
            for row, name in enumerate(sessions)
        ]
        return probe_cuts.LabelledCuts([f"{number}-{row}" for row in range(len(labels))], labels)

    several, single = ["a", "b", "c", "d"], ["a", "b", "a", "b"]
    counts = {"words": 1, "events": 1}
    asked = probes.Probes((part(0, several), part(1, several), part(2, several)), counts, 1)
    assert asked.kinds == ["words", "speaker"]
    with caplog.at_level("INFO"):
        fewer = probes.Probes((part(0, several), part(1, single), part(2, several)), counts, 1)
    assert fewer.kinds == ["words"] and "two with two recording sessions each" in caplog.text
