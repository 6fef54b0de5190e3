"""One bad item: counted, named and passed over, whatever it is and wherever it comes."""

import dataclasses

import numpy as np
import pytest
import soundfile
import torch
from asr_fixtures import TINY_ENCODER
from asr_fixtures import make_cuts as make_asr_cuts
from dataset_fixtures import FIELD, make_cuts, with_tokens
from lhotse import Recording

from spear_lib.asr.data import AsrData, AsrDataConfig
from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.asr.task import AsrTask, learnable_targets
from spear_lib.asr.units import character_units
from spear_lib.data.audio import CORRUPT, OUT_OF_RANGE, AudioError, load_audio
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.mixing import MixingConfig
from spear_lib.encoders import load_encoder
from spear_lib.pretraining.data import PretrainingData, PretrainingDataConfig
from spear_lib.teachers.embedding import Piece, not_finite

# ---- samples


def float_file(path, samples) -> Recording:
    soundfile.write(path, np.asarray(samples, dtype=np.float32), 16000, subtype="FLOAT")
    return Recording.from_file(path).to_cut()


@pytest.mark.parametrize("channels", ["mean", "first"])
@pytest.mark.parametrize(
    "sample, kind, words",
    [
        (3e38, OUT_OF_RANGE, "a sample of 3e[+]38, at most 10 may be .*: it is damaged"),
        (-1e20, OUT_OF_RANGE, "a sample of 1e[+]20"),
        (32767.0, OUT_OF_RANGE, "32767.*divide it by 32768"),
        (np.nan, CORRUPT, "not finite"),
        (-np.inf, CORRUPT, "not finite"),
    ],
)
def test_absurd_samples_are_refused_with_the_name(tmp_path, sample, kind, words, channels):
    samples = np.full(1600, 0.1)
    samples[700] = sample
    stereo = np.stack([samples, samples], axis=1)
    for name, content in (("mono", samples), ("stereo", stereo)):
        cut = float_file(tmp_path / f"{name}.wav", content)
        with pytest.raises(AudioError, match=rf"{name}\.wav \(cut .*\) holds .*{words}") as error:
            load_audio(cut, channels=channels)
        assert error.value.kind == kind


def test_two_channels_cannot_hide_each_other(tmp_path):
    loud = np.zeros(1600)
    loud[5] = 1e20
    with pytest.raises(AudioError, match="1e[+]20"):
        load_audio(float_file(tmp_path / "a.wav", np.stack([loud, -loud], axis=1)))


def test_loud_audio_is_audio(tmp_path):
    samples = np.linspace(-9.9, 9.9, 1600)  # a float file 20 dB above full scale: loud, but meant
    assert np.abs(load_audio(float_file(tmp_path / "a.wav", samples))).max() == pytest.approx(9.9)


def test_embeddings_that_are_not_finite_are_told_by_recording():
    good, bad = torch.ones(3, 2), torch.tensor([[1.0, float("inf")]])
    pieces = [Piece(4, 0, good), Piece(7, 0, bad), Piece(7, 1, good), Piece(8, 0, 1e5 * good)]
    assert not_finite(pieces) == {7}
    assert not_finite(pieces, torch.float16) == {7, 8}  # float16 ends at 65504


# ---- labels


@pytest.fixture
def asr(tmp_path):
    return make_asr_cuts(tmp_path, "train", 12, [0, 1])


def with_text(path, number: int, text: str | None) -> str:
    cuts = list(Manifest(path))
    cuts[number].supervisions[0].text = text
    changed = path.with_name("changed.jsonl")
    save_cuts(cuts, changed)
    return str(changed)


def asr_data(path, training=True, **options) -> AsrData:
    config = AsrDataConfig(train_cuts=[str(path)], num_workers=0, batch_seconds=4.0, **options)
    return AsrData(config, training=training, units=character_units())


@pytest.mark.parametrize("text", ["TWO 4", "two", None, "", "RED’S"])
@pytest.mark.parametrize("training", [True, False])
def test_labels_are_looked_at_before_the_first_step(asr, text, training, caplog):
    path = with_text(asr, 7, text)
    with pytest.raises(ValueError, match=r"1 of 12 cuts cannot be used, more than the 0 .*train-007"):
        asr_data(path, training)
    data = asr_data(path, training, max_bad_fraction=0.1)
    assert data.num_cuts == 11 and list(data.problems) == ["train-007"]
    assert "train-007 is skipped" in caplog.text
    assert not any("train-007" in batch.ids for batch in data.epoch_batches(0))


