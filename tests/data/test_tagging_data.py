"""Data of audio tagging: labels, mixup, noise, weighted sampling, resume, and what is wrong with clips."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from tagging_fixtures import CLASSES, clip, make_clips, make_noise

from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.mixing import MixingConfig
from spear_lib.tagging.class_labels import LabelTable
from spear_lib.tagging.data import MixupConfig, TaggingData, TaggingDataConfig, WeightedSelection, mix_up

LABELS = list(CLASSES)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tagging")
    return {
        "train": str(make_clips(folder, "train", 24)),
        "noise": str(make_noise(folder / "noise")),
        "folder": str(folder),
    }


def data_of(corpus, training=True, rank=0, world_size=1, seed=0, **options) -> TaggingData:
    options = {"train_cuts": [corpus["train"]], "batch_seconds": 12.0, "num_workers": 0, **options}
    return TaggingData(TaggingDataConfig(**options), CLASSES, seed, rank, world_size, training)


def plain(corpus, **options) -> TaggingData:
    """No mixup, no noise."""
    return data_of(corpus, mixup=MixupConfig(probability=0.0), mixing=MixingConfig(enabled=False), **options)


def batches_by_id(data: TaggingData, epoch: int = 0, start: int = 0) -> dict[str, tuple]:
    found = {}
    for batch in data.epoch_batches(epoch, start):
        for row, name in enumerate(batch.ids):
            length = int(batch.num_samples[row])
            found[name] = batch.waveforms[row, :length], batch.labels[row], batch.mixed[row]
    return found


def test_labels_are_those_of_the_cuts(corpus):
    manifest = Manifest(corpus["train"])
    table = LabelTable(manifest, CLASSES)
    for batch in plain(corpus).epoch_batches(0):
        assert batch.labels.shape == (len(batch.ids), len(CLASSES)) and batch.labels.dtype == torch.float32
        for name, row in zip(batch.ids, batch.labels):
            custom = manifest[manifest.position(name)].supervisions[0].custom["audio_event"].split(";")
            assert {LABELS[number] for number in row.nonzero().flatten().tolist()} == set(custom)
    assert table.counts(np.arange(24)).sum() == sum(len(table.of(number)) for number in range(24))
    assert batch.to("cpu").labels is not None
    restored = type(batch).from_numpy(batch.to_numpy())
    assert torch.equal(restored.labels, batch.labels)


def test_mix_up_by_hand():
    first, second = np.array([1.0, 1.0, 1.0], np.float32), np.array([2.0, 4.0, 6.0, 8.0], np.float32)
    assert mix_up(first, second, 0.5).tolist() == [1.5, 2.5, 3.5]
    assert mix_up(first, second, 0.5, crop=0.75).tolist() == [2.5, 3.5, 4.5]
    assert mix_up(first, second[:1], 0.25).tolist() == [1.75, 0.25, 0.25]


def test_mixed_clips_are_sums_of_two_with_the_labels_of_both(tmp_path):
    seconds = np.linspace(0.8, 1.3, 6)
    cuts = [clip(tmp_path, f"only{number}", [number], seconds[number]) for number in range(6)]
    save_cuts(cuts, tmp_path / "only.jsonl.gz")
    one_each = {"train": str(tmp_path / "only.jsonl.gz")}
    clean = batches_by_id(plain(one_each))
    data = data_of(one_each, mixup=MixupConfig(probability=1.0), mixing=MixingConfig(enabled=False))
    shares = []
    for epoch in range(10):
        for name, (waveform, labels, kind) in batches_by_id(data, epoch).items():
            own = int(name.removeprefix("only"))
            share, rest = float(labels[own]), (waveform - labels[own] * clean[name][0]) / (1 - labels[own])
            (other,) = set(labels.nonzero().flatten().tolist()) - {own}
            assert kind == "clip" and float(labels[other]) == pytest.approx(1 - share, abs=1e-6)
            partner = clean[f"only{other}"][0]
            if len(partner) > len(rest):
                pieces = partner.unfold(0, len(rest), 1)
                partner = pieces[int((pieces @ rest).argmax())]
            torch.testing.assert_close(rest[: len(partner)], partner, atol=1e-4, rtol=0)
            assert float(rest[len(partner) :].abs().sum()) < 1e-2
            shares.append(share)
    # Beta(10, 10) has mean 0.5 and standard deviation 0.109.
    assert abs(np.mean(shares) - 0.5) < 4 * 0.109 / np.sqrt(len(shares))
    assert 0.07 < np.std(shares) < 0.15


def test_half_of_the_clips_get_a_partner_and_half_get_noise(corpus):
    data = data_of(corpus, noise_cuts=[corpus["noise"]])
    clean, counts, sums = batches_by_id(plain(corpus)), {}, {}
    for epoch in range(8):
        for batch in data.epoch_batches(epoch):
            for name, (total, count) in batch.statistics.items():
                sums[name] = sums.get(name, 0) + total
                counts[name] = counts.get(name, 0) + count
            for row, name in enumerate(batch.ids):
                same = torch.equal(batch.waveforms[row, : int(batch.num_samples[row])], clean[name][0])
                assert same == (batch.mixed[row] == "none")
    number = 8 * 24
    assert counts["mixed_clip"] == counts["mixed_noise"] == number
    for name in ("mixed_clip", "mixed_noise"):
        assert abs(sums[name] - number / 2) < 4 * np.sqrt(number / 4), name
    assert sums["mixing_skipped"] == 0


def test_draws_do_not_depend_on_processes_or_where_a_run_was_interrupted(corpus):
    options = {"noise_cuts": [corpus["noise"]], "weighted_sampling": True, "samples_per_epoch": 40}

    def content(data, epoch, start=0):
        return {
            (name, int(batch.keys[row])): (
                batch.waveforms[row, : int(batch.num_samples[row])],
                batch.labels[row],
            )
            for batch in data.epoch_batches(epoch, start)
            for row, name in enumerate(batch.ids)
        }

    whole = content(data_of(corpus, **options), 3)
    parts = [content(data_of(corpus, rank=rank, world_size=2, **options), 3) for rank in (0, 1)]
    together = {**parts[0], **parts[1]}
    assert whole.keys() == together.keys() and len(whole) == len(parts[0]) + len(parts[1]) == 40
    for key, (waveform, labels) in whole.items():
        assert torch.equal(together[key][0], waveform) and torch.equal(together[key][1], labels)
    later = content(data_of(corpus, **options), 3, start=2)
    assert 0 < len(later) < 40
    assert all(torch.equal(later[key][0], whole[key][0]) for key in later)


def test_a_cut_that_comes_twice_in_an_epoch_is_augmented_differently(corpus):
    data = data_of(corpus, weighted_sampling=True, samples_per_epoch=200, mixup=MixupConfig(probability=1.0))
    seen = {}
    for batch in data.epoch_batches(0):
        for row, name in enumerate(batch.ids):
            seen.setdefault(name, []).append(float(batch.waveforms[row].abs().sum()))
    assert max(len(powers) for powers in seen.values()) > 3
    assert all(len(set(powers)) == len(powers) for powers in seen.values())


def test_validation_is_clean_and_takes_every_clip_once(corpus):
    options = {"noise_cuts": [corpus["noise"]], "weighted_sampling": True, "samples_per_epoch": 7}
    data = data_of(corpus, training=False, **options)
    clean = batches_by_id(plain(corpus))
    ids = [name for batch in data.epoch_batches(0) for name in batch.ids]
    assert sorted(ids) == sorted(clean)
    for name, (waveform, labels, kind) in batches_by_id(data).items():
        assert (
            torch.equal(waveform, clean[name][0]) and torch.equal(labels, clean[name][1]) and kind == "none"
        )


class Rows:
    """A manifest of cuts that have labels and nothing else."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def fields(self):
        for number, row in enumerate(self.rows):
            custom = {"audio_event": ";".join(LABELS[index] for index in row)}
            yield {"id": str(number), "supervisions": [{"custom": custom}]}

    def describe(self) -> str:
        return "rows"


