"""Several corpora and both domains in one training set: shares, repeats, draws of repeated cuts."""

from collections import Counter

import numpy as np
import pytest
import torch
from dataset_fixtures import FIELD, make_cuts, with_tokens

from spear_lib.config import load, parse
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.mixing import MixingConfig
from spear_lib.pretraining.data import PretrainingData, PretrainingDataConfig
from spear_lib.pretraining.options import PretrainOptions

MIXING = MixingConfig(noise_probability=0.0, utterance_probability=0.3, token_probability=0.5)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Manifests of 20 speech cuts, of 8 speech cuts and of 10 audio cuts."""
    folder = tmp_path_factory.mktemp("corpora")
    paths = []
    for seed, (name, count) in enumerate((("large", 20), ("small", 8), ("sounds", 10))):
        cuts = with_tokens(make_cuts(folder / name, count, seed, prefix=name), folder / f"tokens-{name}")
        if name == "sounds":
            cuts = [cut.with_custom("domain", "audio") for cut in cuts]
        paths.append(str(folder / f"{name}.jsonl.gz"))
        save_cuts(cuts, paths[-1])
    return paths


def data_of(paths, **options) -> PretrainingData:
    return PretrainingData(
        PretrainingDataConfig(
            **{
                "train_cuts": paths,
                "token_fields": [FIELD],
                "batch_seconds": 15.0,
                "num_workers": 0,
                "mixing": MIXING,
                **options,
            }
        )
    )


def test_an_epoch_repeats_a_corpus_with_draws_of_its_own(corpora):
    data = data_of(corpora[:2], train_repeats=[0.5, 3.0])
    for epoch in (0, 1):
        keys: dict[str, list[int]] = {}
        for batch in data.epoch_batches(epoch):
            for name, key in zip(batch.ids, batch.keys.tolist()):
                keys.setdefault(name, []).append(key)
        counts = Counter({name: len(each) for name, each in keys.items()})
        assert [counts[f"small{number:02d}"] for number in range(8)] == [3] * 8
        assert sum(name.startswith("large") for name in counts) == 10 == sum(counts.values()) - 24
        assert len({key for each in keys.values() for key in each}) == 34  # other masks each time
    plain = {n: k for b in data_of(corpora[:2]).epoch_batches(1) for n, k in zip(b.ids, b.keys.tolist())}
    assert all(plain[name] in each for name, each in keys.items())  # the first time draws as ever


def test_repeats_of_a_cut_in_one_batch_differ_and_are_no_partners(corpora, tmp_path):
    save_cuts([Manifest(corpora[0])[0]], tmp_path / "one.jsonl.gz")
    mixing = MixingConfig(noise_probability=0.0, token_probability=1.0)
    data = data_of([str(tmp_path / "one.jsonl.gz")], train_repeats=[4.0], mixing=mixing)
    (batch,) = data.epoch_batches(0)
    assert batch.mixed == ["none"] * 4 and batch.statistics["mixing_skipped"] == (4.0, 4)
    assert len({tuple(row) for row in batch.time_mask.tolist()}) == 4
    assert torch.equal(batch.waveforms[0], batch.waveforms[3])


def test_weights_share_the_audio_of_an_epoch(corpora):
    data = data_of(corpora, train_weights=[1.0, 1.0, 2.0], mixing=MixingConfig(enabled=False))
    seconds = Counter()
    for epoch in range(4):
        for batch in data.epoch_batches(epoch):
            for name, samples in zip(batch.ids, batch.num_samples.tolist()):
                seconds[name[:5]] += samples / 16000
    total = sum(seconds.values())
    shares = [seconds[name] / total for name in ("large", "small", "sound")]
    np.testing.assert_allclose(shares, [0.25, 0.25, 0.5], atol=0.02)
    np.testing.assert_allclose(total, 4 * data.total_seconds, rtol=0.03)
    lines = data.facts()
    assert lines["training cuts"].startswith("38, 0.0")
    assert "10 cuts, 0.01 h" in lines["corpus sounds.jsonl.gz"]
    share = float(lines["corpus sounds.jsonl.gz"].split(" or ")[1].split(" %")[0])
    assert abs(share - 50) < 3
    assert list(data_of(corpora[:1]).facts()) == ["training cuts"]


def test_weights_and_repeats_resume_and_split_like_anything_else(corpora):
    options = {"train_weights": "cuts", "num_workers": 2}
    unbroken = list(data_of(corpora, **options).epoch_batches(1))
    resumed = list(data_of(corpora, **options).epoch_batches(1, 2))
    assert len(unbroken) > 3
    for first, second in zip(unbroken[2:], resumed, strict=True):
        assert first.ids == second.ids and torch.equal(first.waveforms, second.waveforms)
        assert torch.equal(first.time_mask, second.time_mask) and first.mixed == second.mixed
    config = data_of(corpora, **options).config
    ranks = [PretrainingData(config, rank=rank, world_size=2) for rank in (0, 1)]
    for whole, left, right in zip(unbroken, *(rank.epoch_batches(1) for rank in ranks), strict=True):
        assert sorted(zip(whole.ids, whole.keys.tolist())) == sorted(
            [*zip(left.ids, left.keys.tolist()), *zip(right.ids, right.keys.tolist())]
        )


def test_both_domains_meet_in_every_batch(corpora):
    data = data_of(corpora, batch_seconds=20.0)
    batches = list(data.epoch_batches(0))
    assert len(batches) > 3 and all(0 < batch.audio.sum() < len(batch) for batch in batches)
    assert sorted(name for batch in batches for name in batch.ids) == sorted(data.manifest.ids)
    assert max(batch.padded_seconds for batch in batches) <= 20.0
    validation = PretrainingData(data.config, training=False)
    longest = [int(batch.num_samples.max()) for batch in validation.epoch_batches(0)]
    assert longest == sorted(longest)  # by duration alone, every cut once


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train_weights": [0.0, 0.0, 0.0]}, "train_weights is .* which adds up to 0"),
        ({"train_weights": [1.0]}, "train_weights has 1 values for 3 manifests"),
        ({"train_repeats": [1.0, -2.0, 1.0]}, "train_repeats is .* expected numbers of 0 or more"),
        ({"train_weights": "cuts", "train_repeats": [1.0, 2.0, 1.0]}, "give one of them"),
    ],
)
def test_wrong_shares_are_refused(corpora, options, message):
    with pytest.raises(ValueError, match=message):
        data_of(corpora, **options)
    assert PretrainingData(
        PretrainingDataConfig(token_fields=[FIELD], mixing=MIXING, **options),
        training=False,
        cuts=corpora[:1],
    )


def test_shares_on_the_command_line():
    given = ["--experiment_dir", "a", "--data.train_weights", "[2, 1.5]", "--data.train_repeats", "[1, 3]"]
    data = parse(PretrainOptions, given).data
    assert data.train_weights == [2.0, 1.5] and data.train_repeats == [1.0, 3.0]
    assert parse(PretrainOptions, [*given[:2], "--data.train_weights", "cuts"]).data.train_weights == "cuts"
    assert load(PretrainOptions, {"experiment_dir": "a"}).data.train_weights == "hours"
