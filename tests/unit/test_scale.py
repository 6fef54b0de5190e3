"""The simulator of large corpora (tools/studies/scale.py) in small: its checks, and that they can fail."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from spear_lib.data.sampling import BatchSampler, EpochPlan

_PATH = Path(__file__).parents[2] / "tools" / "studies" / "scale.py"
_SPEC = importlib.util.spec_from_file_location("scale", _PATH)
scale = importlib.util.module_from_spec(_SPEC)
sys.modules["scale"] = scale
_SPEC.loader.exec_module(scale)


@pytest.mark.parametrize("ranks", [128, 1024])
@pytest.mark.parametrize(
    "count", [60_000, pytest.param(5_000_000, marks=pytest.mark.slow, id="five million")]
)
def test_no_process_without_a_cut_and_no_cut_lost(count, ranks):
    durations = scale.made_up_durations(count)
    assert durations.mean() == pytest.approx(scale.MEAN_SECONDS, rel=0.02)
    row = scale.simulate(durations, ranks, 50.0 * ranks, sample=40)
    assert row.smallest_cuts >= ranks and row.largest_padded <= 50.0 * ranks
    assert row.imbalance < 1.5
    # By hand: an epoch has about as many batches as its audio fills, padding and the ends aside.
    assert 1.0 <= row.batches / (durations.sum() / (50.0 * ranks)) < 1.3


def test_parts_of_a_token_store_hold_every_shard_once():
    durations = np.full(72_000, 10.0)  # 200 h: 9 shards of 22.2 h
    assert scale.check_shards(durations, 4) == (9, pytest.approx(44.4, abs=0.1), pytest.approx(66.7, abs=0.1))


@pytest.mark.parametrize(
    "cuts, starts, ends, words",
    [
        ([0, 1, 2, 2], [0, 2], [2, 4], "a cut comes 0 to 2 times"),
        ([0, 1, 2, 3], [0, 2], [2, 3], "leave cuts out"),
        ([0, 1, 2, 3], [0, 3], [3, 4], "2 processes share 1 cuts"),
    ],
)
def test_a_plan_that_loses_doubles_or_starves_is_found(monkeypatch, cuts, starts, ends, words):
    plan = EpochPlan(np.array(cuts), None, np.array(starts), np.array(ends))
    monkeypatch.setattr(BatchSampler, "plan", lambda self, epoch: plan)
    with pytest.raises(RuntimeError, match=words):
        scale.check_every_cut_once(BatchSampler(np.ones(4), 10.0, world_size=2), 0)