def test_class_frequencies_of_weighted_sampling_are_those_of_theory():
    """Cuts of three classes, 400, 40 and 4 of them, some with two labels."""
    random = np.random.default_rng(0)
    rows = [[0]] * 400 + [[1]] * 30 + [[0, 1]] * 10 + [[2]] * 4 + [[]]

    table = LabelTable(Rows(rows), CLASSES)
    everything = np.arange(len(rows))
    assert table.counts(everything).tolist() == [410, 40, 4, 0, 0, 0]
    weights = table.weights(everything)
    assert weights[0] == pytest.approx(1000 / 410.01)
    assert weights[430] == pytest.approx(1000 / 410.01 + 1000 / 40.01)
    assert weights[-1] == 0.0
    kept = random.permutation(len(rows))[:100]
    assert table.weights(kept)[0] == pytest.approx(
        sum(1000 / (table.counts(kept)[index] + 0.01) for index in rows[kept[0]])
    )
    selection = WeightedSelection(weights, 3000, seed=5)
    draws = np.concatenate([selection(epoch) for epoch in range(20)])
    assert len(draws) == 60000 and len(rows) - 1 not in draws
    probability = weights / weights.sum()
    for index in range(3):
        has = np.array([index in row for row in rows])
        expected = probability[has].sum()
        spread = np.sqrt(expected * (1 - expected) / len(draws))
        assert abs(has[draws].mean() - expected) < 4 * spread, index
    # Each class of single labels comes about equally often, however many cuts it has.
    only = [np.isin(draws, [n for n, row in enumerate(rows) if row == [index]]).mean() for index in (0, 2)]
    assert only[0] == pytest.approx(only[1], rel=0.1)
    # A pure function of seed and epoch.
    assert np.array_equal(selection(3), WeightedSelection(weights, 3000, seed=5)(3))
    assert not np.array_equal(selection(3), selection(4))
    assert not np.array_equal(selection(3), WeightedSelection(weights, 3000, seed=6)(3))


