"""SpidR's encoder: golden numbers of the reference, published names, files, batches, initial weights."""

import json
import math

import pytest
import torch
from spidr_fixtures import GOLDEN, TOY, assert_near, golden, toy_encoder

from spear_lib.encoders import encoder_id, load_encoder, save_encoder
from spear_lib.encoders.spidr import SpidrConfig, SpidrEncoder
from spear_lib.encoders.spidr.dropout import KeyedDropout, keep_elements
from spear_lib.encoders.spidr.extractor import standardise
from spear_lib.encoders.step_context import StepContext
from spear_lib.runtime.keyed_random import bits, keys


@pytest.fixture
def inputs():
    return golden("equal_inputs")


def full(waveforms):
    return torch.full((waveforms.shape[0],), waveforms.shape[1])


def hidden(time_mask):
    """Frames of 20 ms (B, T) as a mask of fbank frames."""
    return time_mask.repeat_interleave(2, dim=1)


def test_waveforms_are_standardised_per_utterance(inputs):
    raw = inputs["waveform_raw"]
    assert_near(standardise(raw, full(raw)), inputs["waveform"], "waveform")
    padded = torch.nn.functional.pad(raw, (0, 777))
    assert torch.allclose(standardise(padded, full(raw))[:, :-777], inputs["waveform"], atol=1e-5)
    assert standardise(padded, full(raw))[:, -777:].abs().max() == 0


def test_a_quiet_waveform_is_scaled_by_less(inputs):
    noise = torch.randn(1, 100_000)
    quiet = 0.01 * (noise - noise.mean()) / noise.std(correction=0)
    assert standardise(quiet, full(quiet)).std().item() == pytest.approx(1 / math.sqrt(1.1), rel=1e-3)


def test_golden_forward(inputs):
    expected, encoder = golden("equal_outputs"), toy_encoder().train()
    waveforms = inputs["waveform"]
    assert_near(encoder.feature_extractor(waveforms), expected["extractor"], "extractor")
    x, frames, valid = encoder.project(waveforms, full(waveforms))
    assert_near(x, expected["features"], "features")
    assert frames.tolist() == [x.shape[1]] * len(x) and valid is None
    x = encoder.hide(x, inputs["mask"])
    assert_near(x, expected["student_input"], "student_input")
    assert_near(encoder.student.pos_conv_embed(x, None), expected["student.pos_conv"], "positions")
    output = encoder(waveforms, full(waveforms), hidden(inputs["mask"]))
    for number, added in enumerate(output.hidden_states, 1):
        assert_near(added, expected[f"student.layer{number}.ffn_out"], f"layer {number}")
    assert_near(output.encoder_out, expected["student.layer4.block_out"], "block 4")


def test_golden_features_and_posteriors(inputs):
    expected, encoder = golden("equal_outputs"), toy_encoder().eval()
    waveforms = inputs["waveform_raw"]
    output = encoder.extract(waveforms, full(waveforms))
    for number, added in enumerate(output.hidden_states, 1):
        assert_near(added, expected[f"features_eval.layer{number}"], f"layer {number}")
    posteriors = encoder.posteriors(output)
    assert list(posteriors) == [2, 3, 4]
    for number, values in posteriors.items():
        assert_near(values, expected[f"posteriors_eval.layer{number}"], f"posteriors {number}")
    units = encoder.units(output)
    assert torch.equal(units[..., 1], posteriors[3].argmax(-1)) and units.shape[2] == 3


def test_golden_dinosr_output(inputs):
    expected, encoder = golden("dinosr"), toy_encoder(heads_on="output").eval()
    waveforms = inputs["waveform"]
    output = encoder(waveforms, full(waveforms), hidden(inputs["mask"]))
    assert_near(output.encoder_out, expected["student_out"], "student_out")
    assert all(x is output.encoder_out for x in encoder.head_inputs(output.hidden_states, output.encoder_out))


