"""The encoder against other witnesses: float64, names written from the specification, the real front end."""

import re

import pytest
import torch
from test_zipformer_golden import ATOL, _encoder, _read

from spear_lib.encoders.zipformer import SpearEncoder, StreamingEncoder, ZipformerConfig
from spear_lib.features.fbank import FbankExtractor


def _valid(x, lengths):
    return x[torch.arange(x.shape[1]) < lengths.unsqueeze(1)]


def _double(golden):
    return {key: value.double() if value.is_floating_point() else value for key, value in golden.items()}


@pytest.mark.parametrize("factor", [1, 2])
def test_float64_gives_the_golden_outputs_and_float32_differs_by_rounding(factor):
    golden, metadata = _read("zipformer_small")
    wide = _double(golden)
    changes = {"padding": "reference", "output_downsampling_factor": factor}
    single = _encoder(golden, metadata, **changes)
    double = _encoder(golden, metadata, **changes).double()
    fbank, lengths = golden["in.fbank"], golden["in.fbank_lens"]
    with torch.no_grad():
        one, two = single(fbank, lengths), double(fbank.double(), lengths)
        front_one = single.encoder_embed(fbank, lengths)[0]
        front_two = double.encoder_embed(fbank.double(), lengths)[0]
    assert two.encoder_out.dtype == front_two.dtype == torch.float64
    key = "out.encoder_out" if factor == 1 else "out.encoder_out_ds2"
    torch.testing.assert_close(two.encoder_out, wide[key], atol=ATOL, rtol=0)
    torch.testing.assert_close(front_two, wide["out.embed"], atol=ATOL, rtol=0)
    # The reference's own float32 and float64 differ by 1e-6; twice that is ours.
    torch.testing.assert_close(front_one.double(), front_two, atol=3e-6, rtol=0)
    torch.testing.assert_close(one.encoder_out.double(), two.encoder_out, atol=3e-6, rtol=0)
    for index, (narrow, hidden) in enumerate(zip(one.hidden_states, two.hidden_states, strict=True)):
        torch.testing.assert_close(hidden, wide[f"out.layer.{index}"], atol=ATOL, rtol=0)
        torch.testing.assert_close(narrow.double(), hidden, atol=3e-6, rtol=0)


