"""Audio of cuts: rate, channels, and what is said about files that cannot be read."""

import array
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from lhotse import Recording
from lhotse.cut import MonoCut

from spear_lib.data import audio
from spear_lib.data.audio import CORRUPT, EMPTY, MISSING, AudioError, AudioProblems, load_audio, source_of


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def cut_of(path, name="a") -> MonoCut:
    cut = Recording.from_file(path, recording_id=name).to_cut()
    cut.id = name
    return cut


def test_16_khz_is_returned_as_it_is_on_disk(tmp_path):
    samples = np.round(tone(0.5, 16000) * 32767).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", samples, 16000)
    problems = AudioProblems()
    loaded = load_audio(cut_of(tmp_path / "a.flac"), problems=problems)
    assert loaded.dtype == np.float32 and loaded.shape == (8000,)
    np.testing.assert_array_equal(np.round(loaded * 32768), samples)
    assert problems.notes == {}


def test_part_of_a_recording(tmp_path):
    ramp = np.linspace(-0.5, 0.5, 32000)
    soundfile.write(tmp_path / "a.wav", ramp, 16000, subtype="FLOAT")
    part = cut_of(tmp_path / "a.wav").truncate(offset=0.5, duration=0.25)
    np.testing.assert_allclose(load_audio(part), ramp[8000:12000], atol=1e-6)


def test_8_khz_is_resampled_and_counted(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0, 8000), 8000)
    problems = AudioProblems()
    loaded = load_audio(cut_of(tmp_path / "a.wav"), problems=problems)
    assert loaded.shape == (16000,)
    assert problems.notes == {"resampled": 1}
    # The tone is still at 440 Hz, and nothing of note is above the old Nyquist frequency.
    spectrum = np.abs(np.fft.rfft(loaded * np.hanning(16000)))
    assert np.argmax(spectrum) == 440
    assert spectrum[4100:].max() < 1e-2 * spectrum.max()
    np.testing.assert_allclose(loaded[2000:14000], tone(1.0, 16000)[2000:14000], atol=0.02)


def test_stereo_becomes_mono(tmp_path):
    stereo = np.stack([tone(0.2, 16000), np.zeros(3200)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 16000)
    both = cut_of(tmp_path / "a.wav")  # a MultiCut
    np.testing.assert_allclose(load_audio(both), stereo.mean(axis=1), atol=1e-4)


def test_missing_file_is_named(tmp_path):
    soundfile.write(tmp_path / "gone.wav", tone(0.2, 16000), 16000)
    cut = cut_of(tmp_path / "gone.wav", "utterance-7")
    (tmp_path / "gone.wav").unlink()
    with pytest.raises(AudioError, match=r"gone\.wav \(cut utterance-7\) does not exist.*moved") as error:
        load_audio(cut)
    assert error.value.kind == MISSING


def test_corrupt_flac_is_named(tmp_path):
    path = tmp_path / "broken.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    cut = cut_of(path)
    path.write_bytes(path.read_bytes()[:4000])  # the header stays whole
    with pytest.raises(AudioError, match=r"broken\.flac \(cut a\) cannot be read") as error:
        load_audio(cut)
    assert error.value.kind == CORRUPT


def test_zero_length_file_is_named(tmp_path):
    path = tmp_path / "empty.wav"
    soundfile.write(path, tone(0.2, 16000), 16000)
    cut = cut_of(path)
    path.write_bytes(b"")
    with pytest.raises(AudioError, match=r"empty\.wav \(cut a\) is an empty file") as error:
        load_audio(cut)
    assert error.value.kind == EMPTY


def test_samples_that_are_not_finite_are_refused(tmp_path):
    samples = tone(0.2, 16000).astype(np.float32)
    samples[100] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match="not finite"):
        load_audio(cut_of(tmp_path / "nan.wav"))