def test_an_utterance_is_what_it_is_alone():
    expected, encoder = golden("ragged"), toy_encoder().eval()
    waveforms = [expected[f"u{j}.waveform_raw"].flatten() for j in range(3)]
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    batch = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    batch = torch.nn.functional.pad(batch, (0, 4321))
    batch[0, lengths[0] :] = 7.0  # whatever stands there
    masks = [expected[f"u{j}.mask"].flatten() for j in range(3)]
    mask = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True)
    output = encoder.extract(batch, lengths, hidden(mask))
    for j, frames in enumerate(output.lengths.tolist()):
        assert frames == len(masks[j])
        for number, added in enumerate(output.hidden_states, 1):
            wanted = expected[f"u{j}.student.layer{number}.ffn_out"].flatten(0, -2)
            assert_near(added[j, :frames], wanted, f"utterance {j} layer {number}")


def test_published_names_shapes_and_sizes():
    published = json.loads((GOLDEN / "published_names_and_shapes.json").read_text())
    encoder = SpidrEncoder(SpidrConfig.base())
    own = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    training_only = ("teacher.", "codebooks.", "current_step")
    expected = {
        name: tuple(value["shape"]) for name, value in published.items() if not name.startswith(training_only)
    }
    assert own == expected
    assert sum(p.numel() for p in encoder.parameters()) == 94_711_552
    assert sum(p.numel() for p in encoder.student.parameters()) == 88_534_272


def test_a_published_file_is_an_encoder(tmp_path, inputs, caplog):
    weights = {**golden("weights"), "current_step": torch.ones(1, dtype=torch.int64)}
    for name, heads_on in (("spidr_base.pt", "layers"), ("dinosr_base_reproduced.pt", "output")):
        torch.save({"model": weights}, tmp_path / name)
        encoder = load_encoder(tmp_path / name, num_heads=2)
        wanted = SpidrConfig(**{**TOY, "heads_on": heads_on, "dropout": 0.1, "attention_dropout": 0.1})
        assert encoder.config.structure() == wanted.structure()
        output = encoder.extract(inputs["waveform_raw"], full(inputs["waveform_raw"]))
        expected = golden("equal_outputs")["features_eval.layer3"]
        assert_near(output.hidden_states[2], expected, name)
    # The golden weights have a last norm that was trained, which SpidR's never is.
    assert any("heads_on='output'" in record.message for record in caplog.records)
    asked = load_encoder(tmp_path / "spidr_base.pt", num_heads=2, heads_on="output", layerdrop=0.05)
    assert asked.config == encoder.config


def fairseq_form(encoder):
    """The state dict as the original DinoSR names it; written from the specification."""
    state = {}
    for name, value in encoder.state_dict().items():
        parts = name.split(".")
        if parts[0] == "mask_embedding":
            state["mask_emb"] = value
        elif parts[0] == "feature_extractor":
            inner = "0" if parts[3] == "conv" else "2.1"
            state[".".join([*parts[:3], inner, parts[4]])] = value
        elif parts[0] == "feature_projection":
            state[f"{'post_extract_proj' if parts[1] == 'projection' else 'layer_norm'}.{parts[2]}"] = value
        elif name.startswith("student.pos_conv_embed"):
            state[f"encoder.pos_conv.{parts[3]}.0.{parts[4]}"] = value
        elif name.startswith("student.layer_norm"):
            state[f"encoder.layer_norm.{parts[2]}"] = value
        elif "attention.qkv" in name:
            for part, third in zip("qkv", value.chunk(3)):
                state[f"encoder.layers.{parts[2]}.self_attn.{part}_proj.{parts[5]}"] = third
        elif parts[0] == "student":
            theirs = {
                "attention.proj": "self_attn.out_proj",
                "layer_norm": "self_attn_layer_norm",
                "feed_forward.intermediate_dense": "fc1",
                "feed_forward.output_dense": "fc2",
                "final_layer_norm": "final_layer_norm",
            }
            state[f"encoder.layers.{parts[2]}.{theirs['.'.join(parts[3:-1])]}.{parts[-1]}"] = value
        else:
            state[name] = value
    return state


