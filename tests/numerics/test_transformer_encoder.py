"""The Transformer encoder: WavLM Base of transformers as the witness, padding, masks, training, errors."""

import json

import pytest
import torch
from safetensors.torch import save_file

from spear_lib import load_encoder
from spear_lib.encoders import encoder_id, save_encoder
from spear_lib.encoders.transformer import TransformerConfig, TransformerEncoder
from spear_lib.runtime import keyed_random

transformers = pytest.importorskip("transformers")

TINY = {
    "conv_channels": 16,
    "hidden_dim": 32,
    "num_layers": 3,
    "num_heads": 4,
    "feedforward_dim": 48,
    "position_kernel": 16,
    "position_groups": 4,
    "num_buckets": 32,
    "max_distance": 20,
}
SAMPLES = [9000, 6500, 400]


def _encoder(**changes) -> TransformerEncoder:
    torch.manual_seed(0)
    return TransformerEncoder(TransformerConfig(**{**TINY, **changes})).eval()


def _wavlm_config(config: TransformerConfig):
    return transformers.WavLMConfig(
        hidden_size=config.hidden_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.feedforward_dim,
        conv_dim=(config.conv_channels,) * 7,
        num_conv_pos_embeddings=config.position_kernel,
        num_conv_pos_embedding_groups=config.position_groups,
        num_buckets=config.num_buckets,
        max_bucket_distance=config.max_distance,
        hidden_dropout=config.dropout,
        layerdrop=config.layerdrop,
    )


