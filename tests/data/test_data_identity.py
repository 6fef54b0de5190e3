"""What a resumed run asks of its data: are they the same, and which batch is the largest."""

import numpy as np
from dataset_fixtures import FIELD, make_cuts, tiny_corpus, with_tokens

from spear_lib.asr.data import AsrData, AsrDataConfig
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.sampling import BatchSampler
from spear_lib.pretraining.data import PretrainingData, PretrainingDataConfig


def test_fingerprint_follows_ids_durations_and_order(tmp_path):
    cuts = make_cuts(tmp_path / "wav", 4)
    versions = {
        "same": cuts,
        "order": cuts[::-1],
        "fewer": cuts[:3],
        "shorter": [cuts[0].truncate(duration=0.5, preserve_id=True), *cuts[1:]],
        "renamed": [cuts[0].with_id("other"), *cuts[1:]],
    }
    prints = {}
    for name, of in versions.items():
        save_cuts(of, tmp_path / f"{name}.jsonl.gz")
        prints[name] = Manifest(tmp_path / f"{name}.jsonl.gz").fingerprint
    assert len(set(prints.values())) == len(versions)
    save_cuts(cuts, tmp_path / "again" / "moved.jsonl.gz")
    assert Manifest(tmp_path / "again" / "moved.jsonl.gz").fingerprint == prints["same"]


def test_fingerprint_of_the_data_includes_the_noise(tmp_path):
    paths = tiny_corpus(tmp_path, 6)
    options = {"train_cuts": [paths["train"]], "token_fields": [FIELD], "num_workers": 0}
    without = PretrainingData(PretrainingDataConfig(**options)).fingerprint
    config = PretrainingDataConfig(**options, noise_cuts=[paths["noise"]])
    assert PretrainingData(config).fingerprint not in ("", without)
    assert (
        PretrainingData(config).fingerprint
        == PretrainingData(config, seed=3, rank=1, world_size=2).fingerprint
    )


def test_targets_of_transcribed_cuts_are_their_texts_and_times(tmp_path):
    cuts = make_cuts(tmp_path / "wav", 4)

    def prints(name):
        save_cuts(cuts, tmp_path / f"{name}.jsonl.gz")
        manifest = Manifest(tmp_path / f"{name}.jsonl.gz")
        data = AsrData(AsrDataConfig(train_cuts=[str(manifest.paths[0])], num_workers=0))
        assert data.targets_fingerprint == manifest.labels_fingerprint
        return manifest.fingerprint, data.targets_fingerprint

    first = prints("first")
    assert prints("again") == first
    seen = {first[1]}
    said = cuts[2].supervisions[0]
    for field, value in {"text": "other words", "duration": 0.5, "custom": {"audio_event": "/m/1"}}.items():
        setattr(said, field, value)
        ids, targets = prints(field)
        assert ids == first[0] and targets not in seen, field
        seen.add(targets)


def test_targets_of_pre_training_are_the_tokens_themselves(tmp_path):
    def prints(name, change=None):
        cuts = with_tokens(make_cuts(tmp_path / name / "wav", 4), tmp_path / name / "tokens")
        if change is not None:  # one token of one cut, under the same ids, quantiser and store facts
            (store,) = (tmp_path / name / "tokens").rglob("*.bin")
            codes = bytearray(store.read_bytes())
            codes[change] ^= 1
            store.write_bytes(codes)
        for cut in cuts:
            cut.supervisions = []  # what is said there is not learnt
        save_cuts(cuts, tmp_path / f"{name}.jsonl.gz")
        config = PretrainingDataConfig(train_cuts=[str(tmp_path / f"{name}.jsonl.gz")], token_fields=[FIELD])
        return PretrainingData(config).targets_fingerprint

    first = prints("first")
    assert prints("moved") == first  # another folder, the same content
    assert first not in (prints("begin", 0), prints("end", -1))


def test_largest_batch_is_that_of_the_most_memory():
    random = np.random.default_rng(0)
    durations = random.uniform(1.0, 20.0, 200)
    for world_size in (1, 3):
        sampler = BatchSampler(durations, 60.0, world_size=world_size)
        index = sampler.largest(2)
        padded, longest = [], []
        for number in range(sampler.num_batches(2)):
            share = sampler.global_batch(2, number)[::world_size]
            padded.append(durations[share[0]] * len(share))
            longest.append(durations[share].max())
        near = [number for number, size in enumerate(padded) if size >= 0.9 * max(padded)]
        assert longest[index] == max(longest[number] for number in near) and index in near


def test_largest_batch_is_a_real_one(tmp_path):
    cuts = with_tokens(make_cuts(tmp_path / "wav", 12), tmp_path / "tokens")
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    config = PretrainingDataConfig(
        train_cuts=[str(tmp_path / "cuts.jsonl.gz")], token_fields=[FIELD], num_workers=0, batch_seconds=8.0
    )
    data = PretrainingData(config)
    largest = data.largest_batch(1)
    (same,) = [batch for batch in data.epoch_batches(1) if batch.index == largest.index]
    assert same.ids == largest.ids and (same.waveforms == largest.waveforms).all()
    assert largest.padded_seconds >= 0.9 * max(batch.padded_seconds for batch in data.epoch_batches(1))


def test_batching_tells_when_the_number_of_processes_matters(tmp_path):
    cuts = with_tokens(make_cuts(tmp_path / "wav", 12), tmp_path / "tokens")
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")

    def batching(seconds, world_size):
        config = PretrainingDataConfig(
            train_cuts=[str(tmp_path / "cuts.jsonl.gz")], token_fields=[FIELD], batch_seconds=seconds
        )
        data = PretrainingData(config, world_size=world_size)
        assert data.batching(0).startswith(f"{data.num_batches(0)} batches, ")
        return data.batching(0)

    assert batching(30.0, 1) == batching(30.0, 3)  # room for three cuts everywhere
    assert batching(3.0, 1) != batching(3.0, 3)