def test_the_fairseq_form_of_dinosr(tmp_path, inputs):
    torch.manual_seed(3)
    encoder = toy_encoder().eval()
    encoder = SpidrEncoder(SpidrConfig(**{**TOY, "qkv_bias": True, "heads_on": "output"})).eval()
    for block in encoder.student.layers:
        torch.nn.init.normal_(block.attention.qkv.bias)
    state = fairseq_form(encoder)
    state |= {"_codebook0": torch.randn(16, 32), "_codebook_cnts0": torch.ones(16)}
    state |= {"_ema.layers.0.fc1.weight": torch.randn(80, 32)}
    torch.save({"model": state}, tmp_path / "original.pt")
    loaded = load_encoder(tmp_path / "original.pt", num_heads=2)
    assert loaded.config.qkv_bias and loaded.config.heads_on == "output"
    waveforms = inputs["waveform_raw"]
    one, two = (each.extract(waveforms, full(waveforms)) for each in (encoder, loaded))
    assert torch.equal(one.encoder_out, two.encoder_out)
    assert torch.equal(encoder.units(one), loaded.units(two))


def test_a_file_without_a_tensor_is_refused(tmp_path):
    weights = golden("weights")
    del weights["student.layers.2.attention.proj.bias"]
    torch.save({"model": weights}, tmp_path / "spidr.pt")
    with pytest.raises(ValueError, match="missing.*student.layers.2.attention.proj.bias"):
        load_encoder(tmp_path / "spidr.pt", num_heads=2)
    torch.save({"model": {"student.layers.0.attention.qkv.weight": torch.ones(2)}}, tmp_path / "spidr.pt")
    with pytest.raises(ValueError, match="no whole SpidR encoder"):
        load_encoder(tmp_path / "spidr.pt")


def test_own_folder(tmp_path):
    encoder = toy_encoder()
    save_encoder(encoder, tmp_path / "encoder", {})
    loaded = load_encoder(tmp_path / "encoder")
    assert loaded.config == encoder.config and encoder_id(loaded) == encoder_id(encoder)


def test_initial_weights():
    """Section 2.7 of the specification, for D = 768."""
    torch.manual_seed(0)
    encoder = SpidrEncoder(SpidrConfig.base(num_layers=8))
    state = encoder.state_dict()
    bounds = {
        "student.layers.1.attention.qkv.weight": 0.03125,
        "student.layers.1.attention.proj.weight": 0.0625,
        "feature_projection.projection.weight": 0.0442,
        "heads.0.0.weight": 0.0361,
        "heads.0.0.bias": 0.0361,
        "student.pos_conv_embed.convs.2.weight": 0.0331,
    }
    for name, bound in bounds.items():
        assert state[name].abs().max().item() == pytest.approx(bound, rel=0.02), name
        assert state[name].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.06), name
    spreads = {
        "feature_extractor.conv_layers.0.conv.weight": 0.447,
        "feature_extractor.conv_layers.1.conv.weight": 0.0361,
        "student.layers.1.feed_forward.intermediate_dense.weight": 0.02,
        "student.layers.1.feed_forward.output_dense.weight": 0.02,
    }
    for name, spread in spreads.items():
        assert state[name].std().item() == pytest.approx(spread, rel=0.02), name
    assert state["student.layers.1.attention.proj.bias"].abs().max() == 0
    assert state["mask_embedding"].min() >= 0 and state["mask_embedding"].mean().item() == pytest.approx(
        0.5, abs=0.05
    )
    assert "student.layers.1.attention.qkv.bias" not in state


def stochastic(**changes):
    torch.manual_seed(1)
    changes = {"dropout": 0.1, "attention_dropout": 0.1, "layerdrop": 0.3} | changes
    return SpidrEncoder(SpidrConfig(**{**TOY, **changes})).train()


