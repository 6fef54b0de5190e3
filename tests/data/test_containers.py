"""Files that hold less, or more, than their own headers say: libsndfile reads them as whole."""

import struct

import numpy as np
import pytest
import soundfile
from lhotse import Recording, SupervisionSegment

from spear_lib.asr.data import AsrData, AsrDataConfig
from spear_lib.corpora.validation import validate_cuts
from spear_lib.data.audio import TRUNCATED
from spear_lib.data.audio_batches import load_waveforms
from spear_lib.data.audio_files import open_audio
from spear_lib.data.containers import cut_short
from spear_lib.data.decoding import decode
from spear_lib.data.manifests import Manifest, save_cuts

RATE = 16000
NOISE = (0.1 * np.random.default_rng(0).standard_normal(10 * RATE)).astype(np.float32)
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "rf64": ("RF64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "sph": ("NIST", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def write(folder, ending: str, samples=NOISE, name: str = "a"):
    path = folder / f"{name}.{ending}"
    kind, subtype = FORMATS[ending]
    soundfile.write(path, samples, RATE, format=kind, subtype=subtype)
    return path


@pytest.mark.parametrize("ending", FORMATS)
def test_whole_files_are_whole(tmp_path, ending):
    assert cut_short(write(tmp_path, ending)) == ""
    assert cut_short(write(tmp_path, ending, NOISE[:1001], "odd")) == ""
    assert cut_short(write(tmp_path, ending, np.stack([NOISE, NOISE], 1), "stereo")) == ""


# A FLAC that ends early cannot be decoded, which stage 1 finds by itself.
@pytest.mark.parametrize("ending", [ending for ending in FORMATS if ending != "flac"])
def test_a_file_that_ends_early_is_found(tmp_path, ending):
    path = write(tmp_path, ending)
    content = path.read_bytes()
    for share in (0.4, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        assert "cut short" in cut_short(path), share
    assert cut_short(path).startswith("its ")


@pytest.mark.parametrize("ending", FORMATS)
def test_audio_behind_the_end_of_the_stream_is_found(tmp_path, ending):
    path, other = write(tmp_path, ending, NOISE[: 4 * RATE]), write(tmp_path, ending, name="b")
    path.write_bytes(path.read_bytes() + other.read_bytes())
    assert soundfile.info(path).duration < 14 if ending in ("flac", "ogg") else True
    assert "follow" in cut_short(path) or "another stream begins" in cut_short(path)


def test_sizes_that_are_not_known_and_other_chunks_are_fine(tmp_path):
    path = write(tmp_path, "wav")
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    for unknown in (0xFFFFFFFF, 0x7FFFF000, 0):  # what ffmpeg, sox and interrupted recorders leave
        content[at : at + 4] = struct.pack("<I", unknown)
        path.write_bytes(content)
        assert cut_short(path) == ""
    path = write(tmp_path, "wav", name="tagged")
    path.write_bytes(path.read_bytes() + b"LIST" + struct.pack("<I", 9000) + b"INFO" + bytes(8996))
    assert cut_short(path) == ""
    path.write_bytes(path.read_bytes() + bytes(512))  # padding
    assert cut_short(path) == ""
    mp3 = write(tmp_path, "mp3", name="tagged")
    mp3.write_bytes(mp3.read_bytes() + b"TAG" + bytes(125))
    assert cut_short(mp3) == ""
    (tmp_path / "text.wav").write_text("no audio " * 50)
    assert cut_short(tmp_path / "text.wav") == "" and cut_short(tmp_path / "gone.wav") == ""


def test_every_reader_says_so(tmp_path, caplog):
    """Stage 1 and training count it, stage 5 skips it, decode, transcribe and tag warn and go on."""
    cuts = []
    for number in range(3):
        path = write(tmp_path, "wav", np.roll(NOISE, number), name=f"cut{number}")
        if number == 1:
            path.write_bytes(path.read_bytes()[:120000])
        cut = Recording.from_file(path, recording_id=f"cut{number}").to_cut().with_id(f"cut{number}")
        cut.supervisions = [SupervisionSegment(cut.id, cut.id, 0.0, cut.duration, text="A LONG TRANSCRIPT")]
        cuts.append(cut)
    assert cuts[1].duration == pytest.approx(3.75, abs=0.01)  # nothing else tells
    kept, problems = validate_cuts(cuts, 0.5)
    assert [cut.id for cut in kept] == ["cut0", "cut2"] and problems.names(TRUNCATED) == ["cut1"]
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    decoded = decode(Manifest(tmp_path / "cuts.jsonl.gz"), range(3))
    kind, message = decoded.errors[1]
    assert kind == TRUNCATED and sorted(decoded.audio) == [0, 2]
    assert "header promises 320044 bytes and it holds 120000: it was cut short" in message
    config = AsrDataConfig(train_cuts=[str(tmp_path / "cuts.jsonl.gz")], num_workers=0, max_bad_fraction=0.5)
    (batch,) = AsrData(config, training=False).epoch_batches(0)
    assert sorted(batch.ids) == ["cut0", "cut2"] and "it was cut short" in batch.problems["cut1"]
    waveforms, lengths = load_waveforms(Manifest(tmp_path / "cuts.jsonl.gz"), [0, 1])
    assert len(lengths) == 2 and "it was cut short: copy, download or make it again. What" in caplog.text
    assert open_audio(tmp_path / "cut1.wav").duration == pytest.approx(3.75, abs=0.01)
    assert "cut1.wav: its header promises" in caplog.text and "what can be read is used" in caplog.text
