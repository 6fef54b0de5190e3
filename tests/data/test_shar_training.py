"""Shar folders as training data: batches as from the manifest they were made of; damaged ones."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet
from lhotse.shar import SharWriter
from pretraining_fixtures import AUDIO_FIELD, FIELD, make_corpus

from spear_lib.data import manifest_index
from spear_lib.data.audio import AudioError, load_audio
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.mixing import MixingConfig
from spear_lib.pretraining import ObjectiveConfig
from spear_lib.pretraining.data import PretrainingData, PretrainingDataConfig
from spear_lib.pretraining.fields import token_fields
from spear_lib.tokens.fields import load_tokens, token_facts
from spear_lib.tokens.shar import export_shar

BOTH = [FIELD, AUDIO_FIELD]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A manifest with two token fields, and its Shar folder in shards of 4 cuts."""
    folder = tmp_path_factory.mktemp("corpus")
    manifest = make_corpus(folder, 10, audio=True, fields=BOTH)
    export_shar(Manifest(manifest), folder / "shar", BOTH, "flac", shard_cuts=4)
    return manifest, folder / "shar"


def data_of(path, **options) -> PretrainingData:
    mixing = MixingConfig(noise_probability=0.0, utterance_probability=0.5, token_probability=0.0)
    config = PretrainingDataConfig(
        train_cuts=[str(path)], token_fields=BOTH, batch_seconds=4.0, num_workers=0, mixing=mixing, **options
    )
    needed = ObjectiveConfig("asymmetrical").fields_by_domain(BOTH)
    return PretrainingData(config, needed_fields=needed)


def copied(shar: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shar, tmp_path / "shar"))


@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_are_those_of_the_manifest(corpus, tmp_path, monkeypatch, in_memory):
    manifest, shar = corpus[0], copied(corpus[1], tmp_path)
    if not in_memory:
        monkeypatch.setattr(manifest_index, "MEMORY_LIMIT", 0)
    plain, ours = data_of(manifest), data_of(shar)
    assert (tmp_path / ".index" / "shar").is_dir() is not in_memory
    for epoch, start in ((0, 0), (1, 2)):
        expected, found = plain.epoch_batches(epoch, start), ours.epoch_batches(epoch, start)
        for one, two in zip(expected, found, strict=True):
            assert one.ids == two.ids and one.mixed == two.mixed and torch.equal(one.audio, two.audio)
            assert torch.equal(one.time_mask, two.time_mask)
            torch.testing.assert_close(one.waveforms, two.waveforms, atol=1e-4, rtol=0)  # flac has 16 bits
            for name in BOTH:
                assert torch.equal(one.tokens[name], two.tokens[name])
    # The facts of the tokens travelled, without their store.
    assert token_fields(ours, {}) == token_fields(plain, {})
    facts = token_facts(Manifest(shar)[3], AUDIO_FIELD)
    assert facts["quantizer_id"] == "loudness-1" and facts["codebook_size"] == 6


def test_tokens_alone(corpus, tmp_path):
    export_shar(Manifest(corpus[0]), tmp_path / "shar", [FIELD])
    for before, after in zip(Manifest(corpus[0]), Manifest(tmp_path / "shar"), strict=True):
        assert after.id == before.id and after.recording.sources == before.recording.sources
        assert np.array_equal(load_tokens(after, FIELD), load_tokens(before, FIELD))
        assert AUDIO_FIELD not in after.custom


def test_folders_of_lhotses_own_writer(corpus, tmp_path):
    (tmp_path / "shar").mkdir()
    cuts = list(Manifest(corpus[0]))
    with SharWriter(tmp_path / "shar", fields={FIELD: "numpy", "recording": "wav"}, shard_size=3) as writer:
        for number, cut in enumerate(cuts):
            if number == 1:  # lhotse leaves a place for what a cut does not have
                cut.custom.pop(FIELD)
            writer.write(cut)
    for number, (before, after) in enumerate(zip(cuts, Manifest(tmp_path / "shar"), strict=True)):
        np.testing.assert_allclose(load_audio(after), load_audio(before), atol=1e-4)
        assert after.has_custom(FIELD) is (number != 1)
        if number != 1:
            assert np.array_equal(load_tokens(after, FIELD), load_tokens(before, FIELD))
    assert len(list(CutSet.from_shar(in_dir=tmp_path / "shar"))) == 10