def test_a_training_step_depends_on_the_keys_alone(inputs):
    encoder, waveforms = stochastic(), inputs["waveform"]
    both = keys("test", ids=["a", "b", "c"])

    def output(rows, step=5, padding=0):
        encoder.begin_step(1.0, step, both[rows])
        part = torch.nn.functional.pad(waveforms[rows], (0, padding))
        return encoder(part, torch.full((len(rows),), waveforms.shape[1])).encoder_out[:, :31]

    together = output([0, 1])
    assert torch.equal(together, output([0, 1], step=6))  # an utterance comes once per epoch
    assert not torch.allclose(together, encoder.eval()(waveforms, full(waveforms)).encoder_out[:2, :31])
    encoder.train()
    for swapped in (
        output([1, 0]).flip(0),
        torch.cat([output([0]), output([1])]),
        output([0, 1], padding=999),
    ):
        assert torch.allclose(together, swapped, atol=1e-5)
    with pytest.raises(RuntimeError, match="begin_step"):
        encoder(waveforms, full(waveforms))


def test_layerdrop_removes_the_effect_on_the_next_block_alone(inputs):
    encoder, waveforms = (
        stochastic(dropout=0.0, attention_dropout=0.0, layerdrop=0.999999),
        inputs["waveform"],
    )
    encoder.begin_step(1.0, 5, keys("test", ids=["a", "b", "c"]))
    output = encoder(waveforms, full(waveforms))
    x, _, _ = encoder.project(waveforms, full(waveforms))
    start = encoder.student.layer_norm(x + encoder.student.pos_conv_embed(x, None))
    assert torch.allclose(output.encoder_out, start, atol=1e-6)
    for block, added in zip(encoder.student.layers, output.hidden_states):
        assert torch.allclose(added, block(start, None)[0], atol=1e-5) and added.abs().max() > 1e-3


def test_dropout_drops_its_share_everywhere():
    frames = bits(torch.arange(4000).view(4, 1000), 17)
    kept = keep_elements(frames, 96, 0.1)
    assert kept.float().mean().item() == pytest.approx(0.9, abs=0.002)
    for dims in ((0, 1), (0, 2), (1, 2)):
        spread = (kept.float().mean(dims) - 0.9).abs().max().item()
        assert spread < 5.5 * 0.3 * (kept.shape[3 - sum(dims)] / kept.numel()) ** 0.5
    context = StepContext()
    dropout = KeyedDropout(context, 0.2).train()
    context.begin(0.0, 1, torch.arange(4))
    assert dropout(torch.ones(4, 500, 64)).mean().item() == pytest.approx(1.0, abs=0.01)
    assert dropout.eval()(torch.ones(1, 2, 3)).eq(1).all()


@pytest.mark.parametrize("masked", [True, False])
def test_every_parameter_gets_a_gradient(inputs, masked):
    encoder, waveforms = toy_encoder().train(), inputs["waveform"]
    mask = hidden(inputs["mask"]) if masked else None
    encoder(waveforms, full(waveforms), mask).encoder_out.sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "zipformer"}, "'spidr'"),
        ({"num_heads": 3}, "multiple of num_heads 3"),
        ({"num_codebooks": 5}, "from 1 to num_layers = 4"),
        ({"heads_on": "block"}, "layers or output"),
        ({"dropout": 1.0}, r"in \[0, 1\)"),
        ({"codebook_size": 0}, "at least 1"),
    ],
)
def test_a_bad_configuration_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SpidrConfig(**{**TOY, **changes})


def test_bad_input_is_refused(inputs):
    encoder = toy_encoder().eval()
    with pytest.raises(ValueError, match="at 16 kHz, not features"):
        encoder.extract(torch.zeros(1, 10, 128), torch.tensor([10]))
    with pytest.raises(ValueError, match="399"):
        encoder.extract(torch.zeros(2, 800), torch.tensor([800, 399]))
