"""Streaming against the chunk-masked pass over whole utterances; causal encoders and exact padding."""

import pytest
import torch

from spear_lib.encoders.zipformer import SpearEncoder, StreamingEncoder, StreamingState, ZipformerConfig

TOLERANCE = 1e-5
# Fbank frames: a final partial chunk, an end on a chunk, a stream shorter than any chunk, the shortest one.
LENGTHS = [171, 135, 20, 9]


def _encoder(**changes) -> SpearEncoder:
    """A causal encoder whose parameters are all away from their special initial values."""
    settings = {
        "frontend_channels": (2, 3, 4),
        "encoder_dim": (32, 24, 40, 32),
        "encoder_unmasked_dim": 24,
        "feedforward_dim": 48,
        "num_heads": 2,
        "query_head_dim": 8,
        "downsampling_factor": (1, 2, 8, 1),
        "num_encoder_layers": (1, 2, 1, 1),
        "cnn_module_kernel": (15, 7, 5, 31),
        "causal": True,
        **changes,
    }
    torch.manual_seed(0)
    encoder = SpearEncoder(ZipformerConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("bypass_scale"):
                parameter.uniform_(0.3, 0.9)
            elif name.endswith(("chunkwise_conv_scale", "bias")):
                parameter.normal_(std=0.3)
            elif "linear_pos" in name or "pointwise_conv2" in name:
                parameter.mul_(20.0)
    return encoder


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    fbank = torch.randn(len(LENGTHS), max(LENGTHS), 128, generator=generator) * 3 - 6
    return fbank, torch.tensor(LENGTHS)


def _largest_difference(one, other, lengths) -> float:
    longest = int(lengths.max())
    valid = torch.arange(longest) < lengths.unsqueeze(1)
    return (one[:, :longest] - other[:, :longest])[valid].abs().max().item()


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize(
    ("chunk", "left"), [(8, 8), (8, 24), (16, 40), (16, -1), (32, 0), (64, 64), (128, -1)]
)
def test_streaming_equals_the_chunk_masked_pass(batch, chunk, left, factor):
    fbank, lengths = batch
    encoder = _encoder(chunk_size=chunk, left_context_frames=left, output_downsampling_factor=factor)
    with torch.no_grad():
        whole = encoder(fbank, lengths)
    streamed = StreamingEncoder(encoder).encode(fbank, lengths)
    assert torch.equal(streamed.lengths, whole.lengths)
    assert _largest_difference(streamed.encoder_out, whole.encoder_out, whole.lengths) <= TOLERANCE
    # Not a property of any two passes: another left context gives other numbers.
    if left == 8:
        other = StreamingEncoder(encoder, left_context_frames=-1).encode(fbank, lengths)
        assert _largest_difference(other.encoder_out, whole.encoder_out, whole.lengths) > 1e-3


def test_hidden_states_of_a_step(batch):
    fbank, lengths = batch
    encoder = _encoder(chunk_size=16, left_context_frames=32)
    streaming = StreamingEncoder(encoder)
    with torch.no_grad():
        whole = encoder(fbank, lengths).hidden_states
    state = streaming.initial_state(len(LENGTHS))
    for index in range(2):
        start = index * streaming.block_shift
        block = fbank[:, start : start + streaming.block_frames]
        output, state = streaming.step(block, (lengths - start).clamp(0, streaming.block_frames), state)
        for one, other in zip(output.hidden_states, whole, strict=True):
            assert _largest_difference(one, other[:, index * 16 :], output.lengths) <= TOLERANCE
    assert output.lengths.tolist() == [16, 16, 0, 0] and state.processed.tolist() == 4 * [32]


@pytest.mark.parametrize("left", [32, -1])
def test_streams_join_and_leave_a_batch_at_any_time(batch, left):
    fbank, _ = batch
    encoder = _encoder(chunk_size=16, left_context_frames=left)
    streaming = StreamingEncoder(encoder)
    full = torch.tensor([streaming.block_frames])

    def block(row, index):
        start = index * streaming.block_shift
        return fbank[row : row + 1, start : start + streaming.block_frames]

    expected, state = [], streaming.initial_state(1)
    for index in range(3):
        output, state = streaming.step(block(0, index), full, state)
        expected.append(output.encoder_out)
    first, older = streaming.step(block(0, 0), full, streaming.initial_state(1))
    joined = StreamingState.concatenate([streaming.initial_state(1), older])
    together, joined = streaming.step(torch.cat([block(1, 0), block(0, 1)]), full.expand(2), joined)
    assert joined.processed.tolist() == [16, 32]
    last, _ = streaming.step(block(0, 2), full, joined.select([1]))
    for one, other in zip([first.encoder_out, together.encoder_out[1:], last.encoder_out], expected):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=0)
    alone, _ = streaming.step(block(1, 0), full, streaming.initial_state(1))
    torch.testing.assert_close(together.encoder_out[:1], alone.encoder_out, atol=TOLERANCE, rtol=0)


