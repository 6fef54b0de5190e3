"""Resuming after very many cuts costs no more than starting: neither lines nor batches are read again."""

import json
import time
from pathlib import Path

import pytest
from pretraining_fixtures import FIELD, make_corpus

from spear_lib.data.manifests import Manifest
from spear_lib.data.mixing import MixingConfig
from spear_lib.pretraining.data import PretrainingData, PretrainingDataConfig

SECONDS = 10.0


def write_manifest(folder: Path, count: int) -> Path:
    """``count`` cuts with ids of their own that share the audio and tokens of eight real ones."""
    templates = []
    for cut in Manifest(make_corpus(folder, 8)):
        templates.append(json.dumps({**cut.to_dict(), "id": "{}", "supervisions": []}))
    parts = [template.split('"{}"') for template in templates]
    path = folder / "many.jsonl"
    with open(path, "w") as file:
        for number in range(count):
            before, after = parts[number % 8]
            file.write(f'{before}"cut-{number}"{after}\n')
    return path


def resume(path: Path, num_seen: int) -> tuple[float, PretrainingData, list[str]]:
    """Processor seconds until the first batch after ``num_seen`` cuts, the data, the batch's cuts."""
    config = PretrainingDataConfig(
        train_cuts=[str(path)],
        token_fields=[FIELD],
        batch_seconds=200.0,
        num_workers=0,
        mixing=MixingConfig(noise_probability=0.0),
    )
    began = time.process_time()
    data = PretrainingData(config)
    assert data.fingerprint and data.batching(0)  # the training loop compares them
    start = int(num_seen / data.num_cuts * data.num_batches(0))
    batch = next(data.epoch_batches(0, start))
    return time.process_time() - began, data, batch.ids


@pytest.mark.parametrize(
    "num_cuts", [pytest.param(50_000), pytest.param(1_100_000, marks=pytest.mark.slow, id="a-million")]
)
def test_resuming_late_costs_what_starting_costs(tmp_path, num_cuts):
    path = write_manifest(tmp_path, num_cuts)
    began = time.process_time()
    Manifest(path)  # makes the index, once
    indexing = time.process_time() - began
    late, data, cuts = resume(path, num_cuts * 10 // 11)
    early, *_ = resume(path, 0)
    print(
        f"{num_cuts} cuts: index {indexing:.1f} s once; to the first batch {early:.2f} s, late {late:.2f} s"
    )
    assert data.num_cuts == num_cuts
    assert late < SECONDS and late < 1.5 * early + 1.0
    plan = data.sampler.plan(0)
    index = int(num_cuts * 10 // 11 / num_cuts * len(plan))
    assert sorted(cuts) == sorted(f"cut-{pick.cut}" for pick in plan.batch(index))
    assert plan.starts.size == len(plan) and sum(plan.ends - plan.starts) == num_cuts