def test_float64_gradients():
    golden, metadata = _read("zipformer_small")
    encoders = [_encoder(golden, metadata, padding="reference") for _ in range(2)]
    encoders[1].double()
    weight, inputs = golden["grad.loss_weight"], []
    for encoder, dtype in zip(encoders, (torch.float32, torch.float64)):
        fbank = golden["in.fbank"].to(dtype, copy=True).requires_grad_()
        (encoder(fbank, golden["in.fbank_lens"]).encoder_out * weight.to(dtype)).sum().backward()
        inputs.append(fbank)
    expected = golden["grad.fbank"].double()
    torch.testing.assert_close(inputs[1].grad, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    single, double = (dict(encoder.named_parameters()) for encoder in encoders)
    checked = 0
    for name, parameter in double.items():
        if parameter.grad is None:
            continue
        scale = max(float(parameter.grad.abs().max()), 1e-4)
        # Worst are small differences of large sums (the reference: 6e-5 of the largest entry).
        torch.testing.assert_close(single[name].grad.double(), parameter.grad, atol=5e-4 * scale, rtol=0)
        if f"grad.param.{name}" in golden:
            value = golden[f"grad.param.{name}"].double()
            torch.testing.assert_close(
                parameter.grad, value, atol=1e-4 * float(value.abs().max()), rtol=0, msg=name
            )
            checked += 1
    assert checked == 26


@pytest.mark.parametrize(("chunk", "left"), [(16, 64), (32, 128), (-1, -1)])
def test_float64_of_the_causal_encoder(chunk, left):
    golden, metadata = _read("zipformer_causal")
    changes = {"padding": "reference", "causal": True, "chunk_size": chunk, "left_context_frames": left}
    encoder = _encoder(golden, metadata, **changes).double()
    with torch.no_grad():
        output = encoder.encoder(golden["in.embed"].double(), golden["in.embed_lens"])[0]
    expected = golden[f"out.chunk{chunk}_left{left}_ds1"].double()
    torch.testing.assert_close(output, expected, atol=ATOL, rtol=0)


def test_streaming_with_the_golden_weights():
    """The golden causal weights have no front end, so a random one comes before them."""
    golden, metadata = _read("zipformer_causal")
    torch.manual_seed(0)
    encoder = _encoder(golden, metadata, causal=True, chunk_size=16, left_context_frames=64)
    fbank, lengths = torch.randn(2, 309, 128), torch.tensor([309, 250])
    with torch.no_grad():
        whole = encoder(fbank, lengths)
    streamed = StreamingEncoder(encoder).encode(fbank, lengths)
    one, other = (_valid(x[:, :151], whole.lengths) for x in (streamed.encoder_out, whole.encoder_out))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def names_of_the_specification(layers, dim, hidden, factors, kernels, output_factor):
    """Names and shapes of a published model, written down from the tables of spec zipformer §15 and §1."""
    heads, query, position, value, encoding, bins = 8, 32, 4, 12, 48, 128
    width = (((bins - 1) // 2) - 1) // 2
    shapes = {"mask_emb": (bins,)}

    def both(name, *weight):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, weight[:1]

    front = "encoder_embed."
    both(front + "conv.0", 8, 1, 3, 3)
    both(front + "conv.4", 32, 8, 3, 3)
    both(front + "conv.7", 128, 32, 3, 3)
    both(front + "convnext.depthwise_conv", 128, 1, 7, 7)
    both(front + "convnext.pointwise_conv1", 384, 128, 1, 1)
    both(front + "convnext.pointwise_conv2", 128, 384, 1, 1)
    both(front + "out", dim, 128 * width)
    shapes[front + "out_norm.log_scale"], shapes[front + "out_norm.bias"] = (), (dim,)
    for i, (factor, count, kernel) in enumerate(zip(factors, layers, kernels)):
        stack = f"encoder.encoders.{i}."
        inner = stack if factor == 1 else stack + "encoder."
        if factor > 1:
            shapes[stack + "downsample.bias"] = (factor,)
            shapes[stack + "out_combiner.bypass_scale"] = (dim,)
        for number in range(count):
            layer = f"{inner}layers.{number}."
            for name in ("bypass_scale", "bypass.bypass_scale", "bypass_mid.bypass_scale", "norm.bias"):
                shapes[layer + name] = (dim,)
            shapes[layer + "norm.log_scale"] = ()
            both(layer + "self_attn_weights.in_proj", heads * (2 * query + position), dim)
            shapes[layer + "self_attn_weights.linear_pos.weight"] = (heads * position, encoding)
            for number_of_two in (1, 2):
                both(f"{layer}self_attn{number_of_two}.in_proj", heads * value, dim)
                both(f"{layer}self_attn{number_of_two}.out_proj", dim, heads * value)
                both(f"{layer}conv_module{number_of_two}.in_proj", 2 * dim, dim)
                both(f"{layer}conv_module{number_of_two}.out_proj", dim, dim)
                both(f"{layer}conv_module{number_of_two}.depthwise_conv", dim, 1, kernel)
            for k, quarters in ((1, 3), (2, 4), (3, 5)):
                both(f"{layer}feed_forward{k}.in_proj", hidden * quarters // 4, dim)
                both(f"{layer}feed_forward{k}.out_proj", dim, hidden * quarters // 4)
            both(layer + "nonlin_attention.in_proj", 3 * (3 * dim // 4), dim)
            both(layer + "nonlin_attention.out_proj", dim, 3 * dim // 4)
    if output_factor == 2:
        shapes["encoder.downsample_output.bias"] = (2,)
    return shapes


PUBLISHED = {
    "base": ((1, 2, 3, 3, 1, 1, 1), 512, 1536, 93_289_489, 555),
    "large": ((1, 2, 2, 3, 1, 1, 1), 1024, 3072, 326_951_472, 511),
    "xlarge": ((1, 2, 3, 4, 1, 1, 1), 1280, 3840, 596_973_362, 599),
}


@pytest.mark.parametrize("output_factor", [1, 2])
@pytest.mark.parametrize("size", list(PUBLISHED))
def test_published_sizes_have_the_names_and_shapes_of_the_specification(size, output_factor):
    layers, dim, hidden, parameters, tensors = PUBLISHED[size]
    factors, kernels = (1, 2, 4, 8, 4, 2, 1), (31, 31, 15, 15, 15, 31, 31)
    expected = names_of_the_specification(layers, dim, hidden, factors, kernels, output_factor)
    extra = output_factor - 1  # the down-sampling of the output: one tensor of two numbers
    with torch.device("meta"):
        config = getattr(ZipformerConfig, size)(output_downsampling_factor=output_factor)
        state = SpearEncoder(config).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    assert len(expected) == tensors + extra
    assert sum(torch.Size(shape).numel() for shape in expected.values()) == parameters + 2 * extra


def test_causal_names_differ_in_the_depthwise_convolutions_only():
    config = ZipformerConfig.mini()
    plain = {name: tuple(v.shape) for name, v in SpearEncoder(config).state_dict().items()}
    causal = SpearEncoder(ZipformerConfig.mini(causal=True)).state_dict()
    expected = {name: shape for name, shape in plain.items() if ".conv_module" not in name or "_proj" in name}
    for name, shape in plain.items():
        if re.search(r"conv_module\d\.depthwise_conv\.weight", name):
            prefix, (dim, _, kernel) = name.removesuffix("weight"), shape
            expected[prefix + "causal_conv.weight"] = (dim, 1, (kernel + 1) // 2)
            expected[prefix + "chunkwise_conv.weight"] = (dim, 1, kernel)
            expected[prefix + "causal_conv.bias"] = expected[prefix + "chunkwise_conv.bias"] = (dim,)
            expected[prefix + "chunkwise_conv_scale"] = (2, dim, kernel)
    assert {name: tuple(value.shape) for name, value in causal.items()} == expected


@pytest.mark.parametrize(("size", "count"), [("base", 12), ("large", 11), ("xlarge", 13)])
@pytest.mark.parametrize("output_factor", [1, 2])
def test_one_hidden_state_per_layer_at_the_embedding_rate(size, count, output_factor):
    narrow = {
        "encoder_dim": 16,
        "feedforward_dim": 16,
        "encoder_unmasked_dim": 16,
        "frontend_channels": (1, 1, 2),
    }
    config = getattr(ZipformerConfig, size)(**narrow, output_downsampling_factor=output_factor)
    encoder = SpearEncoder(config).eval()
    with torch.no_grad():
        output = encoder(torch.randn(2, 57, 128), torch.tensor([57, 41]))
    assert len(output.hidden_states) == count
    assert all(hidden.shape == (2, 25, 16) for hidden in output.hidden_states)
    assert output.encoder_out.shape == (2, 25 if output_factor == 1 else 13, 16)
    assert torch.equal(output.hidden_states[-1], output.encoder_out) == (output_factor == 1)
    assert encoder.hidden_length(57 * 160) == 25
    # Down-sampled stacks repeat their frames: stack 3 has factor 8.
    first = sum(config.num_encoder_layers[:3])
    blocks = output.hidden_states[first][:, :24].reshape(2, 3, 8, 16)
    assert torch.equal(blocks, blocks[:, :, :1].expand_as(blocks))


def test_output_length_of_every_number_of_samples_against_the_real_front_end():
    narrow = {
        "encoder_dim": 8,
        "feedforward_dim": 8,
        "encoder_unmasked_dim": 8,
        "frontend_channels": (1, 1, 1),
    }
    one, two = (
        SpearEncoder(ZipformerConfig.mini(**narrow, output_downsampling_factor=factor)).eval()
        for factor in (1, 2)
    )
    features, audio = FbankExtractor(), 0.1 * torch.randn(1, 5000)
    frames_of: dict[int, int] = {}
    refused = 0
    for num_samples in range(1, 5001):
        length = torch.tensor([num_samples])
        fbank, lengths = features(audio[:, :num_samples], length)
        assert int(lengths) == fbank.shape[1]
        if one.output_length(num_samples) == 0:
            refused += 1
            assert fbank.shape[1] < 9 and two.output_length(num_samples) == 0
            continue
        if fbank.shape[1] not in frames_of:  # what follows the features depends on their number only
            frames_of[fbank.shape[1]] = one.encoder_embed(fbank, lengths)[0].shape[1]
            for encoder in (one, two):
                output = encoder(fbank, lengths)
                assert (
                    output.encoder_out.shape[1] == int(output.lengths) == encoder.output_length(num_samples)
                )
        assert one.output_length(num_samples) == one.hidden_length(num_samples) == frames_of[fbank.shape[1]]
        assert two.output_length(num_samples) == -(-frames_of[fbank.shape[1]] // 2)
    assert refused == 1359 and len(frames_of) == 31 - 8
    for num_samples in (1, 400, 1359):
        with pytest.raises(
            ValueError, match=rf"lengths\[0\] is {num_samples}, outside 1360..5000 samples \(85 ms"
        ):
            one.extract(audio, torch.tensor([num_samples]))
    assert one.extract(audio[:, :1360], torch.tensor([1360])).lengths.tolist() == [1]


@pytest.mark.parametrize("factor", [1, 2])
def test_exact_padding_gives_what_the_utterance_gives_alone(factor):
    golden, metadata = _read("zipformer_small")
    encoder = _encoder(
        golden, metadata, output_downsampling_factor=factor
    )  # weights of the size of trained ones
    fbank, lengths = golden["in.fbank"], golden["in.fbank_lens"]
    with torch.no_grad():
        together = encoder(fbank, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = encoder(fbank[row : row + 1, :length], lengths[row : row + 1])
            pairs = [(together.encoder_out, alone.encoder_out)]
            pairs += zip(together.hidden_states, alone.hidden_states, strict=True)
            for one, other in pairs:
                torch.testing.assert_close(one[row, : other.shape[1]], other[0], atol=1e-5, rtol=0)


def test_unsorted_lengths_and_half_precision_features_give_the_same_outputs():
    torch.manual_seed(0)
    encoder = SpearEncoder(
        ZipformerConfig.mini(encoder_dim=16, encoder_unmasked_dim=16, feedforward_dim=16)
    ).eval()
    fbank, lengths = torch.randn(4, 80, 128) * 3 - 6, torch.tensor([33, 80, 9, 61])
    with torch.no_grad():
        unsorted = encoder(fbank, lengths)
        order = lengths.argsort(descending=True)
        ordered = encoder(fbank[order], lengths[order])
        assert torch.equal(ordered.lengths, unsorted.lengths[order])
        one, other = (_valid(x, ordered.lengths) for x in (ordered.encoder_out, unsorted.encoder_out[order]))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        for dtype in (torch.float16, torch.bfloat16):
            half = encoder(fbank.to(dtype), lengths)
            rounded = encoder(fbank.to(dtype).float(), lengths)
            assert (
                torch.equal(half.encoder_out, rounded.encoder_out) and half.encoder_out.dtype == torch.float32
            )
