"""What clients do with an encoder: cast it, train it without steps, read its rates, hand it other shapes."""

import logging

import pytest
import torch
from zipformer_fixtures import TINY

from spear_lib.encoders import load_encoder
from spear_lib.encoders.transformer import TransformerConfig
from spear_lib.encoders.zipformer import ZipformerConfig
from spear_lib.encoders.zipformer.streaming import StreamingEncoder
from spear_lib.runtime import keyed_random

CONFIGS = {
    "zipformer": ZipformerConfig(**TINY),
    "zipformer 25 Hz": ZipformerConfig(**TINY, output_downsampling_factor=2),
    "causal": ZipformerConfig(**TINY, causal=True, chunk_size=(16,), left_context_frames=(32,)),
    "transformer": TransformerConfig.mini(hidden_dim=32, feedforward_dim=48, num_heads=2, num_layers=2),
}


@pytest.fixture(params=list(CONFIGS))
def encoder(request):
    torch.manual_seed(0)
    return load_encoder(CONFIGS[request.param])


@pytest.fixture
def audio():
    torch.manual_seed(1)
    return 0.1 * torch.randn(2, 9000), torch.tensor([9000, 5000])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_a_cast_encoder_computes_in_its_number_format(encoder, audio, dtype, tolerance):
    waveforms, lengths = audio
    expected = encoder.extract(waveforms, lengths)
    output = encoder.to(dtype).extract(waveforms.to(dtype), lengths)
    states = [output.encoder_out, *output.hidden_states]
    assert {state.dtype for state in states} == {dtype}
    for state, right in zip(states, [expected.encoder_out, *expected.hidden_states]):
        difference = (state[0].float() - right[0]).norm() / right[0].norm()
        assert difference < tolerance
    assert torch.isfinite(output.encoder_out[0]).all()
    output.encoder_out[0].float().square().sum().backward()
    gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert len(gradients) > 40 and all(torch.isfinite(grad).all() for grad in gradients)


def test_a_cast_encoder_is_not_trained_by_steps(encoder, audio):
    encoder.to(torch.bfloat16).train()
    encoder.begin_step(0.0, 1, keyed_random.keys("test", ids=["a", "b"]))
    with pytest.raises(RuntimeError, match=r"torch.bfloat16 cannot be trained.*training\.precision"):
        encoder.extract(*audio)


def test_a_cast_streaming_encoder():
    torch.manual_seed(0)
    streaming = StreamingEncoder(load_encoder(CONFIGS["causal"]))
    fbank, lengths = torch.randn(1, 90, 128), torch.tensor([90])
    expected = streaming.encode(fbank, lengths).encoder_out
    streaming.encoder.to(torch.bfloat16)
    output = streaming.encode(fbank, lengths).encoder_out
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).norm() < 0.05 * expected.norm()


def test_training_mode_without_steps_is_evaluation_with_gradients(encoder, audio, caplog):
    expected = encoder.extract(*audio).encoder_out
    encoder.train()
    with caplog.at_level(logging.WARNING):
        output = [encoder.extract(*audio).encoder_out for _ in range(2)]
    assert torch.equal(output[0], expected) and torch.equal(output[1], expected)
    assert caplog.text.count("without begin_step: the encoder computes as in evaluation mode") == 1
    assert all(module.training for module in encoder.modules())
    output[0][0].sum().backward()
    assert sum(p.grad is not None for p in encoder.parameters()) > 40
    # Once a step was begun, the training is SPEAR's: random, and a step for every forward.
    encoder.begin_step(0.0, 1, keyed_random.keys("test", ids=["a", "b"]))
    assert not torch.equal(encoder.extract(*audio).encoder_out, expected)
    with pytest.raises(RuntimeError, match="training forward without begin_step"):
        encoder.extract(*audio)


def test_rates_of_all_outputs(encoder, audio):
    waveforms, lengths = audio
    output = encoder.extract(waveforms, lengths)
    assert encoder.hidden_frame_rates == [50] * len(output.hidden_states)
    assert [state.shape[1] for state in output.hidden_states] == [encoder.hidden_length(9000)] * len(
        output.hidden_states
    )
    assert output.encoder_out.shape[1] == encoder.output_length(9000)
    last = output.hidden_states[-1]
    same = last.shape == output.encoder_out.shape and torch.equal(last, output.encoder_out)
    assert encoder.ends_with_hidden_state == same


@pytest.mark.parametrize(
    ("waveforms", "advice"),
    [
        (torch.zeros(9000), r"unsqueeze\(0\)"),
        (torch.zeros(2, 1, 9000), r"squeeze\(1\)"),
        (torch.zeros(2, 9000, dtype=torch.int16), "divide 16-bit integers by 32768"),
        (torch.zeros(2, 2, 9000), "not features"),
    ],
)
def test_other_shapes_get_one_clear_line(encoder, waveforms, advice):
    with pytest.raises(ValueError, match=rf"waveforms must be \(B, N\) float, got .*{advice}"):
        encoder.extract(waveforms, torch.tensor([9000, 9000]))
