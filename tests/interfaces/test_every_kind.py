"""Every kind of encoder in the registry stands behind the one geometry, and trains without steps."""

import pytest
import torch

from spear_lib import load_encoder
from spear_lib.encoders.kinds import KINDS
from spear_lib.interfaces import AlignedEncoder

SAMPLES = [16000, 9001]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_encoder_gives_aligned_frames(kind):
    torch.manual_seed(0)
    encoder = load_encoder(KINDS[kind].config.mini())
    waveforms = torch.randn(2, SAMPLES[0]) * 0.1
    hidden = encoder.extract(waveforms, torch.tensor(SAMPLES)).hidden_states
    assert len(encoder.hidden_dims) == len(encoder.hidden_frame_rates) == len(hidden)
    for layers in ("output", "all", "concat"):
        output = AlignedEncoder(encoder, layers=layers)(waveforms, torch.tensor(SAMPLES))
        hop = 16000 // int(50 if layers != "output" else encoder.frame_rate)
        assert output.lengths.tolist() == [-(-count // hop) for count in SAMPLES]
        assert all(state.shape[:2] == (2, output.lengths[0]) for state in output.states)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_encoder_trains_without_steps(kind):
    encoder = load_encoder(KINDS[kind].config.mini())
    audio, length = torch.randn(1, 16000) * 0.1, torch.tensor([16000])
    with torch.no_grad():
        wanted = encoder.eval().extract(audio, length).encoder_out
    found = encoder.train().extract(audio, length).encoder_out
    assert torch.allclose(found, wanted, atol=1e-6) and found.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_encoder_says_what_to_do_with_other_shapes(kind):
    encoder = load_encoder(KINDS[kind].config.mini())
    with pytest.raises(ValueError, match=r"of \(B, 1, N\) take waveforms.squeeze\(1\)"):
        encoder.extract(torch.zeros(1, 1, 16000), torch.tensor([16000]))
