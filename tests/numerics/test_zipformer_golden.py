"""The whole encoder against the golden numbers: outputs, gradients, sizes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig

GOLDEN = Path(__file__).parents[1] / "golden"
ATOL = 2e-5


def _read(name):
    path = GOLDEN / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return load_file(path), metadata


@pytest.fixture(scope="module")
def small():
    return _read("zipformer_small")


@pytest.fixture(scope="module")
def causal():
    return _read("zipformer_causal")


def _encoder(golden, metadata, **changes):
    settings = json.loads(metadata["config"])
    config = ZipformerConfig(
        downsampling_factor=settings["ds"],
        num_encoder_layers=settings["layers"],
        encoder_dim=settings["dim"],
        feedforward_dim=settings["ff"],
        num_heads=settings["heads"],
        query_head_dim=settings["qhd"],
        pos_head_dim=settings["phd"],
        value_head_dim=settings["vhd"],
        pos_dim=settings["pos_dim"],
        cnn_module_kernel=settings["kernels"],
        encoder_unmasked_dim=settings["unmasked"],
        **changes,
    )
    encoder = SpearEncoder(config).eval()
    state = {key.removeprefix("param."): value for key, value in golden.items() if key.startswith("param.")}
    if config.output_downsampling_factor == 1:
        state.pop("encoder.downsample_output.bias", None)
    missing, unexpected = encoder.load_state_dict(state, strict=False)
    absent = {name for name in missing if not name.startswith("encoder_embed.")} if config.causal else missing
    assert set(absent) == {"mask_emb"} and not unexpected
    return encoder


def _close(value, expected, atol=ATOL):
    torch.testing.assert_close(value, expected, atol=atol, rtol=0)


def test_outputs_with_reference_padding(small):
    golden, metadata = small
    encoder = _encoder(golden, metadata, padding="reference")
    embedding, lengths = encoder.encoder_embed(golden["in.fbank"], golden["in.fbank_lens"])
    _close(embedding, golden["out.embed"])
    assert torch.equal(lengths, golden["out.embed_lens"])
    *_, stacks = encoder.encoder(embedding, lengths)
    output = encoder(golden["in.fbank"], golden["in.fbank_lens"])
    _close(output.encoder_out, golden["out.encoder_out"])
    assert torch.equal(output.lengths, golden["out.encoder_out_lens"])
    assert len(output.hidden_states) == 8 and len(stacks) == 7
    for index, hidden in enumerate(output.hidden_states):
        _close(hidden, golden[f"out.layer.{index}"])
    for index, stack in enumerate(stacks):
        _close(stack, golden[f"out.stack.{index}"])
    assert torch.equal(output.hidden_states[-1], output.encoder_out)
    middle = output.hidden_states[3:5]
    assert len(middle) == 2 and torch.equal(middle[0], output.hidden_states[3])


def test_output_at_25_hz(small):
    golden, metadata = small
    encoder = _encoder(golden, metadata, padding="reference", output_downsampling_factor=2)
    output = encoder(golden["in.fbank"], golden["in.fbank_lens"])
    _close(output.encoder_out, golden["out.encoder_out_ds2"])
    assert torch.equal(output.lengths, golden["out.encoder_out_ds2_lens"])
    assert (encoder.frame_rate, encoder.first_frame_center_ms) == (25, 55.0)
    assert output.hidden_states[0].shape[1] == 55  # always 50 Hz


def test_exact_padding_gives_every_utterance_its_own_output(small):
    golden, metadata = small
    encoder = _encoder(golden, metadata)
    output = encoder(golden["in.fbank"], golden["in.fbank_lens"])
    for index, length in enumerate(output.lengths.tolist()):
        _close(output.encoder_out[index, :length], golden[f"out.solo.{index}"])
    # Nothing in the padding matters, whatever it holds, and neither does the padded length.
    noisy = torch.nn.functional.pad(golden["in.fbank"], (0, 0, 0, 22))
    for row, length in zip(noisy, golden["in.fbank_lens"].tolist()):
        row[length:] = 50.0
    again = encoder(noisy, golden["in.fbank_lens"])
    for index, length in enumerate(output.lengths.tolist()):
        _close(again.encoder_out[index, :length], output.encoder_out[index, :length], 1e-5)
        for one, two in zip(again.hidden_states, output.hidden_states):
            _close(one[index, :length], two[index, :length], 1e-5)
    # The reference padding does not have this property: the test above can fail.
    leaky = _encoder(golden, metadata, padding="reference")(golden["in.fbank"], golden["in.fbank_lens"])
    assert (leaky.encoder_out[2, :13] - golden["out.solo.2"]).abs().max() > 0.1


def test_front_end_steps_on_tiny_input(small):
    golden, metadata = small
    encoder = _encoder(golden, metadata, padding="reference")
    front_end = encoder.encoder_embed
    convolved = front_end.convolve(golden["tiny.fbank"])
    _close(convolved.permute(0, 3, 1, 2), golden["tiny.conv"])
    block = front_end.convnext(convolved)
    _close(block.permute(0, 3, 1, 2), golden["tiny.convnext"])
    _close(front_end.project(block), golden["tiny.out_linear"])
    embedding, lengths = front_end(golden["tiny.fbank"], golden["tiny.fbank_lens"])
    _close(embedding, golden["tiny.embed"])
    assert torch.equal(lengths, golden["tiny.embed_lens"])
    output = encoder(golden["tiny.fbank"], golden["tiny.fbank_lens"])
    _close(output.encoder_out, golden["tiny.encoder_out"])


def test_gradients(small):
    golden, metadata = small
    encoder = _encoder(golden, metadata, padding="reference")
    fbank = golden["in.fbank"].clone().requires_grad_()
    output = encoder(fbank, golden["in.fbank_lens"])
    loss = (output.encoder_out * golden["grad.loss_weight"]).sum()
    _close(loss, golden["grad.loss"], 1e-3)
    loss.backward()
    _close(fbank.grad, golden["grad.fbank"], 1e-5 * golden["grad.fbank"].abs().max().item())
    parameters = dict(encoder.named_parameters())
    checked = 0
    for key, expected in golden.items():
        if key.startswith("grad.param."):
            grad = parameters[key.removeprefix("grad.param.")].grad
            _close(grad, expected, 2e-3 * expected.abs().max().item())
            checked += 1
    assert checked == 26
    names = json.loads(metadata["grad_all_norms_names"])
    norms = torch.stack([parameters[name].grad.norm() for name in names])
    torch.testing.assert_close(norms, golden["grad.all_norms"], rtol=2e-3, atol=1e-6)
    without = {name for name, parameter in parameters.items() if parameter.grad is None}
    assert without == {"mask_emb", *json.loads(metadata["params_without_grad"])}


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize(("chunk", "left"), [(16, 64), (32, 128), (-1, -1)])
def test_causal_outputs(causal, chunk, left, factor):
    golden, metadata = causal
    changes = {"padding": "reference", "output_downsampling_factor": factor, "causal": True}
    encoder = _encoder(golden, metadata, chunk_size=chunk, left_context_frames=left, **changes)
    output, lengths, hidden_states, _ = encoder.encoder(golden["in.embed"], golden["in.embed_lens"])
    key = f"out.chunk{chunk}_left{left}_ds{factor}"
    _close(output, golden[key])
    assert torch.equal(lengths, golden[f"{key}_lens"])
    if (chunk, factor) == (16, 1):
        for index, hidden in enumerate(hidden_states):
            _close(hidden, golden[f"out.layer.{index}"])


def test_causal_gradients(causal):
    golden, metadata = causal
    encoder = _encoder(
        golden, metadata, padding="reference", causal=True, chunk_size=16, left_context_frames=64
    )
    embedding = golden["in.embed"].clone().requires_grad_()
    output, *_ = encoder.encoder(embedding, golden["in.embed_lens"])
    (output * golden["grad.loss_weight"]).sum().backward()
    _close(embedding.grad, golden["grad.embed"], 1e-4 * golden["grad.embed"].abs().max().item())
    parameters = dict(encoder.named_parameters())
    keys = [key for key in golden if key.startswith("grad.param.")]
    assert len(keys) == 3
    for key in keys:
        expected = golden[key]
        grad = parameters[key.removeprefix("grad.param.")].grad
        _close(grad, expected, 1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [("base", 93_289_489, 555), ("large", 326_951_472, 511), ("xlarge", 596_973_362, 599)],
)
def test_sizes_of_the_published_models(name, parameters, tensors):
    config = getattr(ZipformerConfig, name)()
    with torch.device("meta"):
        encoder = SpearEncoder(config)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == parameters
    assert len(encoder.state_dict()) == tensors
    assert not list(encoder.buffers())


@pytest.mark.parametrize("factor", [1, 2])
def test_output_length_of_every_number_of_samples(factor):
    with torch.device("meta"):
        encoder = SpearEncoder(ZipformerConfig.mini(output_downsampling_factor=factor))
    rows = json.loads((GOLDEN / "frame_geometry.json").read_text())["rows"]
    assert len(rows) > 10
    for row in rows:
        expected = row.get("encoder_frames_50hz" if factor == 1 else "encoder_frames_25hz") or 0
        assert encoder.output_length(row["num_samples"]) == expected, row["num_samples"]


def test_unequal_widths_take_the_extra_channels_of_wider_stacks():
    torch.manual_seed(0)
    config = ZipformerConfig.mini(
        downsampling_factor=(1, 2, 4, 2, 1),
        num_encoder_layers=1,
        encoder_dim=(24, 32, 48, 40, 28),
        encoder_unmasked_dim=24,
        feedforward_dim=32,
        cnn_module_kernel=15,
    )
    encoder = SpearEncoder(config).eval()
    x = torch.randn(2, 20, 24)
    output, _, _, stacks = encoder.encoder(x, torch.tensor([20, 15]))
    assert output.shape[-1] == encoder.output_dim == 48
    assert torch.equal(output[..., :28], stacks[4])
    assert torch.equal(output[..., 28:40], stacks[3][..., 28:])
    assert torch.equal(output[..., 40:], stacks[2][..., 40:])
