"""Corpora by weights and repeat factors: what an epoch takes of each, and what is refused."""

import numpy as np
import pytest

from spear_lib.data.selection import RepeatedCorpora, occurrences, repeat_factors


def counts(selection, epoch, size):
    return np.bincount(selection(epoch), minlength=size)


def test_every_corpus_comes_as_often_as_its_factor_says():
    selection = RepeatedCorpora([10, 7, 100, 4], [1.0, 3.0, 0.5, 0.0], seed=1)
    for epoch in range(4):
        taken = counts(selection, epoch, 121)
        assert taken[:10].tolist() == [1] * 10 and taken[10:17].tolist() == [3] * 7
        assert taken[17:117].sum() == 50 and taken.max() == 3 and taken[117:].sum() == 0
    halves = [set(selection(epoch)[31:].tolist()) for epoch in range(4)]
    assert halves[0] | halves[1] == set(range(17, 117)) == halves[2] | halves[3]
    assert halves[0] != halves[2]
    assert selection(2).tolist() == RepeatedCorpora([10, 7, 100, 4], [1, 3, 0.5, 0], seed=1)(2).tolist()
    assert set(RepeatedCorpora([100], [0.5], seed=2)(0)) != set(RepeatedCorpora([100], [0.5], seed=1)(0))


def test_fractions_come_equally_often_in_the_long_run():
    selection = RepeatedCorpora([30], [0.7])
    total = sum(counts(selection, epoch, 30) for epoch in range(10))
    assert total.tolist() == [7] * 30
    once_or_twice = counts(RepeatedCorpora([30], [1.5]), 1, 30)
    assert sorted(once_or_twice) == [1] * 15 + [2] * 15


def test_weights_are_shares_of_the_audio_of_an_epoch():
    hours, num_cuts = [100.0, 20.0, 4.0], [24_000, 7_200, 400]
    assert repeat_factors(hours, num_cuts, "hours", []) == [1.0, 1.0, 1.0]
    for weights in ([2.0, 1.0, 1.0], [0.5, 0.25, 0.25]):
        repeats = repeat_factors(hours, num_cuts, weights, [])
        audio = np.multiply(repeats, hours)
        np.testing.assert_allclose(audio, [62.0, 31.0, 31.0])
    audio = np.multiply(repeat_factors(hours, num_cuts, "cuts", []), hours)
    np.testing.assert_allclose(audio / audio.sum(), np.divide(num_cuts, sum(num_cuts)))
    np.testing.assert_allclose(audio.sum(), 124.0)
    assert repeat_factors(hours, num_cuts, [1.0, 0.0, 0.0], []) == [1.24, 0.0, 0.0]
    assert repeat_factors(hours, num_cuts, "hours", [1, 3, 10]) == [1.0, 3.0, 10.0]


def test_occurrences_count_up():
    selected = np.array([5, 2, 5, 5, 9, 2])
    assert occurrences(selected).tolist() == [0, 0, 1, 2, 0, 1]
    assert occurrences(np.arange(4)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "weights, repeats, message",
    [
        ([0.0, 0.0], [], r"train_weights is \[0.0, 0.0\], which adds up to 0: no corpus"),
        ([1.0, -1.0], [], "train_weights is .*: expected numbers of 0 or more"),
        ([1.0, float("nan")], [], "train_weights is .*: expected numbers of 0 or more"),
        ([1.0], [], "train_weights has 1 values for 2 manifests in train_cuts: give one for each"),
        ("minutes", [], "train_weights is 'minutes': use hours, cuts or a list of numbers"),
        ("hours", [1.0, 2.0, 3.0], "train_repeats has 3 values for 2 manifests"),
        ("hours", [0.0, 0.0], r"train_repeats is \[0.0, 0.0\], which adds up to 0"),
        ("hours", [1.0, float("inf")], "train_repeats is .*: expected numbers of 0 or more"),
        ([1.0, 1.0], [1.0, 1.0], "both say how much of each corpus an epoch takes; give one of them"),
    ],
)
def test_refused(weights, repeats, message):
    with pytest.raises(ValueError, match=message):
        repeat_factors([1.0, 2.0], [10, 20], weights, repeats)


def test_a_share_for_a_corpus_without_usable_cuts_is_refused():
    with pytest.raises(ValueError, match="gives 1 to manifest 1 of train_cuts, which has no usable cut"):
        repeat_factors([3.0, 0.0], [10, 0], [1.0, 1.0], [])
