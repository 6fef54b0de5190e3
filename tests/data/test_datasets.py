"""Batches do not depend on workers, processes or interruptions; what is mixed and masked; validation."""

import numpy as np
import pytest
import torch
from dataset_fixtures import FIELD, QUANTIZER_ID, make_cuts, tiny_corpus, with_tokens

from spear_lib.asr.data import AsrData, AsrDataConfig, SpeedConfig
from spear_lib.config import load, to_dict
from spear_lib.data.audio import load_audio
from spear_lib.data.batch import Batch
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.mixing import MixingConfig
from spear_lib.features.fbank import FbankExtractor
from spear_lib.features.masking import MaskingConfig
from spear_lib.pretraining.data import PretrainingData, PretrainingDataConfig
from spear_lib.tokens.fields import load_tokens

MIXING = MixingConfig(noise_probability=0.3, utterance_probability=0.3, token_probability=0.4)
NOTHING_MIXED = MixingConfig(enabled=False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def options(corpus):
    return {
        "train_cuts": [corpus["train"]],
        "noise_cuts": [corpus["noise"]],
        "token_fields": [FIELD],
        "batch_seconds": 15.0,
        "num_workers": 0,
        "mixing": MIXING,
    }


def assert_same(left: Batch, right: Batch) -> None:
    first, second = left.to_numpy(), right.to_numpy()
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(value, second[name]), name
        elif name == "tokens":
            assert value.keys() == second[name].keys()
            assert all(np.array_equal(value[each], second[name][each]) for each in value)
        else:
            assert value == second[name], name


def assert_all_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for first, second in zip(left, right):
        assert_same(first, second)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(options, num_workers):
    expected = list(PretrainingData(PretrainingDataConfig(**options)).epoch_batches(1))
    assert {kind for batch in expected for kind in batch.mixed} == {"noise", "utterance", "tokens"}
    worked = PretrainingData(PretrainingDataConfig(**{**options, "num_workers": num_workers}))
    assert_all_same(expected, list(worked.epoch_batches(1)))


def test_resume_in_the_middle_of_an_epoch(options):
    expected = list(PretrainingData(PretrainingDataConfig(**options)).epoch_batches(2))
    resumed = PretrainingData(PretrainingDataConfig(**{**options, "num_workers": 2}))
    assert_all_same(expected[2:], list(resumed.epoch_batches(2, 2)))
    assert list(resumed.epoch_batches(2, len(expected))) == []
    with pytest.raises(ValueError, match=f"has {len(expected)} batches, cannot start at batch 99"):
        next(resumed.epoch_batches(2, 99))


def test_two_processes_see_what_one_sees(options):
    config = PretrainingDataConfig(**options)
    alone = list(PretrainingData(config).epoch_batches(0))
    ranks = [list(PretrainingData(config, rank=rank, world_size=2).epoch_batches(0)) for rank in (0, 1)]
    assert len(alone) == len(ranks[0]) == len(ranks[1])
    for whole, *shares in zip(alone, *ranks):
        assert sorted(whole.ids) == sorted(shares[0].ids + shares[1].ids)
        for share in shares:
            for row, name in enumerate(share.ids):
                place = whole.ids.index(name)
                samples, frames = int(share.num_samples[row]), (int(share.num_samples[row]) + 80) // 160
                assert share.mixed[row] == whole.mixed[place]
                assert share.keys[row] == whole.keys[place]
                assert torch.equal(share.waveforms[row, :samples], whole.waveforms[place, :samples])
                assert torch.equal(share.time_mask[row, :frames], whole.time_mask[place, :frames])
                assert torch.equal(share.channel_mask[row], whole.channel_mask[place])
                width = min(share.tokens[FIELD].shape[1], whole.tokens[FIELD].shape[1])
                assert torch.equal(share.tokens[FIELD][row, :width], whole.tokens[FIELD][place, :width])


def test_epochs_draw_anew_and_seeds_differ(options):
    data = PretrainingData(PretrainingDataConfig(**options))
    by_epoch = [
        {k: v for b in data.epoch_batches(epoch) for k, v in zip(b.ids, b.keys.tolist())} for epoch in (0, 1)
    ]
    assert by_epoch[0].keys() == by_epoch[1].keys()
    assert not set(by_epoch[0].values()) & set(by_epoch[1].values())
    other = next(PretrainingData(PretrainingDataConfig(**options), seed=1).epoch_batches(0))
    assert by_epoch[0][other.ids[0]] != int(other.keys[0])


def test_clean_batch_holds_the_cuts_own_audio_and_tokens(options):
    data = PretrainingData(PretrainingDataConfig(**{**options, "mixing": NOTHING_MIXED}))
    manifest, seen = Manifest(options["train_cuts"]), 0
    for batch in data.epoch_batches(0):
        assert batch.tokens[FIELD].dtype == torch.int64
        assert batch.audio_seconds == pytest.approx(float(batch.num_samples.sum()) / 16000)
        assert batch.padded_seconds <= 15.0 + 1e-6
        for row, name in enumerate(batch.ids):
            cut = manifest[manifest.position(name)]
            audio, tokens = load_audio(cut), load_tokens(cut, FIELD)
            assert batch.num_samples[row] == len(audio)
            assert np.array_equal(batch.waveforms[row, : len(audio)].numpy(), audio)
            assert not batch.waveforms[row, len(audio) :].any()
            assert np.array_equal(batch.tokens[FIELD][row, : len(tokens)].numpy(), tokens)
            assert (batch.tokens[FIELD][row, len(tokens) :] == -100).all()
            seen += 1
        fbank, lengths = FbankExtractor()(batch.waveforms, batch.num_samples)
        assert batch.time_mask.shape == fbank.shape[:2] and batch.channel_mask.shape == (len(batch), 128)
        behind = torch.arange(fbank.shape[1]) >= lengths.unsqueeze(1)
        assert not (batch.time_mask & behind).any()
        assert 0.3 < float(batch.time_mask.sum() / lengths.sum()) < 0.5
    assert seen == len(manifest)


def test_mixed_samples_are_as_promised(options):
    manifest = Manifest(options["train_cuts"])
    data = PretrainingData(PretrainingDataConfig(**options))
    counts = {"noise": 0, "utterance": 0, "tokens": 0}
    beta = replaced = 0.0
    for batch in data.epoch_batches(0):
        for row, (name, kind) in enumerate(zip(batch.ids, batch.mixed)):
            cut = manifest[manifest.position(name)]
            audio, tokens = load_audio(cut), load_tokens(cut, FIELD)
            counts[kind] += 1
            assert len(audio) == batch.num_samples[row]
            assert not np.array_equal(batch.waveforms[row, : len(audio)].numpy(), audio)
            same = (batch.tokens[FIELD][row, : len(tokens)].numpy() == tokens).mean()
            assert same == 1.0 if kind != "tokens" else 0.05 < same < 0.95
        assert sum(batch.statistics[f"mixed_{kind}"][0] for kind in counts) == len(batch)
        beta += batch.statistics.get("mixing_beta", (0, 0))[0]
        replaced += batch.statistics.get("mixing_replaced_tokens", (0, 0))[0]
    assert min(counts.values()) > 0
    assert 0 < replaced <= beta * 1.2  # the partner does not reach every frame


def test_audio_primaries_are_not_token_mixed_but_are_partners(tmp_path, options):
    cuts = with_tokens(make_cuts(tmp_path / "wav", 2), tmp_path / "tokens")
    cuts[0].custom["domain"] = "audio"
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    mixing = MixingConfig(noise_probability=0.0, token_probability=1.0)
    changed = {**options, "train_cuts": [str(tmp_path / "cuts.jsonl.gz")], "mixing": mixing}
    (batch,) = PretrainingData(PretrainingDataConfig(**changed)).epoch_batches(0)
    assert dict(zip(batch.ids, batch.mixed)) == {"cut00": "none", "cut01": "tokens"}


def test_other_token_fields_of_a_token_mixed_sample_are_not_scored(tmp_path, options):
    cuts = with_tokens(make_cuts(tmp_path / "wav", 4), tmp_path / "tokens")
    for cut in cuts:
        cut.custom["other_cb4"] = cut.custom[FIELD]
        cut.custom["other_cb4_quantizer_id"] = "quantiser-b"
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    mixing = MixingConfig(noise_probability=0.0, token_probability=0.5)
    changed = {
        **options,
        "train_cuts": [str(tmp_path / "cuts.jsonl.gz")],
        "token_fields": [FIELD, "other_cb4"],
        "quantizer_ids": [QUANTIZER_ID, "quantiser-b"],
        "mixing": mixing,
    }
    data = PretrainingData(PretrainingDataConfig(**changed))
    kinds = set()
    for epoch in range(4):
        for batch in data.epoch_batches(epoch):
            for row, kind in enumerate(batch.mixed):
                kinds.add(kind)
                scored = {name: bool((batch.tokens[name][row] != -100).any()) for name in batch.tokens}
                assert scored == {FIELD: True, "other_cb4": kind != "tokens"}
    assert kinds == {"none", "tokens"}


def test_batch_of_one_is_not_mixed_with_itself(tmp_path, options):
    save_cuts(with_tokens(make_cuts(tmp_path / "wav", 1), tmp_path / "tokens"), tmp_path / "cuts.jsonl.gz")
    mixing = MixingConfig(noise_probability=0.0, token_probability=1.0)
    changed = {**options, "train_cuts": [str(tmp_path / "cuts.jsonl.gz")], "mixing": mixing}
    (batch,) = PretrainingData(PretrainingDataConfig(**changed)).epoch_batches(0)
    assert batch.mixed == ["none"] and batch.statistics["mixing_skipped"] == (1.0, 1)
    assert batch.statistics["mixed_tokens"] == (0.0, 1)


def test_without_noise_manifest_noise_mixing_is_off(options):
    changed = {
        **options,
        "noise_cuts": [],
        "mixing": MixingConfig(noise_probability=1.0, token_probability=0.0),
    }
    for batch in PretrainingData(PretrainingDataConfig(**changed)).epoch_batches(0):
        assert set(batch.mixed) == {"none"}


def test_validation_is_fixed_and_clean(options):
    config = PretrainingDataConfig(**options)
    data = PretrainingData(config, training=False)
    batches = list(data.epoch_batches(0))
    assert {kind for batch in batches for kind in batch.mixed} == {"none"}
    names = [name for batch in batches for name in batch.ids]
    assert sorted(names) == sorted(Manifest(options["train_cuts"]).ids)
    again = list(data.epoch_batches(3))
    for first, second in zip(batches, again):
        assert first.ids == second.ids and torch.equal(first.keys, second.keys)
        assert torch.equal(first.time_mask, second.time_mask)
    unmasked = PretrainingDataConfig(**{**options, "masking": MaskingConfig(enabled=False)})
    batch = next(PretrainingData(unmasked, training=False).epoch_batches(0))
    assert batch.time_mask is None and batch.channel_mask is None


def test_asr_batches(options, corpus):
    config = AsrDataConfig(
        train_cuts=options["train_cuts"],
        noise_cuts=options["noise_cuts"],
        batch_seconds=15.0,
        num_workers=2,
        mixing=MixingConfig(noise_probability=0.5, token_probability=0.0),
    )
    data = AsrData(config)
    batches = list(data.epoch_batches(0))
    manifest = Manifest(options["train_cuts"])
    lengths = dict(zip(manifest.ids, manifest.durations))
    speeds = set()
    for batch in batches:
        assert not batch.tokens and batch.time_mask is None
        for name, text, speed, samples in zip(
            batch.ids, batch.texts, batch.speeds, batch.num_samples.tolist()
        ):
            assert text == f"word {int(name[3:])}"
            assert samples == pytest.approx(lengths[name] * 16000 / speed, abs=2)
            speeds.add(speed)
        assert set(batch.mixed) <= {"none", "noise"}
    assert speeds == {0.9, 1.0, 1.1}
    assert {kind for batch in batches for kind in batch.mixed} == {"none", "noise"}
    assert_all_same(
        batches, list(AsrData(load(AsrDataConfig, {**to_dict(config), "num_workers": 0})).epoch_batches(0))
    )

    plain = list(AsrData(config, training=False, cuts=[corpus["train"]]).epoch_batches(0))
    assert {speed for batch in plain for speed in batch.speeds} == {1.0}
    assert {kind for batch in plain for kind in batch.mixed} == {"none"}


def test_speed_can_be_switched_off(options):
    config = AsrDataConfig(train_cuts=options["train_cuts"], num_workers=0, speed=SpeedConfig(enabled=False))
    assert {speed for batch in AsrData(config).epoch_batches(0) for speed in batch.speeds} == {1.0}


def test_batch_moves_and_survives_a_pipe(options):
    batch = next(PretrainingData(PretrainingDataConfig(**options)).epoch_batches(0))
    moved = batch.to("meta")
    assert moved.waveforms.is_meta and moved.tokens[FIELD].is_meta and moved.time_mask.is_meta
    assert moved.ids == batch.ids and not batch.waveforms.is_meta
    assert_same(batch, Batch.from_numpy(batch.to_numpy()))


def test_options_survive_yaml(tmp_path):
    from spear_lib.config import save

    config = PretrainingDataConfig(train_cuts=["a"], mixing=MixingConfig(noise_snr_db=(1.0, 2.0)))
    save(config, tmp_path / "config.yaml")
    assert load(PretrainingDataConfig, tmp_path / "config.yaml") == config
