"""The kaldifeat backend: what it asks of kaldifeat, and what it refuses in one clear line.

kaldifeat is not installed where these tests run (tools/install_kaldifeat.sh builds it). A stand-in module
(lhotse's fbank behind kaldifeat's names) shows that options, batches, padding and short utterances are
handled. kaldifeat's own numbers are golden: our own backend is compared with them here, and the last test
compares the real package, through the backend, wherever it is installed.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from lhotse import Fbank, FbankConfig
from safetensors.torch import load_file

from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.features.backends import create_fbank
from spear_lib.features.fbank import FbankExtractor

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def waveform():
    return load_file(GOLDEN / "fbank.safetensors")["wave_int16"].float() / 32768


@pytest.fixture
def stand_in(monkeypatch):
    """A module with kaldifeat's interface; returns the options that it was given."""
    given = []

    class Options:
        def __init__(self):
            self.device, self.frame_opts, self.mel_opts = None, SimpleNamespace(), SimpleNamespace()

    class Extractor:
        def __init__(self, options):
            given.append(options)
            self.fbank = Fbank(FbankConfig(num_mel_bins=options.mel_opts.num_bins))

        def __call__(self, signals):
            assert all(signal.dim() == 1 and len(signal) >= 80 for signal in signals)
            return [self.fbank.extract(signal.unsqueeze(0), 16000) for signal in signals]

    module = ModuleType("kaldifeat")
    module.FbankOptions, module.Fbank = Options, Extractor
    monkeypatch.setitem(sys.modules, "kaldifeat", module)
    return given


def test_options_batches_and_padding(stand_in, waveform):
    lengths = torch.tensor([8000, 32000, 79, 1234])
    batch = torch.full((4, 32000), 0.3)  # what lies behind the ends must not matter
    for row, length in enumerate(lengths.tolist()):
        batch[row, :length] = waveform[:length]
    fbank, frames = create_fbank(80, "kaldifeat")(batch, lengths)
    expected, expected_frames = FbankExtractor(80)(batch, lengths)
    assert frames.tolist() == expected_frames.tolist() == [50, 200, 0, 8]
    torch.testing.assert_close(fbank, expected, atol=2e-3, rtol=0)
    (options,) = stand_in
    assert vars(options.frame_opts) == {"samp_freq": 16000, "dither": 0.0, "snip_edges": False}
    assert vars(options.mel_opts) == {"num_bins": 80, "low_freq": 20.0, "high_freq": -400.0}
    with pytest.raises(ValueError, match="fbank wants float waveforms"):
        create_fbank(80, "kaldifeat")(torch.zeros(1, 400, dtype=torch.int16), torch.tensor([400]))


def test_128_bins_are_refused():
    with pytest.raises(
        ValueError, match=r"refuses num_mel_bins = 128: mel bin \d+ is narrower .* Use fbank_backend torch"
    ):
        create_fbank(128, "kaldifeat")


def test_without_kaldifeat_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "kaldifeat", None)
    with pytest.raises(
        ValueError, match=r"needs the package kaldifeat .*install_kaldifeat.sh .*or use fbank_backend"
    ):
        create_fbank(80, "kaldifeat")
    with pytest.raises(ValueError, match="fbank_backend is 'kaldi'; use torch or kaldifeat"):
        create_fbank(80, "kaldi")


def test_encoder_uses_the_chosen_backend(stand_in, waveform):
    config = ZipformerConfig(
        num_mel_bins=80,
        frontend_channels=(2, 4, 4),
        downsampling_factor=(1,),
        num_encoder_layers=(1,),
        encoder_dim=(24,),
        feedforward_dim=(32,),
        encoder_unmasked_dim=(16,),
        num_heads=(2,),
        query_head_dim=(8,),
        value_head_dim=(6,),
        pos_dim=8,
        cnn_module_kernel=(7,),
    )
    encoder = SpearEncoder(config).eval()
    batch = waveform[None, :8000], torch.tensor([8000])
    with torch.no_grad():
        expected = encoder.extract(*batch).encoder_out
        encoder.use_fbank_backend("kaldifeat")
        torch.testing.assert_close(encoder.extract(*batch).encoder_out, expected, atol=1e-2, rtol=0)
    assert len(stand_in) == 1
    with pytest.raises(ValueError, match="refuses num_mel_bins = 128"):
        SpearEncoder(ZipformerConfig(**{**vars(config), "num_mel_bins": 128})).use_fbank_backend("kaldifeat")


def test_our_backend_gives_the_numbers_of_kaldifeat(waveform):
    golden = load_file(GOLDEN / "kaldifeat.safetensors")["fbank80"]
    fbank, _ = create_fbank(80, "torch")(waveform.unsqueeze(0), torch.tensor([32000]))
    torch.testing.assert_close(fbank[0], golden, atol=1e-3, rtol=0)


@pytest.mark.skipif(find_spec("kaldifeat") is None, reason="kaldifeat is optional and not installed")
def test_kaldifeat_itself_through_the_backend(waveform):
    fbank, _ = create_fbank(80, "kaldifeat")(waveform.unsqueeze(0), torch.tensor([32000]))
    lhotse = load_file(GOLDEN / "fbank.safetensors")["fbank80_first50"]
    torch.testing.assert_close(fbank[0, :50], lhotse, atol=5e-3, rtol=0)
    own = load_file(GOLDEN / "kaldifeat.safetensors")["fbank80"]
    torch.testing.assert_close(fbank[0], own, atol=1e-5, rtol=0)