def test_one_file_of_a_validation_set_may_be_gone(asr, caplog):
    (asr.parent / "train-003.wav").unlink()
    data = asr_data(asr, training=False)
    assert "cut train-003 is skipped: " in caplog.text and "train-003.wav does not exist" in caplog.text
    assert data.num_cuts == 11 and sum(len(batch) for batch in data.epoch_batches(0)) == 11
    (asr.parent / "train-004.wav").unlink()
    with pytest.raises(ValueError, match="2 of 12 cuts cannot be used, more than the 1 "):
        asr_data(asr, training=False)
    with pytest.raises(ValueError, match="more than the 0 "):
        asr_data(asr, training=False, max_bad_fraction=0.0)


# ---- an utterance that is not learnt


def test_an_utterance_that_is_dropped_costs_nothing(asr, caplog):
    """It sets neither the prune range nor the width of the lattice, and the others' losses stay."""
    torch.manual_seed(1)
    task = AsrTask(AsrModel(load_encoder(TINY_ENCODER), TransducerConfig(32, 32), 29), character_units())
    task.model.eval()
    seen = []
    original = task.model.losses
    task.model.losses = lambda *a: seen.append(max(map(len, a[2]))) or original(*a)
    batch = next(iter(asr_data(asr, training=False).epoch_batches(0)))
    widest = max(len(text) for text in batch.texts[1:])
    batch.texts[0] = "A"
    one = task.compute(batch)
    batch.texts[0] = " ".join(["RED"] * 500)
    other = task.compute(batch)
    assert float(other.stats["dropped"][0]) == 1 and float(one.stats["dropped"][0]) == 0
    assert seen == [widest, widest] and "prune range raised" not in caplog.text
    assert task.model.losses is not original
    batch.samples_of_each = []  # a batch made by hand: asked of the device
    assert float(task.compute(batch).loss_sum.detach()) == float(other.loss_sum.detach())


def test_which_targets_are_learnt():
    assert learnable_targets([3, 3, 0, 0, 1], [[1] * 3, [1] * 4, [], [5], [2]]) == [
        [1] * 3,
        [1],
        [],
        [5],
        [2],
    ]


# ---- a rank whose cuts are all unusable


@pytest.fixture
def speech(tmp_path):
    cuts = with_tokens(make_cuts(tmp_path / "wav", 8), tmp_path / "tokens")
    save_cuts(cuts, tmp_path / "cuts.jsonl")
    return tmp_path


def ranks_of(folder, count: int, **options) -> list[PretrainingData]:
    config = PretrainingDataConfig(
        train_cuts=[str(folder / "cuts.jsonl")],
        token_fields=[FIELD],
        batch_seconds=6.0,
        num_workers=0,
        mixing=MixingConfig(enabled=False),
        **{"max_bad_fraction": 0.5, **options},
    )
    return [PretrainingData(config, rank=rank, world_size=count) for rank in range(count)]


def test_a_rank_without_a_usable_cut_stays_in_step(speech):
    shares = [list(rank.epoch_batches(0)) for rank in ranks_of(speech, 2)]
    alone = next(
        (rank, batch.ids[0]) for rank, share in enumerate(shares) for batch in share if len(batch) == 1
    )
    (speech / "wav" / f"{alone[1]}.wav").unlink()
    again = [list(rank.epoch_batches(0)) for rank in ranks_of(speech, 2)]
    assert [len(share) for share in again] == [len(share) for share in shares]
    idle = [batch for batch in again[alone[0]] if not batch.counts]
    assert len(idle) == 1 and len(idle[0]) == 1
    other = again[1 - alone[0]][idle[0].index]
    assert idle[0].ids[0] in other.ids and alone[1] in idle[0].problems
    learnt = [name for share in again for batch in share if batch.counts for name in batch.ids]
    assert sorted(learnt) == sorted(cut.id for cut in Manifest(speech / "cuts.jsonl") if cut.id != alone[1])


def test_a_global_batch_without_a_usable_cut_is_empty_on_every_rank(speech):
    gone = [name for share in ranks_of(speech, 1) for name in next(share.epoch_batches(0)).ids]
    for name in gone:
        (speech / "wav" / f"{name}.wav").unlink()
    for share in ranks_of(speech, 2, max_bad_fraction=0.9):
        batches = list(share.epoch_batches(0))
        assert len(batches[0]) == 0 and all(len(batch) for batch in batches[1:])


def test_batches_of_good_data_count(speech):
    assert all(batch.counts for batch in ranks_of(speech, 1)[0].epoch_batches(0))
    assert dataclasses.replace(next(ranks_of(speech, 1)[0].epoch_batches(0))).samples_of_each