def test_an_epoch_has_the_stated_number_of_samples(corpus):
    data = data_of(corpus, weighted_sampling=True, samples_per_epoch=50)
    for epoch in (0, 1):
        assert sum(len(batch) for batch in data.epoch_batches(epoch)) == 50
    data = data_of(corpus, weighted_sampling=True)
    assert sum(len(batch) for batch in data.epoch_batches(0)) == 24


def with_cuts(corpus, tmp_path, *cuts) -> dict[str, str]:
    path = tmp_path / "more.jsonl.gz"
    save_cuts([*Manifest(corpus["train"]), *cuts], path)
    return {**corpus, "train": str(path)}


def test_unknown_labels_are_dropped_and_counted(corpus, tmp_path, caplog):
    known = clip(tmp_path, "half-known", [2], 1.0, [LABELS[2], "/m/unheard", LABELS[2]])
    with caplog.at_level(logging.WARNING):
        data = plain(with_cuts(corpus, tmp_path, known))
    assert data.labels.unknown == {"/m/unheard": 1} and not data.labels.unlabelled
    assert "1 labels on 1 cuts are not in the class list and do not count: /m/unheard" in caplog.text
    assert batches_by_id(data)["half-known"][1].tolist() == [0, 0, 1, 0, 0, 0]


def test_clips_without_known_label_count_like_unreadable_ones(corpus, tmp_path):
    unknown = clip(tmp_path, "strange", [0], 1.0, ["/m/unheard"])
    more = with_cuts(corpus, tmp_path, unknown)
    data = plain(more, max_bad_fraction=0.1)
    assert "strange" not in batches_by_id(data)
    assert data.problems == {"strange": "no label of the class list"}
    with pytest.raises(ValueError, match="1 of 25 cuts cannot be used.*strange: no label of the class list"):
        plain(more)  # before the first step, not when it is drawn


def test_another_class_list_is_refused(corpus):
    config = TaggingDataConfig(train_cuts=[corpus["train"]])
    with pytest.raises(ValueError, match="no cut of .*theirs are unknown: /m/tone"):
        TaggingData(config, {"/m/other": "Other"})


def test_cuts_without_labels_are_refused(corpus):
    config = TaggingDataConfig(train_cuts=[corpus["noise"]])
    with pytest.raises(ValueError, match="they have none at all. Give cuts with labels"):
        TaggingData(config, CLASSES)


def test_missing_files_are_counted_up_to_a_limit(corpus, tmp_path):
    lost = clip(tmp_path, "lost", [1], 1.0)
    (tmp_path / "lost.wav").unlink()
    more = with_cuts(corpus, tmp_path, lost)
    data = plain(more, max_bad_fraction=0.1)
    assert len(batches_by_id(data)) == 24
    assert "does not exist" in data.problems["lost"]
    with pytest.raises(RuntimeError, match="more than the 0 that max_bad_fraction"):
        batches_by_id(plain(more))


def test_a_partner_that_is_missing_leaves_the_clip_alone(corpus, tmp_path):
    cuts = [clip(tmp_path, f"pair{number}", [number], 1.0) for number in (0, 1)]
    (tmp_path / "pair1.wav").unlink()
    path = tmp_path / "pair.jsonl.gz"
    save_cuts(cuts, path)
    data = data_of({"train": str(path)}, mixup=MixupConfig(probability=1.0), max_bad_fraction=0.5)
    (batch,) = data.epoch_batches(0)
    assert batch.ids == ["pair0"] and batch.mixed == ["none"]
    assert batch.labels[0].tolist() == [1, 0, 0, 0, 0, 0]
    assert batch.statistics["mixing_skipped"] == (1.0, 1)


def test_short_and_long_clips_share_a_batch(corpus, tmp_path):
    short = clip(tmp_path, "short", [3], 0.6)
    data = data_of(
        with_cuts(corpus, tmp_path, short), mixup=MixupConfig(probability=1.0), duration_jitter=0.9
    )
    found = batches_by_id(data)
    assert len(found["short"][0]) == round(0.6 * 16000)
    assert torch.isfinite(found["short"][0]).all()


def test_options_that_make_no_sense_are_refused(corpus):
    for options, message in (
        ({"samples_per_epoch": 5}, "weighted_sampling false"),
        ({"samples_per_epoch": -1}, "samples_per_epoch is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            TaggingDataConfig(**options)
    for options, message in (
        ({"probability": 1.5}, "mixup.probability is 1.5"),
        ({"alpha": 0.0}, "mixup.alpha is 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            MixupConfig(**options)
    with pytest.raises(
        ValueError, match="mixing.utterance_probability is 0.1, but tagging mixes clips by mixup"
    ):
        data_of(corpus, mixing=dataclasses.replace(TaggingDataConfig().mixing, utterance_probability=0.1))
    with pytest.raises(ValueError, match="weights of 3 cuts add up to 0.0"):
        WeightedSelection(np.zeros(3), 4)
    with pytest.raises(ValueError, match="samples_per_epoch is 0"):
        WeightedSelection(np.ones(3), 0)
