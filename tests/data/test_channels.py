"""One reading of recordings with several channels, from stage 1 to training: the mean of all of them."""

import numpy as np
import pytest
import soundfile
from lhotse import Recording, SupervisionSegment
from lhotse.cut import MonoCut, MultiCut

from spear_lib.corpora.validation import validate_cuts
from spear_lib.data.audio import cut_of, load_audio, to_mono
from spear_lib.data.audio_files import open_audio
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.pretraining.data import PretrainingData, PretrainingDataConfig
from spear_lib.tokens.fields import TokenFacts, attach_tokens, load_tokens, write_store, write_store_facts
from spear_lib.tokens.shar import export_shar

RATE = 16000
FIELD = "toy_cb2"


def noise(seed: int, seconds: float = 1.0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


LEFT, RIGHT = noise(0), noise(1)
# (channels, what is read, what is said of it)
CASES = {
    "two voices": ([LEFT, RIGHT], (LEFT + RIGHT) / 2, []),
    "left is silent": ([0 * LEFT, RIGHT], RIGHT / 2, ["with a silent channel"]),
    "both are silent": ([0 * LEFT, 0 * LEFT], 0 * LEFT, []),
    "polarity turned": ([LEFT, -LEFT], LEFT, ["channels that cancel: the loudest taken"]),
    "nearly turned": ([0.95 * LEFT, -LEFT], -LEFT, ["channels that cancel: the loudest taken"]),
    "turned and quieter": ([LEFT, -0.5 * LEFT], LEFT / 4, []),
    "four": ([LEFT, RIGHT, -LEFT, -RIGHT], LEFT, ["channels that cancel: the loudest taken"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_mean_and_where_it_is_not_taken(case):
    channels, expected, said = CASES[case]
    mono, notes = to_mono(np.stack(channels))
    if case == "four":  # two pairs: any of its loudest
        assert any(np.array_equal(mono, channel) for channel in channels)
    else:
        np.testing.assert_allclose(mono, expected, atol=1e-6)
    assert notes == ["made mono", *said]
    first, notes = to_mono(np.stack(channels), "first")
    assert np.array_equal(first, channels[0]) and notes == ["made mono"]


def write(folder, name: str, channels: list[np.ndarray]):
    path = folder / f"{name}.wav"
    soundfile.write(path, np.stack(channels, 1), RATE, subtype="FLOAT")
    return path


def labelled(folder, name: str, channels: list[np.ndarray]):
    recording = Recording.from_file(write(folder, name, channels), recording_id=name)
    segment = SupervisionSegment(name, name, 0.0, recording.duration, text="A WORD")
    return cut_of(recording, supervision=segment)


def test_a_cut_holds_all_channels_and_survives_a_manifest(tmp_path):
    mono, stereo = labelled(tmp_path, "mono", [LEFT]), labelled(tmp_path, "stereo", [0 * RIGHT, RIGHT])
    assert isinstance(mono, MonoCut) and mono.channel == 0
    assert isinstance(stereo, MultiCut) and stereo.channel == [0, 1]
    save_cuts([mono, stereo], tmp_path / "cuts.jsonl.gz")
    again = Manifest(tmp_path / "cuts.jsonl.gz")
    assert again[1].channel == [0, 1] and again[1].supervisions[0].text == "A WORD"
    # As stage 1 reads it, and as transcribe and tag read the file.
    np.testing.assert_allclose(load_audio(again[1]), RIGHT / 2, atol=1e-6)
    assert np.array_equal(load_audio(again[1]), load_audio(open_audio(tmp_path / "stereo.wav")))
    part = cut_of(again[1].recording, "part", 0.25, 0.5)
    np.testing.assert_allclose(load_audio(part), RIGHT[4000:12000] / 2, atol=1e-6)


def test_stage_1_notes_channels_and_counts_silence(tmp_path):
    channels = {
        "good": [LEFT],
        "right": [0 * RIGHT, RIGHT],
        "turned": [LEFT, -LEFT],
        "silent": [0 * LEFT],
        "silent2": [0 * LEFT, 0 * LEFT],
    }
    cuts = [labelled(tmp_path, name, each) for name, each in channels.items()]
    kept, problems = validate_cuts(cuts, 0.5)
    assert [cut.id for cut in kept] == ["good", "right", "turned"]
    assert problems.names("silent") == ["silent", "silent2"]
    assert problems.notes == {
        "mean of 2 channels": 2,
        "with a silent channel": 1,
        "channels that cancel: the loudest taken": 1,
    }
    with pytest.raises(ValueError, match=r"limit is 1 %: 2 silent \(silent, silent2\)"):
        validate_cuts(cuts)
    # Noise and clips may be silent; it is noted.
    kept, problems = validate_cuts(cuts, 0.0, need_text=False)
    assert len(kept) == 5 and problems.notes["silent"] == 2


@pytest.mark.parametrize("channels, expected", [("mean", RIGHT / 2), ("first", 0 * RIGHT)])
def test_pre_training_reads_the_audio_that_its_tokens_were_made_of(tmp_path, channels, expected):
    cuts = [labelled(tmp_path, f"c{n}", [0 * RIGHT, np.roll(RIGHT, n)]) for n in range(2)]
    facts = TokenFacts(FIELD, "toy", "q", 50.0, 12.5, 2, 16, "cuts", channels=channels)
    codes = [np.full((50, 2), n, dtype=np.uint8) for n in range(2)]
    write_store(tmp_path / "store", facts, cuts, codes)
    write_store_facts(tmp_path / "store", facts, {})
    attached = list(attach_tokens(cuts, tmp_path / "store"))
    save_cuts(attached, tmp_path / "cuts.jsonl.gz")
    assert [load_tokens(cut, FIELD)[0, 0] for cut in attached] == [0, 1]
    export_shar(attached, tmp_path / "shar", [FIELD], "flac")
    for manifest in ("cuts.jsonl.gz", "shar"):
        config = PretrainingDataConfig(
            train_cuts=[str(tmp_path / manifest)], token_fields=[FIELD], num_workers=0
        )
        data = PretrainingData(config, training=False)
        (batch,) = data.epoch_batches(0)
        row = batch.ids.index("c0")
        np.testing.assert_allclose(batch.waveforms[row].numpy(), expected, atol=1e-4, err_msg=manifest)
