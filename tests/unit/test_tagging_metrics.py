"""Average precision, ROC area and d-prime: against scikit-learn, by hand, and from counts."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from spear_lib.tagging.metrics import ScoreCounts, average_precision, count_groups, d_prime, roc_area, score


def names(count: int) -> dict[str, str]:
    return {f"/m/{index}": f"class {index}" for index in range(count)}


@pytest.mark.parametrize("levels", [None, 7, 2])
def test_scores_are_those_of_scikit_learn(levels):
    """``levels``: how many different scores there are, so that most clips are tied."""
    random = np.random.default_rng(0)
    targets = random.random((400, 12)) < np.linspace(0.005, 0.9, 12)
    targets[:, 3] = False
    targets[:, 8] = True
    scores = random.random((400, 12)) + 0.4 * targets
    if levels:
        scores = np.floor(scores * levels / 1.5)
    result = score(targets, scores, names(12))
    expected = {
        index: average_precision_score(targets[:, index], scores[:, index])
        for index in range(12)
        if targets[:, index].any()
    }
    assert 3 not in expected and {each.index for each in result.classes} == set(expected)
    for each in result.classes:
        assert each.average_precision == pytest.approx(expected[each.index], abs=1e-12)
        if targets[:, each.index].all():
            assert math.isnan(each.roc_area)
        else:
            area = roc_auc_score(targets[:, each.index], scores[:, each.index])
            assert each.roc_area == pytest.approx(area, abs=1e-12)
    assert result.mean_average_precision == pytest.approx(100 * np.mean(list(expected.values())), abs=1e-10)
    assert [each.support for each in result.classes] == sorted(targets.sum(0)[targets.any(0)], reverse=True)


def test_an_example_by_hand():
    # Scores 0.9 0.8 0.8 0.3 0.1, positives first, third, fifth. Steps: recall 1/3 at precision 1/1, recall
    # 2/3 at precision 2/3 (two clips tied at 0.8), recall 1 at precision 3/5.
    targets = np.array([[1], [0], [1], [0], [1]], dtype=bool)
    scores = np.array([[0.9], [0.8], [0.8], [0.3], [0.1]])
    result = score(targets, scores, names(1))
    assert result.classes[0].average_precision == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # Pairs (positive, negative): 0.9 beats both, 0.8 ties and beats, 0.1 beats none: 3.5 of 6.
    assert result.classes[0].roc_area == pytest.approx(3.5 / 6)
    assert result.summary()["chance_map"] == pytest.approx(60.0)


def test_d_prime():
    # z(0.75) = 0.6744898 is in every table of the normal distribution.
    assert d_prime(0.75) == pytest.approx(math.sqrt(2) * 0.6744898, abs=1e-6)
    assert d_prime(0.5) == 0.0
    assert (d_prime(1.0), d_prime(0.0)) == (math.inf, -math.inf)
    assert math.isnan(d_prime(math.nan))


def test_a_perfect_model_has_a_summary_that_json_can_hold():
    targets = np.eye(3, dtype=bool)
    summary = score(targets, targets.astype(float), names(3)).summary()
    assert (summary["map"], summary["mean_auc"], summary["d_prime"]) == (100.0, 1.0, None)


def test_counts_add_up_to_the_exact_value():
    random = np.random.default_rng(1)
    targets = random.random((300, 5)) < 0.2
    targets[:, 4] = False
    logits = random.normal(size=(300, 5)) * 2 + 2.0 * targets
    halves = [
        ScoreCounts.of(torch.tensor(logits[part]), torch.tensor(targets[part]).float())
        for part in (slice(0, 100), slice(100, 300))
    ]
    positives, negatives = (sum(half[side] for half in halves) for side in (0, 1))
    assert positives.sum() == targets.sum() and (positives + negatives).sum() == targets.size
    exact = score(targets, logits, names(5)).mean_average_precision
    assert ScoreCounts.mean_average_precision(positives, negatives) == pytest.approx(exact, abs=0.5)
    # On scores that lie in ranges of their own nothing is lost.
    coarse = np.round(logits * 4) / 4
    counts = ScoreCounts.of(torch.tensor(coarse), torch.tensor(targets).float())
    exact = score(targets, coarse, names(5)).mean_average_precision
    assert ScoreCounts.mean_average_precision(*counts) == pytest.approx(exact, abs=1e-9)
    assert math.isnan(ScoreCounts.mean_average_precision(torch.zeros(2, 4), torch.ones(2, 4)))


def test_groups_of_equal_score():
    positives, negatives = count_groups(np.array([True, False, True]), np.array([2.0, 2.0, -1.0]))
    assert positives.tolist() == [1, 1] and negatives.tolist() == [0, 1]
    assert average_precision(positives, negatives) == pytest.approx(0.5 * 0.5 + 0.5 * 2 / 3)
    assert roc_area(positives, negatives) == pytest.approx(0.25)


def test_what_cannot_be_scored_says_why():
    with pytest.raises(ValueError, match="2 scores are not finite"):
        score(np.ones((2, 2), bool), np.array([[0.0, np.nan], [np.inf, 0.0]]), names(2))
    with pytest.raises(ValueError, match="none of 3 clips has a label"):
        score(np.zeros((3, 2), bool), np.zeros((3, 2)), names(2))
    with pytest.raises(ValueError, match=r"targets \(3, 2\) and scores \(3, 2\) must both be"):
        score(np.ones((3, 2), bool), np.zeros((3, 2)), names(4))