@pytest.fixture(scope="module")
def wavlm():
    """WavLM with all parameters away from their special initial values."""
    torch.manual_seed(1)
    model = transformers.WavLMModel(_wavlm_config(TransformerConfig(**TINY))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(2)
    waveforms = 0.1 * torch.randn(len(SAMPLES), max(SAMPLES), generator=generator)
    return waveforms, torch.tensor(SAMPLES), keyed_random.keys("test", ids=["a", "b", "c"])


def test_outputs_are_those_of_wavlm_on_single_utterances(wavlm, batch):
    waveforms, lengths, _ = batch
    encoder = _encoder()
    encoder.load_state_dict(wavlm.state_dict())  # strict: names and shapes are WavLM's
    noisy = waveforms.clone()
    for row, length in zip(noisy, SAMPLES):
        row[length:] = 7.0  # whatever the padding holds
    with torch.no_grad():
        output = encoder(noisy, lengths)
        for row, length in enumerate(SAMPLES):
            single = wavlm(waveforms[row : row + 1, :length], output_hidden_states=True)
            count = single.last_hidden_state.shape[1]
            assert count == int(output.lengths[row]) == encoder.output_length(length)
            for own, other in zip(output.hidden_states, single.hidden_states[1:], strict=True):
                torch.testing.assert_close(own[row, :count], other[0], atol=2e-5, rtol=0)
        assert torch.equal(output.encoder_out, output.hidden_states[-1])
        # WavLM itself lets its first norm see the padding: the test above can fail.
        leaky = wavlm(waveforms, attention_mask=torch.arange(9000) < lengths.unsqueeze(1)).last_hidden_state
        assert (leaky[1, :10] - output.encoder_out[1, :10]).abs().max() > 1e-3


def test_gradients_are_those_of_wavlm(wavlm, batch):
    waveforms, _, _ = batch
    encoder = _encoder()
    encoder.load_state_dict(wavlm.state_dict())
    weight = torch.randn(1, 27, 32)
    (encoder(waveforms[:1], torch.tensor([9000])).encoder_out * weight).sum().backward()
    wavlm.zero_grad()
    (wavlm(waveforms[:1]).last_hidden_state * weight).sum().backward()
    expected = dict(wavlm.named_parameters())
    for name, parameter in encoder.named_parameters():
        if name != "masked_spec_embed":
            grad = expected[name].grad
            tolerance = max(1e-5, 1e-4 * grad.abs().max().item())  # biases of keys have no gradient but noise
            torch.testing.assert_close(parameter.grad, grad, atol=tolerance, rtol=0)


def test_base_has_the_names_shapes_and_size_of_wavlm_base():
    with torch.device("meta"):
        encoder = TransformerEncoder(TransformerConfig.base())
        witness = transformers.WavLMModel(transformers.WavLMConfig())
    shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    assert shapes == {name: tuple(value.shape) for name, value in witness.state_dict().items()}
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 94_381_936


def test_initial_weights_follow_wavlm():
    encoder = _encoder(hidden_dim=128)
    torch.manual_seed(0)
    witness = transformers.WavLMModel(_wavlm_config(encoder.config))
    expected = dict(witness.named_parameters())
    for name, parameter in encoder.named_parameters():
        if "pos_conv_embed.conv.parametrizations" in name:
            continue  # this version of transformers leaves PyTorch's default there; ours is wav2vec 2.0's
        std, mean = (float(f(parameter.detach())) for f in (torch.std, torch.mean))
        other = expected[name].detach()
        if parameter.numel() > 100:
            assert std == pytest.approx(float(other.std()), rel=0.25, abs=1e-6), name
        assert mean == pytest.approx(float(other.mean()), abs=0.3 * float(other.std()) + 1e-6), name


def test_initial_weights_of_the_positional_convolution():
    weight = _encoder(hidden_dim=128).encoder.pos_conv_embed.conv.weight
    assert float(weight.detach().std()) == pytest.approx(2 / (16 * 128) ** 0.5, rel=0.05)


def test_output_length_of_every_number_of_samples():
    encoder = _encoder()
    witness = transformers.WavLMModel(_wavlm_config(encoder.config))
    numbers = torch.arange(400, 5001)
    expected = witness._get_feat_extract_output_lengths(numbers)
    assert [encoder.output_length(n) for n in numbers.tolist()] == expected.tolist()
    assert encoder.output_length(399) == 0
    for samples in (400, 719, 720, 1039, 1040):
        waveforms = torch.zeros(1, samples)
        assert encoder(waveforms, torch.tensor([samples])).encoder_out.shape[1] == encoder.output_length(
            samples
        )


def test_masks_replace_frames_after_the_extractor(batch):
    waveforms, lengths, _ = batch
    encoder = _encoder()
    time_mask = torch.zeros(3, 56, dtype=torch.bool)
    time_mask[0, 10:20] = True  # 10 ms each: 100 to 200 ms
    time_mask[1, 21:31] = True
    masked = encoder.masked_frames(time_mask, 27)
    # Frame m is centred at 20 m + 12.5 ms.
    assert masked[0].nonzero().flatten().tolist() == [5, 6, 7, 8, 9]
    assert masked[1].nonzero().flatten().tolist() == [10, 11, 12, 13, 14] and not masked[2].any()
    seen = []
    encoder.encoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    encoder.extract(waveforms, lengths, time_mask, torch.ones(3, 128, dtype=torch.bool))
    encoder(waveforms, lengths)
    hidden, plain = seen
    assert torch.equal(hidden[masked], encoder.masked_spec_embed.expand(10, -1))
    assert torch.equal(hidden[~masked], plain[~masked])
    # What the masked audio holds does not matter where no unmasked frame sees it.
    changed = waveforms.clone()
    changed[0, 1800:3000] += 1.0
    encoder.feature_extractor.conv_layers[0].normalise = False  # its statistics see the whole utterance
    one, two = (encoder(each, lengths, time_mask).encoder_out for each in (waveforms, changed))
    assert torch.equal(one, two)


def _step(encoder, batch, rows=(0, 1, 2), time_mask=None):
    waveforms, lengths, keys = batch
    rows = list(rows)
    encoder.zero_grad()
    encoder.begin_step(0.0, 3, keys[rows])
    return encoder(waveforms[rows], lengths[rows], time_mask)


def test_a_training_step_is_a_function_of_its_keys_alone(batch):
    encoder = _encoder(dropout=0.3, layerdrop=0.3).train()
    state = torch.random.get_rng_state()
    together = _step(encoder, batch).encoder_out
    assert torch.equal(together, _step(encoder, batch).encoder_out)
    assert torch.equal(torch.random.get_rng_state(), state)
    other_keys = (*batch[:2], keyed_random.keys("another epoch", ids=["a", "b", "c"]))
    assert not torch.equal(together, _step(encoder, other_keys).encoder_out)
    alone = _step(encoder, batch, rows=[1]).encoder_out
    count = encoder.output_length(SAMPLES[1])
    torch.testing.assert_close(alone[0, :count], together[1, :count], atol=1e-5, rtol=0)
    assert not torch.allclose(together[0], encoder.eval()(*batch[:2]).encoder_out[0], atol=1e-3)


@pytest.mark.parametrize("masked", [True, False])
def test_every_parameter_gets_a_gradient_in_every_step(batch, masked):
    encoder = _encoder(dropout=0.3, layerdrop=0.9).train()
    time_mask = torch.rand(3, 56) < 0.5 if masked else None
    _step(encoder, batch, time_mask=time_mask).encoder_out.square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
    assert bool(encoder.masked_spec_embed.grad.any()) == masked
    encoder.limit_gradients()


def test_own_folder_and_checkpoint(tmp_path, batch):
    encoder = _encoder()
    save_encoder(encoder, tmp_path / "encoder", {"step": 3})
    assert json.loads((tmp_path / "encoder" / "config.json").read_text())["encoder"] == "transformer"
    loaded = load_encoder(tmp_path / "encoder", dropout=0.0)
    assert isinstance(loaded, TransformerEncoder) and loaded.config.dropout == 0.0
    assert loaded.provenance == {"step": 3} and encoder_id(loaded) == encoder_id(encoder)
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    content = {"model": state, "encoder_config": {"type": "transformer", **TINY}, "step": 5}
    torch.save(content, tmp_path / "step.pt")
    from_checkpoint = load_encoder(tmp_path / "step.pt")
    assert from_checkpoint.config == encoder.config
    for other in (loaded, from_checkpoint):
        assert torch.equal(other(*batch[:2]).encoder_out, encoder(*batch[:2]).encoder_out)
    with pytest.raises(ValueError, match="unknown encoder settings: pos_dim"):
        load_encoder({"type": "transformer", "pos_dim": 3})


@pytest.mark.parametrize("old_weight_norm", [False, True])
def test_a_wavlm_folder_is_an_encoder(wavlm, tmp_path, batch, old_weight_norm):
    wavlm.save_pretrained(tmp_path)
    if old_weight_norm:
        state = {}
        for name, value in wavlm.state_dict().items():
            for new, old in (
                ("parametrizations.weight.original0", "weight_g"),
                ("parametrizations.weight.original1", "weight_v"),
            ):
                name = name.replace(new, old)
            state[f"wavlm.{name}"] = value.clone()
        save_file({**state, "lm_head.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    encoder = load_encoder(tmp_path)
    single = batch[0][:1]
    expected = wavlm(single).last_hidden_state
    torch.testing.assert_close(
        encoder.extract(single, torch.tensor([9000])).encoder_out, expected, atol=2e-5, rtol=0
    )
    settings = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"do_stable_layer_norm": True}, "of Large's shape"),
        ({"conv_dim": [16, 32]}, "must be equal"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(ValueError, match=message):
            load_encoder(tmp_path)


def test_half_precision(batch):
    encoder = _encoder(layerdrop=0.0, dropout=0.0).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(*batch[:2]).encoder_out
    half.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())
    full = encoder(*batch[:2]).encoder_out
    valid = torch.arange(27) < torch.tensor([27, 20, 1]).unsqueeze(1)
    error = (half.float() - full)[valid].square().mean().sqrt() / full[valid].square().mean().sqrt()
    assert 0 < error < 0.05


def test_errors(batch):
    waveforms, lengths, keys = batch
    encoder = _encoder()
    with pytest.raises(
        ValueError, match=r"must be \(B, N\) float, got torch.float32 \(3, 50, 128\).*not features"
    ):
        encoder(torch.zeros(3, 50, 128), lengths)
    with pytest.raises(ValueError, match=r"lengths must be \(3,\)"):
        encoder(waveforms, lengths[:2])
    with pytest.raises(ValueError, match=r"lengths\[1\] is 399, outside 400..9000 samples \(25 ms"):
        encoder(waveforms, torch.tensor([9000, 399, 400]))
    with pytest.raises(ValueError, match=r"lengths\[0\] is 9001, outside"):
        encoder(waveforms, torch.tensor([9001, 400, 400]))
    with pytest.raises(ValueError, match=r"time_mask must be \(3, fbank frames\), got \(2, 56\)"):
        encoder(waveforms, lengths, torch.zeros(2, 56, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="training forward without begin_step"):
        encoder.train()(waveforms, lengths)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "hidden_dim 32 is not a multiple of num_heads 5"),
        ({"position_groups": 5}, "hidden_dim 32 is not a multiple of position_groups 5"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must lie in \[0, 1\)"),
        ({"num_buckets": 30}, "num_buckets 30 must be a multiple of 4"),
        ({"max_distance": 8}, "max_distance 8 greater than a quarter"),
        ({"type": "zipformer"}, "type is 'zipformer'"),
    ],
)
def test_bad_configuration_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{**TINY, **changes})
