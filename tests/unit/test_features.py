"""Fbank: golden values, lhotse as a witness at all lengths, independence of the batch."""

import json
from pathlib import Path

import pytest
import torch
from lhotse import Fbank, FbankConfig
from safetensors.torch import load_file

from spear_lib.features.fbank import PAD_VALUE, FbankExtractor, fbank_length

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "fbank.safetensors")


@pytest.fixture(scope="module")
def waveform(golden):
    return golden["wave_int16"].float() / 32768


def test_golden_fbank(golden, waveform):
    fbank, lengths = FbankExtractor()(waveform.unsqueeze(0), torch.tensor([32000]))
    difference = (fbank[0] - golden["fbank"]).abs()
    assert lengths.tolist() == [200]
    assert difference.max() < 5e-3
    assert difference[golden["fbank"] > -10].max() < 1e-3
    assert difference.mean() < 1e-4


def test_golden_mel_filters_and_80_bins(golden, waveform):
    torch.testing.assert_close(FbankExtractor().mel_filters, golden["mel_filters"], atol=1e-6, rtol=0)
    fbank, _ = FbankExtractor(num_mel_bins=80)(waveform.unsqueeze(0), torch.tensor([32000]))
    torch.testing.assert_close(fbank[0, :50], golden["fbank80_first50"], atol=5e-3, rtol=0)


def test_golden_frame_counts():
    rows = json.loads((GOLDEN / "frame_geometry.json").read_text())["rows"]
    counted = [row for row in rows if row["fbank_frames"] is not None]
    assert len(counted) > 10
    for row in counted:
        assert fbank_length(row["num_samples"]) == row["fbank_frames"], row


@pytest.mark.parametrize(
    "num_samples", [200, 201, 239, 240, 399, 400, 1360, 1439, 1440, 1441, 15999, 16079, 16080]
)
def test_short_utterance_in_a_long_batch_equals_lhotse_alone(waveform, num_samples):
    expected = Fbank(FbankConfig(num_mel_bins=128)).extract(waveform[:num_samples].unsqueeze(0), 16000)
    batch = torch.full((2, 20000), 0.7)  # what lies behind the end must not matter
    batch[0, :num_samples] = waveform[:num_samples]
    batch[1] = waveform[:20000]
    fbank, lengths = FbankExtractor()(batch, torch.tensor([num_samples, 20000]))
    assert lengths.tolist() == [len(expected), 125]
    torch.testing.assert_close(fbank[0, : lengths[0]], expected, atol=2e-3, rtol=0)
    assert torch.all(fbank[0, lengths[0] :] == PAD_VALUE)
    assert pytest.approx(-23.0259, abs=1e-4) == PAD_VALUE


@pytest.mark.parametrize("num_samples", [0, 1, 79, 80, 100, 119, 120, 199, 239, 240])
def test_every_length_gives_the_promised_number_of_frames(waveform, num_samples):
    padded = torch.cat((waveform[:num_samples], torch.ones(3)))
    fbank, lengths = FbankExtractor()(padded.unsqueeze(0), torch.tensor([num_samples]))
    assert lengths.tolist() == [(num_samples + 80) // 160]
    assert torch.isfinite(fbank).all()
    alone, _ = FbankExtractor()(waveform[None, :num_samples], torch.tensor([num_samples]))
    torch.testing.assert_close(fbank[:, : lengths[0]], alone, atol=1e-5, rtol=0)


def test_digital_silence():
    fbank, _ = FbankExtractor()(torch.zeros(1, 1600), torch.tensor([1600]))
    torch.testing.assert_close(fbank, torch.full((1, 10, 128), -15.9424), atol=1e-4, rtol=0)


def test_nothing_to_save_and_float32_under_autocast(waveform):
    extractor = FbankExtractor().to(torch.bfloat16)
    assert not extractor.state_dict()
    expected, _ = FbankExtractor()(waveform[None, :4000], torch.tensor([4000]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fbank, _ = extractor(waveform[None, :4000], torch.tensor([4000]))
    assert fbank.dtype == torch.float32
    assert torch.equal(fbank, expected)


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"shape \(B, N\).*torch.int16.*divide"):
        FbankExtractor()(torch.zeros(1, 400, dtype=torch.int16), torch.tensor([400]))
    with pytest.raises(ValueError, match="one length in samples per waveform"):
        FbankExtractor()(torch.zeros(2, 400), torch.tensor([400]))
    with pytest.raises(ValueError, match=r"\[500, 500\], but the waveforms have 400 samples"):
        FbankExtractor()(torch.zeros(1, 400), torch.tensor([500]))