def test_a_state_has_a_fixed_size_and_is_not_changed_by_a_step(batch):
    fbank, _ = batch
    streaming = StreamingEncoder(_encoder(chunk_size=16, left_context_frames=32))
    state = streaming.initial_state(1)
    shapes = [[tuple(tensor.shape) for tensor in layer] for layer in state.layers]
    # Spec zipformer §14: keys, gated values, values twice, convolution inputs twice; stack 1 has factor 2.
    assert shapes[1] == [(1, 16, 16), (1, 16, 18), (1, 16, 24), (1, 16, 24), (1, 3, 24), (1, 3, 24)]
    assert state.front_end.shape == (1, 3, 31, 4)
    full = torch.tensor([streaming.block_frames])
    for _ in range(3):
        _, new = streaming.step(fbank[:1, : streaming.block_frames], full, state)
        assert [[tuple(tensor.shape) for tensor in layer] for layer in new.layers] == shapes
        assert all((tensor == 0).all() for layer in state.layers for tensor in layer)
    assert state.processed.item() == 0 and new.processed.item() == 16


def test_a_chunk_does_not_wait_for_more_than_its_block(batch):
    fbank, _ = batch
    encoder = _encoder(chunk_size=16, left_context_frames=32)
    streaming = StreamingEncoder(encoder)
    assert (streaming.block_frames, streaming.block_shift) == (45, 32)
    changed = fbank.clone()
    changed[0, 45:] += 5.0
    lengths = torch.tensor(4 * [171])
    with torch.no_grad():
        one, other = encoder(fbank, lengths).encoder_out, encoder(changed, lengths).encoder_out
    torch.testing.assert_close(one[0, :16], other[0, :16], atol=TOLERANCE, rtol=0)
    assert not torch.allclose(one[0, 16], other[0, 16], atol=1e-3)


@pytest.mark.parametrize("chunk", [16, 64, -1])
def test_causal_outputs_do_not_depend_on_the_batch(batch, chunk):
    fbank, lengths = batch
    left = 32 if chunk > 0 else -1
    encoder = _encoder(chunk_size=chunk, left_context_frames=left)
    with torch.no_grad():
        together = encoder(fbank, lengths)
        for row, length in enumerate(LENGTHS):
            alone = encoder(fbank[row : row + 1, :length], lengths[row : row + 1]).encoder_out
            own = together.encoder_out[row, : alone.shape[1]]
            torch.testing.assert_close(own, alone[0], atol=TOLERANCE, rtol=0)


def test_errors(batch):
    fbank, lengths = batch
    plain = _encoder(causal=False)
    with pytest.raises(ValueError, match="needs an encoder with causal: true.*encoder.forward"):
        StreamingEncoder(plain)
    encoder = _encoder()
    with pytest.raises(ValueError, match=r"chunk_size is -1; .* multiple of every .* factor \[1, 2, 8\]"):
        StreamingEncoder(encoder)
    with pytest.raises(ValueError, match="chunk_size is 12"):
        StreamingEncoder(encoder, 12)
    streaming = StreamingEncoder(encoder, 16, 32)
    state = streaming.initial_state(4)
    with pytest.raises(ValueError, match=r"must be \(B, at most 45, 128\) .* got shape \(4, 171, 128\)"):
        streaming.step(fbank, lengths, state)
    with pytest.raises(ValueError, match="has 4 streams.*one length and one state per stream"):
        streaming.step(fbank[:, :45], lengths.clamp(max=45), streaming.initial_state(3))
    with pytest.raises(ValueError, match=r"lengths \[46, .* must lie in 0..45"):
        streaming.step(fbank[:, :45], torch.tensor([46, 3, 3, 3]), state)
    encoder.train()
    with pytest.raises(RuntimeError, match=r"call encoder\.eval\(\)"):
        streaming.step(fbank[:, :45], lengths.clamp(max=45), state)
