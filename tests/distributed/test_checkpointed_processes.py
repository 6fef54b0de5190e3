"""Activation checkpointing on two gloo processes: the losses of the run that keeps its activations."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from pretraining_fixtures import AUDIO_FIELD, FIELD, command, run, write_two_domain_config

from spear_lib.runtime.metrics_log import read_metrics

pytestmark = pytest.mark.slow


def test_recomputed_activations_give_the_same_losses_on_two_processes(tmp_path):
    # Everything on: both heads, dropouts, layer skipping, gradients of Balancer and Whiten.
    config = write_two_domain_config(tmp_path, "asymmetrical", max_steps=6)
    more = ("--encoder.balancer", "true", "--encoder.whiten", "true", "--training.accumulate_batches", "2")
    for name, option in (("kept", "[false]"), ("recomputed", "[true]")):
        extra = (*more, "--encoder.checkpoint_activations", option)
        run(command(config, tmp_path / name, *extra, processes=2))
    kept, recomputed = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("kept", "recomputed"))
    assert len(kept) == len(recomputed) >= 6 + 2
    for one, other in zip(kept, recomputed):
        assert (one["kind"], one["step"]) == (other["kind"], other["step"])
        for name in ("loss", f"{FIELD}/masked_loss", f"{AUDIO_FIELD}/masked_loss"):
            if name in one:
                assert other[name] == pytest.approx(one[name], rel=1e-5), (one["kind"], one["step"], name)