@pytest.mark.parametrize("rate", [999, 768_001, 8_333_073])
def test_a_rate_that_no_recording_has_is_refused(tmp_path, rate):
    """A header's damaged byte: lhotse's resampling of 8.3 MHz takes 40 s and 8 GB for a second."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(rate // 10, np.float32), rate)
    with pytest.raises(
        AudioError, match=rf"a.wav .*{rate} samples per second, recordings have 1000 to 768000"
    ):
        load_audio(Recording.from_file(path).to_cut())


def test_cut_without_recording():
    cut = MonoCut(id="bare", start=0, duration=1, channel=0)
    with pytest.raises(AudioError, match="cut bare has no recording"):
        load_audio(cut)
    assert source_of(cut) == "cut bare"


def test_problems_allow_up_to_the_limit_and_then_name_culprits():
    problems = AudioProblems(max_bad_fraction=0.1)
    problems.good(90)
    for number in range(10):
        problems.bad(CORRUPT, f"file-{number}")
    problems.check()
    problems.bad(MISSING, "file-x")
    with pytest.raises(ValueError) as error:
        problems.check()
    message = str(error.value)
    assert "11 of 101 recordings cannot be used, the limit is 10 %" in message
    assert "10 corrupt audio (file-0, file-1, file-2, file-3, file-4 and 5 more)" in message
    assert "1 missing audio (file-x)" in message and "raise max_bad_fraction" in message


def test_problems_stop_a_long_stream_early():
    problems = AudioProblems(max_bad_fraction=0.01)
    problems.good(300)
    with pytest.raises(ValueError, match="4 of 304"):
        for number in range(1000):
            problems.bad(CORRUPT, str(number))


def test_limit_must_be_a_fraction():
    with pytest.raises(ValueError, match="max_bad_fraction is 5"):
        AudioProblems(max_bad_fraction=5)


def test_file_shorter_than_its_manifest_is_not_padded(tmp_path):
    path = tmp_path / "short.wav"
    soundfile.write(path, tone(0.5, 16000), 16000)
    cut = cut_of(path)
    soundfile.write(path, tone(0.4, 16000), 16000)
    with pytest.raises(AudioError, match=r"short\.wav \(cut a\) cannot be read"):
        load_audio(cut)


class _Decoder:
    """Stands for miniaudio: "decodes" with libsndfile, and fails as it is told."""

    class MiniaudioError(Exception):
        pass

    def __init__(self, drop=0, error=None):
        self.drop, self.error, self.asked = drop, error, []

    def flac_read_file_f32(self, path):
        self.asked.append(path)
        if self.error:
            raise self.error
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        samples = samples[: len(samples) - self.drop]
        whole = array.array("f", samples.flatten().tolist())
        return SimpleNamespace(
            samples=whole, sample_rate=rate, num_frames=len(samples), nchannels=samples.shape[1]
        )


def _with_decoder(monkeypatch, decoder):
    monkeypatch.setattr(audio, "_fast_flac", lambda: decoder)
    return decoder


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_whole_flac_files_go_to_the_faster_decoder_and_give_the_same_samples(tmp_path, monkeypatch, subtype):
    path, noise = tmp_path / "a.flac", 0.1 * np.random.default_rng(0).standard_normal(16000)
    soundfile.write(path, noise, 16000, subtype=subtype)
    cut = Recording.from_file(path).to_cut()
    monkeypatch.setattr(audio, "_fast_flac", lambda: None)
    expected = load_audio(cut)
    decoder = _with_decoder(monkeypatch, _Decoder())
    assert np.array_equal(load_audio(cut), expected) and decoder.asked == [str(path)]
    part = cut.truncate(offset=0.25, duration=0.5)
    assert np.array_equal(load_audio(part), expected[4000:12000]) and len(decoder.asked) == 1
    real = pytest.importorskip("miniaudio", reason="optional: pip install miniaudio")
    _with_decoder(monkeypatch, real)
    assert np.array_equal(load_audio(cut), expected)


@pytest.mark.parametrize(
    "decoder", [_Decoder(drop=1), _Decoder(error=_Decoder.MiniaudioError("no")), _Decoder(error=OSError(2))]
)
def test_what_the_faster_decoder_cannot_do_goes_the_usual_way(tmp_path, monkeypatch, decoder):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.full(16000, 0.25), 16000)
    _with_decoder(monkeypatch, decoder)
    assert np.array_equal(load_audio(Recording.from_file(path).to_cut()), np.full(16000, 0.25))
    assert decoder.asked


def test_a_corrupt_flac_is_named_with_the_faster_decoder_too(tmp_path, monkeypatch):
    path = tmp_path / "a.flac"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    cut = Recording.from_file(path).to_cut()
    path.write_bytes(path.read_bytes()[:5000])
    _with_decoder(monkeypatch, _Decoder(error=_Decoder.MiniaudioError("no")))
    with pytest.raises(AudioError) as error:
        load_audio(cut)
    assert error.value.kind == CORRUPT and "a.flac" in str(error.value)


def test_files_of_other_kinds_do_not_go_there(tmp_path, monkeypatch):
    decoder = _with_decoder(monkeypatch, _Decoder())
    soundfile.write(tmp_path / "a.wav", np.full(16000, 0.25), 16000)
    soundfile.write(tmp_path / "b.flac", np.full((16000, 2), 0.25), 16000)
    for name in ("a.wav", "b.flac"):
        load_audio(audio.cut_of(Recording.from_file(tmp_path / name)))
    assert decoder.asked == []