def test_a_replaced_archive_is_indexed_anew(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest_index, "MEMORY_LIMIT", 0)
    shar = copied(corpus[1], tmp_path)
    assert len(Manifest(shar)) == 10
    shutil.rmtree(shar)
    export_shar(list(Manifest(corpus[0]))[:7], shar, BOTH, "flac", shard_cuts=4)
    assert len(Manifest(shar)) == 7
    shar.rename(tmp_path / "moved")  # the places in the index are those of the folder it was made in
    assert len(load_tokens(Manifest(tmp_path / "moved")[6], FIELD)) > 30


def cut_short(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def test_damaged_folders(corpus, tmp_path):
    def damaged(name: str) -> Path:
        (tmp_path / name).mkdir()
        return copied(corpus[1], tmp_path / name)

    shar = damaged("truncated")
    cut_short(shar / f"{FIELD}.000001.tar", 0.4)
    with pytest.raises(
        ValueError, match=f"{FIELD}.000001.tar (is truncated|does not hold the cuts.* the end).* again"
    ):
        Manifest(shar)
    shar = damaged("data")  # ends within the data of a recording
    cut_short(shar / "recording.000000.tar", 0.3)
    with pytest.raises(ValueError, match=r"recording.000000.tar is truncated or no .*tar archive .* again"):
        Manifest(shar)
    shar = damaged("cuts")
    cut_short(shar / "cuts.000002.jsonl.gz", 0.7)
    with pytest.raises(ValueError, match=r"cuts.000002.jsonl.gz is truncated or not gzip"):
        Manifest(shar)
    shar = damaged("missing")
    (shar / f"{AUDIO_FIELD}.000001.tar").unlink()
    with pytest.raises(
        ValueError, match=rf"cuts.000001.jsonl.gz has no {AUDIO_FIELD}.000001.tar beside it, though other"
    ):
        Manifest(shar)
    shar = damaged("other")
    shutil.copy(shar / f"{FIELD}.000001.tar", shar / f"{FIELD}.000000.tar")
    with pytest.raises(
        ValueError, match="does not hold the cuts of cuts.000000.jsonl.gz: there is cut train-004"
    ):
        Manifest(shar)
    shar = damaged("fewer")
    shutil.copy(shar / "cuts.000002.jsonl.gz", shar / "cuts.000001.jsonl.gz")
    with pytest.raises(ValueError, match="does not hold the cuts of cuts.000001.jsonl.gz"):
        Manifest(shar)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no cuts.* so it is no Shar folder"):
        Manifest(tmp_path / "empty")


def test_more_data_than_cuts_and_damaged_arrays(corpus, tmp_path):
    shar = copied(corpus[1], tmp_path)
    save_cuts(list(Manifest(corpus[0]))[:3], shar / "cuts.000000.jsonl.gz")
    with pytest.raises(ValueError, match="000000.tar holds more than the cuts of cuts.000000.jsonl.gz"):
        Manifest(shar)
    shutil.rmtree(shar)
    copied(corpus[1], tmp_path)
    archive = shar / f"{FIELD}.000000.tar"
    with tarfile.open(archive) as tar:
        member = tar.getmembers()[0]
        place = member.offset_data + tar.extractfile(member).read().index(b"'shape': (")
    content = bytearray(archive.read_bytes())
    content[place + 10 : place + 12] = b"99"
    archive.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"the array of train-000 has \d+ bytes, which is no array \(99, 2\)"
    ):
        Manifest(shar)


def test_archive_that_shrank_after_it_was_indexed(corpus, tmp_path):
    shar = copied(corpus[1], tmp_path)
    last = Manifest(shar)[9]
    cut_short(shar / "recording.000002.tar", 0.2)
    with pytest.raises(AudioError, match="audio of cut train-009 .* is shorter than when it was indexed"):
        load_audio(last)
    (shar / "recording.000002.tar").unlink()
    with pytest.raises(AudioError, match="audio of cut train-009 cannot be read .*No such file"):
        load_audio(last)
