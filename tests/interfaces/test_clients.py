"""s3prl, HEAR and X-ARES: what their checkers and featurizers ask for, re-implemented (spec evaluation)."""

import math

import pytest
import torch
import transformers
from teacher_fixtures import tiny_checkpoint
from zipformer_fixtures import TINY

from spear_lib.encoders import load_encoder, save_encoder
from spear_lib.encoders.zipformer import ZipformerConfig
from spear_lib.interfaces import AlignedEncoder, load_upstream, upstream_id
from spear_lib.interfaces.hear import get_scene_embeddings, get_timestamp_embeddings, load_model
from spear_lib.interfaces.s3prl_upstream import UpstreamExpert, spear_local
from spear_lib.interfaces.xares_encoder import encoder_class


@pytest.fixture(scope="module", params=[1, 2], ids=["50 Hz", "25 Hz"])
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    encoder = load_encoder(ZipformerConfig(**TINY, output_downsampling_factor=request.param))
    path = tmp_path_factory.mktemp("encoder")
    save_encoder(encoder, path, {})
    return path


def test_s3prl(folder):
    """Both featurizers: the old one keeps round(n / 320) frames and allows 5 too few, the new one wants
    ceil(longest / 320); both train with what .train() leaves."""
    expert = spear_local(str(folder), model_config=None, refresh=False, name="spear_local")
    assert isinstance(expert.train(), UpstreamExpert) and expert.get_downsample_rates("hidden_states") == 320
    sizes = [1, 800, 1359, 2880, 16000, 50017]
    wavs = [0.1 * torch.randn(size) for size in sizes]
    first, second = expert(wavs), expert(wavs)
    states = first["hidden_states"]
    assert len({state.shape for state in states}) == 1
    assert states[0].shape[:2] == (len(sizes), math.ceil(max(sizes) / 320))
    assert abs(states[0].shape[1] - round(max(sizes) / 320)) < 5
    assert torch.equal(first["last_hidden_state"], states[-1])
    for one, two in zip(states, second["hidden_states"]):
        assert torch.equal(one, two)
    for row, (size, wav) in enumerate(zip(sizes, wavs)):
        alone = expert([wav])["hidden_states"]
        count = math.ceil(size / 320)
        assert alone[0].shape[1] == count
        for state, single in zip(states, alone):
            assert torch.allclose(state[row, :count], single[0], atol=1e-4)
    states[-1].sum().backward()
    assert any(p.grad is not None for p in expert.model.encoder.parameters())


def test_registering_without_s3prl_says_what_to_do(monkeypatch):
    import sys

    from spear_lib.interfaces import s3prl_upstream

    monkeypatch.setitem(sys.modules, "s3prl", None)
    with pytest.raises(RuntimeError, match=r"tools/clients\.sh"):
        s3prl_upstream.register()


@pytest.mark.parametrize("layers", ["output", "concat", 0])
def test_hear(folder, layers):
    """The checks of hearvalidator."""
    model = load_model(str(folder), layers=layers)
    assert isinstance(model, torch.nn.Module) and model.sample_rate == 16000
    for size in (model.scene_embedding_size, model.timestamp_embedding_size):
        assert type(size) is int
    for seconds, sounds in ((1.07, 2), (1.98, 2), (4.0, 2), (2.74, 4)):
        audio = torch.rand(sounds, int(seconds * 16000)) * 2 - 1
        embeddings, times = get_timestamp_embeddings(audio, model)
        assert embeddings.dtype == times.dtype == torch.float32
        assert embeddings.shape == (sounds, times.shape[1], model.timestamp_embedding_size)
        assert times.shape[0] == sounds and torch.isfinite(embeddings).all()
        gaps = times.diff(dim=1)
        assert (gaps - gaps.mean()).abs().max() <= 1 and gaps.mean() <= 50
        assert times.max() <= 1000 * seconds and times[0, 0] <= gaps.mean()
        assert times.max() >= 1000 * seconds - gaps.mean() and times.max() >= 1000 * seconds - 50
        assert times.shape[1] == math.floor((1000 * seconds - times[0, 0]) / gaps.mean() + 1e-4) + 1
        scene = get_scene_embeddings(audio, model)
        assert scene.dtype == torch.float32 and scene.shape == (sounds, model.scene_embedding_size)
        assert not scene.requires_grad and not embeddings.requires_grad


def test_hear_without_a_path(folder, monkeypatch):
    monkeypatch.delenv("SPEAR_ENCODER", raising=False)
    with pytest.raises(ValueError, match="SPEAR_ENCODER"):
        load_model()
    monkeypatch.setenv("SPEAR_ENCODER", str(folder))
    assert load_model().timestamp_embedding_size == 32
    with pytest.raises(ValueError, match="one embedding"):
        load_model(layers="all")
    assert get_timestamp_embeddings(torch.zeros(1, 1), load_model())[0].shape[1] == 1


def test_xares(folder):
    """The checker's batch, and a name of its own for every encoder and layer."""
    cls = encoder_class(folder)
    encoder = cls()
    output = encoder(torch.randn(2, 50000))
    hop = encoder.hop_size_in_ms
    assert output.shape == (2, math.ceil(3125 / hop), encoder.output_dim) and type(hop) is int
    assert encoder.sampling_rate == 16000 and output.dtype == torch.float32 and not output.requires_grad
    assert encoder(torch.randn(7000)).shape[0] == 1
    names = {cls.__name__, encoder_class(folder, layers=0).__name__, encoder_class("log-mel").__name__}
    names.add(encoder_class(f"random:{folder}").__name__)
    assert len(names) == 4 and all(name.endswith("Encoder") for name in names)
    assert encoder_class(folder).__name__ == cls.__name__
    with pytest.raises(ValueError, match="one state"):
        encoder_class(folder, layers="all")


@pytest.mark.parametrize("family", ["wavlm", "hubert", "wav2vec2"])
@pytest.mark.parametrize("size", ["large", "base"])
def test_peers_are_those_of_transformers(tmp_path, family, size):
    path = tiny_checkpoint(tmp_path, family, size)
    peer = load_upstream(path)
    waveform = 0.1 * torch.randn(16161) + 0.02
    extractor = transformers.AutoFeatureExtractor.from_pretrained(path)
    values = extractor(waveform.numpy(), sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        expected = transformers.AutoModel.from_pretrained(path).eval()(values, output_hidden_states=True)
        states = peer.extract(waveform.unsqueeze(0), torch.tensor([16161])).hidden_states
        aligned = AlignedEncoder(peer, "all")(waveform).states
    assert len(states) == len(expected.hidden_states) == len(aligned) == 4
    for ours, theirs in zip(states[:-1], expected.hidden_states[:-1]):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(states[-1], expected.last_hidden_state, atol=1e-4, rtol=1e-4)
    assert aligned[0].shape[1] == 51 and upstream_id(peer).startswith(family)


def test_upstreams_by_name(tmp_path):
    mel = load_upstream("log-mel")
    aligned = AlignedEncoder(mel)
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(16000) / 16000)
    frames = aligned(tone).states[0]
    assert frames.shape == (1, 50, 128) and aligned.first_center_ms == 10.0
    assert frames[0, 25].argmax() == frames[0, 30].argmax()
    with pytest.raises(FileNotFoundError, match="no encoder at"):
        load_upstream(tmp_path / "nothing")
    path = tiny_checkpoint(tmp_path / "hubert", "hubert", "base")
    with pytest.raises(ValueError, match="our own encoders alone"):
        load_upstream(f"random:{path}")
