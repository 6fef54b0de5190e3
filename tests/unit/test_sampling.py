"""Batches: every cut once, bounded padded size, the same for any number of processes."""

import numpy as np
import pytest

from spear_lib.data.sampling import BatchSampler


@pytest.fixture
def durations():
    return np.random.default_rng(0).gamma(4.0, 2.0, 1000) + 0.5


def global_batches(sampler, epoch):
    return [sampler.global_batch(epoch, index) for index in range(sampler.num_batches(epoch))]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 50, 1000])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_cut_exactly_once(durations, count, shuffle):
    sampler = BatchSampler(durations[:count], 150, seed=3, shuffle=shuffle)
    for epoch in (0, 1):
        assert sorted(cut for batch in global_batches(sampler, epoch) for cut in batch) == list(range(count))


def test_padded_size_is_bounded_and_padding_is_small(durations):
    sampler = BatchSampler(durations, 200)
    batches = global_batches(sampler, 0)
    padded = np.array([durations[batch].max() * len(batch) for batch in batches])
    assert padded.max() <= 200
    assert durations.sum() / padded.sum() > 0.88
    assert len(batches) < 1.2 * durations.sum() / 200
    assert (padded > 100).all()  # no handful left over at the end


def test_max_cuts(durations):
    batches = global_batches(BatchSampler(durations, 1000, max_cuts=16), 0)
    assert max(map(len, batches)) == 16
    assert sorted(cut for batch in batches for cut in batch) == list(range(1000))


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_same_global_batches(durations, world_size):
    alone = BatchSampler(durations, 200, seed=5)
    ranks = [
        BatchSampler(durations, 200, seed=5, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for epoch in (0, 7):
        assert {sampler.num_batches(epoch) for sampler in ranks} == {alone.num_batches(epoch)}
        for index in range(alone.num_batches(epoch)):
            shares = [sampler.share(sampler.global_batch(epoch, index)) for sampler in ranks]
            assert sorted(sum(shares, [])) == sorted(alone.global_batch(epoch, index))
            sizes = [len(share) for share in shares]
            assert max(sizes) - min(sizes) <= 1 and min(sizes) > 0
            seconds = [durations[share].sum() for share in shares]
            assert max(seconds) - min(seconds) <= durations[alone.global_batch(epoch, index)].max()


@pytest.mark.parametrize("num_shares, world_size", [(4, 1), (4, 2), (4, 3), (5, 4)])
def test_fewer_processes_take_the_same_shares_in_turn(durations, num_shares, world_size):
    """What share number n of a batch holds does not depend on who takes it."""
    wide = [BatchSampler(durations, 200, seed=5, rank=n, world_size=num_shares) for n in range(num_shares)]
    narrow = [
        BatchSampler(durations, 200, seed=5, rank=rank, world_size=world_size, shares=num_shares)
        for rank in range(world_size)
    ]
    for index in range(wide[0].num_batches(0)):
        batch = wide[0].global_batch(0, index)
        assert all(sampler.global_batch(0, index) == batch for sampler in narrow)
        taken = {
            rank + turn * world_size: sampler.share(batch, turn)
            for rank, sampler in enumerate(narrow)
            for turn in range(sampler.turns)
        }
        assert taken == {n: sampler.share(batch) for n, sampler in enumerate(wide)}


def test_a_run_that_goes_on_with_more_processes_keeps_its_batches():
    random = np.random.default_rng(0)
    durations = random.uniform(5, 20, 60)
    first = BatchSampler(durations, 45, seed=1)
    more = [BatchSampler(durations, 45, seed=1, rank=rank, world_size=4) for rank in range(4)]
    assert more[0].num_batches(0) < first.num_batches(0)  # four processes alone would want larger ones
    for sampler in more:
        sampler.divide(4, 1)
    for epoch in (0, 1):
        for index in range(first.num_batches(epoch)):
            batch = first.global_batch(epoch, index)
            assert sum((sampler.share(sampler.global_batch(epoch, index)) for sampler in more), []) != []
            assert sorted(sum((sampler.share(batch) for sampler in more), [])) == sorted(batch)
            assert more[3].global_batch(epoch, index) == batch
    assert first.smallest(0) == min(len(first.global_batch(0, i)) for i in range(first.num_batches(0))) < 4
    with pytest.raises(ValueError, match="data.shares divides batches into 2 shares, which 3 processes"):
        BatchSampler(durations, 45, world_size=3, shares=2)


def test_epochs_differ_and_are_repeatable(durations):
    first, again = BatchSampler(durations, 200, seed=1), BatchSampler(durations, 200, seed=1)
    assert global_batches(first, 0) == global_batches(again, 0)
    assert global_batches(first, 3) == global_batches(again, 3)  # whatever was asked for before
    zero, one = ({tuple(sorted(batch)) for batch in global_batches(first, epoch)} for epoch in (0, 1))
    assert len(zero & one) <= 2  # the few longest cuts may meet again
    other_seed = {tuple(sorted(batch)) for batch in global_batches(BatchSampler(durations, 200, seed=2), 0)}
    assert len(zero & other_seed) <= 2


def test_equal_durations_are_shuffled_without_jitter():
    sampler = BatchSampler(np.full(100, 2.0), 20, jitter=0.0)
    assert global_batches(sampler, 0) != global_batches(sampler, 1)
    assert sorted(sum(global_batches(sampler, 0), [])) == list(range(100))


def test_long_and_short_batches_come_in_random_order(durations):
    longest = [durations[batch].max() for batch in global_batches(BatchSampler(durations, 200), 0)]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.5


def test_validation_order_is_fixed(durations):
    sampler = BatchSampler(durations, 200, shuffle=False)
    assert global_batches(sampler, 0) == global_batches(sampler, 5)
    longest = [durations[batch].max() for batch in global_batches(sampler, 0)]
    assert longest == sorted(longest)


def test_a_small_last_batch_keeps_the_cap_and_every_process_busy():
    """37 equal cuts, 12 per batch: the last cut alone would leave processes idle; merged it would break the
    cap."""
    for world_size in (1, 2, 4):
        sampler = BatchSampler(np.full(37, 1.0), 12.0, world_size=world_size, max_cuts=12)
        sizes = [len(batch) for batch in global_batches(sampler, 0)]
        assert sum(sizes) == 37 and max(sizes) <= 12 and min(sizes) >= world_size


def test_a_selection_is_taken_as_often_as_it_says(durations):
    chosen = [np.repeat([3, 8, 500], [1, 3, 40]), np.arange(0, 1000, 7)]
    sampler = BatchSampler(durations, 60, selection=lambda epoch: chosen[epoch], world_size=2, max_cuts=9)
    for epoch in (0, 1):
        picks = [pick for i in range(sampler.num_batches(epoch)) for pick in sampler.picks(epoch, i)]
        assert sorted(pick.cut for pick in picks) == sorted(chosen[epoch])
        times = {cut: sorted(time for each, time in picks if each == cut) for cut, _ in picks}
        assert all(numbers == list(range(len(numbers))) for numbers in times.values())
        for index in range(sampler.num_batches(epoch)):
            batch = sampler.global_batch(epoch, index)
            assert 2 <= len(batch) <= 9 and durations[batch].max() * len(batch) <= 60
    empty = BatchSampler(durations, 60, selection=lambda epoch: np.array([5]), world_size=2)
    with pytest.raises(ValueError, match="epoch 3 takes 1 cuts, which 2 processes cannot share"):
        empty.num_batches(3)


def test_every_cut_selected_once_is_the_plan_without_a_selection(durations):
    plain = BatchSampler(durations, 200, seed=4)
    selected = BatchSampler(durations, 200, seed=4, selection=lambda epoch: np.arange(1000))
    assert [plain.picks(2, i) for i in range(9)] == [selected.picks(2, i) for i in range(9)]


def test_groups_meet_in_every_batch():
    """Clips of exactly 10 s among speech of 1 to 30 s: by duration alone, nearly all batches hold one
    kind."""
    random = np.random.default_rng(0)
    durations = np.concatenate([random.uniform(1, 30, 900), np.full(300, 10.0)])
    groups = np.repeat([0, 1], [900, 300])
    mixed = BatchSampler(durations, 300, groups=groups, max_cuts=40)
    batches = global_batches(mixed, 0)
    assert sorted(sum(batches, [])) == list(range(1200))
    shares = np.array([groups[batch].mean() for batch in batches])
    assert abs(shares - 0.25).max() < 0.12
    padded = np.array([durations[batch].max() * len(batch) for batch in batches])
    assert padded.max() <= 300 and durations.sum() / padded.sum() > 0.7
    apart = global_batches(BatchSampler(durations, 300, max_cuts=40), 0)
    assert np.mean([0 < groups[batch].mean() < 1 for batch in apart]) < 0.5
    assert global_batches(mixed, 1) != batches
    one = BatchSampler(durations, 300, groups=np.zeros(1200), max_cuts=40)
    assert global_batches(one, 0) == apart


def test_cuts_longer_than_the_budget_still_come(caplog):
    sampler = BatchSampler(np.array([3.0, 30.0, 40.0, 50.0]), 10.0)
    assert "longest cut (50.0 s)" in caplog.text
    assert sorted(sum(global_batches(sampler, 0), [])) == [0, 1, 2, 3]


def test_no_rank_is_ever_without_cuts():
    for count in range(3, 40):
        sampler = BatchSampler(np.random.default_rng(count).uniform(1, 30, count), 40.0, world_size=3)
        assert min(len(batch) for batch in global_batches(sampler, 0)) >= 3
        assert sum(len(batch) for batch in global_batches(sampler, 0)) == count


def test_many_cuts_are_planned_quickly():
    sampler = BatchSampler(np.random.default_rng(0).uniform(1, 20, 300_000), 600.0)
    import time

    start = time.perf_counter()
    assert sampler.num_batches(0) > 5000
    assert time.perf_counter() - start < 5.0  # measured: 0.2 s


def test_errors():
    with pytest.raises(ValueError, match="no cuts to form batches of"):
        BatchSampler(np.array([]), 10)
    with pytest.raises(ValueError, match="cut number 1 has a duration of 0.0 s"):
        BatchSampler(np.array([1.0, 0.0]), 10)
    with pytest.raises(ValueError, match="cut number 2 has a duration of nan s"):
        BatchSampler(np.array([1.0, 2.0, np.nan]), 10)
    with pytest.raises(ValueError, match="batch_seconds is 0.0"):
        BatchSampler(np.array([1.0]), 0)
    with pytest.raises(ValueError, match="1 cuts cannot be shared by 2 processes"):
        BatchSampler(np.array([1.0]), 10, world_size=2)
    with pytest.raises(ValueError, match="rank 2 does not exist among 2 processes"):
        BatchSampler(np.array([1.0, 2.0]), 10, rank=2, world_size=2)
    with pytest.raises(ValueError, match="max_cuts is 1: 2 processes"):
        BatchSampler(np.array([1.0, 2.0]), 10, world_size=2, max_cuts=1)


@pytest.mark.parametrize("world_size", [4, 128])
def test_evening_out_the_last_two_batches_leaves_a_cut_for_every_process(world_size):
    """One cut more than the processes need fits the batch before last: half of both was less than that."""
    for seed in range(60):
        durations = (
            np.random.default_rng(seed).gamma(4.0, 3.0, world_size * 2 + seed % (3 * world_size)) + 0.5
        )
        for batch_seconds in (4.0 * world_size, 12.0 * world_size, 30.0 * world_size):
            sampler = BatchSampler(durations, batch_seconds, world_size=world_size, seed=seed)
            sizes = [len(batch) for batch in global_batches(sampler, 0)]
            assert min(sizes) >= world_size and sum(sizes) == len(durations)
