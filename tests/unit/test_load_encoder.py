"""Reading and writing encoders: our folders and checkpoints, the authors' files, and what goes wrong."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from zipformer_fixtures import TINY as THREE_STACKS

from spear_lib import load_encoder
from spear_lib.encoders import encoder_id, save_encoder
from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.encoders.zipformer.published import config_from_shapes

TINY = {
    **THREE_STACKS,
    "downsampling_factor": (1, 2),
    "num_encoder_layers": (1, 2),
    "cnn_module_kernel": (7, 5),
}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SpearEncoder(ZipformerConfig(**TINY)).eval()


def _same_output(one, two):
    fbank, lengths = torch.randn(2, 40, 128), torch.tensor([40, 21])
    assert torch.equal(one(fbank, lengths).encoder_out, two(fbank, lengths).encoder_out)


def test_own_folder(encoder, tmp_path):
    save_encoder(encoder.train(), tmp_path / "encoder", {"step": 5, "quantizer_ids": ["abc"]})
    loaded = load_encoder(tmp_path / "encoder")
    assert not loaded.training and loaded.config == encoder.config
    assert loaded.provenance == {"step": 5, "quantizer_ids": ["abc"]}
    assert encoder_id(loaded) == encoder_id(encoder)
    _same_output(loaded, encoder.eval())
    assert sorted(path.name for path in (tmp_path / "encoder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    reference = load_encoder(str(tmp_path / "encoder"), padding="reference")
    assert reference.config.padding == "reference" and encoder_id(reference) == encoder_id(encoder)


def test_identity_follows_weights_and_structure(encoder):
    identity = encoder_id(encoder)
    with torch.no_grad():
        encoder.encoder.encoders[0].layers[0].norm.bias[3] += 1.0
    assert encoder_id(encoder) != identity
    other = SpearEncoder(
        ZipformerConfig(**{**TINY, "num_heads": 4, "query_head_dim": 4, "value_head_dim": 6})
    )
    assert encoder_id(other) != identity


@pytest.mark.parametrize("config", [TINY, ZipformerConfig(**TINY)])
def test_config_gives_a_new_encoder(config):
    loaded = load_encoder(config, padding="reference")
    assert not loaded.training and loaded.config.padding == "reference"
    assert loaded.config.per_stack("encoder_dim") == (32, 32)


def test_own_training_checkpoint(encoder, tmp_path):
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    state["heads.speech.weight"] = torch.zeros(3)
    content = {"version": 1, "model": state, "encoder_config": TINY, "step": 12}
    torch.save(content, tmp_path / "step-12.pt")
    loaded = load_encoder(tmp_path / "step-12.pt")
    assert loaded.config == encoder.config and loaded.provenance["step"] == 12
    _same_output(loaded, encoder)


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoint_of_the_authors(tmp_path, prefix, factor, caplog):
    encoder = SpearEncoder(ZipformerConfig(**TINY, output_downsampling_factor=factor)).eval()
    state = {f"{prefix}{name}": value for name, value in encoder.state_dict().items()}
    state[f"{prefix}codebook_loss_net.linear1.weight"] = torch.zeros(2)
    torch.save({"model": state}, tmp_path / "iter-4000.pt")
    with caplog.at_level(logging.INFO):
        loaded = load_encoder(tmp_path / "iter-4000.pt")
    assert "left out what does not belong to the encoder: codebook_loss_net" in caplog.text
    assert loaded.config.output_downsampling_factor == factor
    assert loaded.config.cnn_module_kernel == (7, 5) and loaded.config.downsampling_factor == (1, 2)
    _same_output(loaded, encoder)


@pytest.mark.parametrize("prefix", ["model.", "model.model."])
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_hugging_face_folder(encoder, tmp_path, prefix, weights):
    state = {prefix + name: value for name, value in encoder.state_dict().items()}
    if weights.endswith(".safetensors"):
        save_file(state, tmp_path / weights)
    else:
        torch.save(state, tmp_path / weights)
    settings = {
        "model_type": "spear",
        "downsampling_factor": "1,2",
        "num_encoder_layers": "1,2",
        "encoder_dim": "32",
        "feedforward_dim": "48,48",
        "encoder_unmasked_dim": "20,20",
        "num_heads": "2",
        "causal": False,
        "chunk_size": -1,
        "output_downsampling_factor": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    loaded = load_encoder(tmp_path)
    assert loaded.config.per_stack("encoder_unmasked_dim") == (20, 20)
    _same_output(loaded, encoder)
    (tmp_path / "config.json").write_text(json.dumps({**settings, "feedforward_dim": "96,96"}))
    with pytest.raises(ValueError, match=r"feedforward_dim = \(96, 96\), its weights have \(48, 48\)"):
        load_encoder(tmp_path)


def test_hugging_face_settings_of_the_published_kind(tmp_path):
    """All lists as comma-separated strings, the "model.model." prefix, the names of the released config."""
    config = ZipformerConfig.base(
        encoder_dim=(16,), feedforward_dim=(24,), encoder_unmasked_dim=(8,), frontend_channels=(1, 2, 3)
    )
    encoder = SpearEncoder(config).eval()
    save_file(
        {f"model.model.{k}": v for k, v in encoder.state_dict().items()}, tmp_path / "model.safetensors"
    )
    settings = {
        "model_type": "spear",
        "num_mel_bins": 128,
        "downsampling_factor": "1,2,4,8,4,2,1",
        "num_encoder_layers": "1,2,3,3,1,1,1",
        "feedforward_dim": "24,24,24,24,24,24,24",
        "num_heads": "8,8,8,8,8,8,8",
        "encoder_dim": "16,16,16,16,16,16,16",
        "encoder_unmasked_dim": "8,8,8,8,8,8,8",
        "cnn_module_kernel": "31,31,15,15,15,31,31",
        "causal": False,
        "chunk_size": "16,32,64,-1",
        "left_context_frames": "64,128,256,-1",
        "output_downsampling_factor": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    loaded = load_encoder(tmp_path)
    assert loaded.config.per_stack("encoder_unmasked_dim") == 7 * (8,)
    assert loaded.config.cnn_module_kernel == (31, 31, 15, 15, 15, 31, 31)
    assert loaded.config.num_encoder_layers == (1, 2, 3, 3, 1, 1, 1)
    _same_output(loaded, encoder)
    (tmp_path / "config.json").write_text(json.dumps({**settings, "num_encoder_layers": "1,2,2,3,1,1,1"}))
    with pytest.raises(ValueError, match=r"num_encoder_layers = \(1, 2, 2, .*its weights have \(1, 2, 3,"):
        load_encoder(tmp_path)


def test_a_checkpoint_of_another_size_says_what_differs(encoder, tmp_path):
    """Weights of one size under the settings of another: every tensor that does not fit is listed."""
    save_encoder(encoder, tmp_path, {})
    larger = SpearEncoder(ZipformerConfig(**{**TINY, "encoder_dim": 40, "num_encoder_layers": (1, 1)}))
    save_file(larger.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit the encoder") as error:
        load_encoder(tmp_path)
    text = str(error.value)
    missing = [name for name in encoder.state_dict() if ".layers.1." in name]
    assert f"missing ({len(missing)}): " in text and all(name in text for name in missing)
    assert "unexpected (0): none" in text
    assert "encoder_embed.out.weight (40, 124) instead of (32, 124)" in text
    state = {f"encoder.{name}": value for name, value in larger.state_dict().items()}
    torch.save({"model": state, "encoder_config": TINY}, tmp_path / "step.pt")
    with pytest.raises(ValueError, match=r"step\.pt does not fit the encoder"):
        load_encoder(tmp_path / "step.pt")


def test_incomplete_checkpoint_of_the_authors(encoder, tmp_path):
    state = dict(encoder.state_dict())
    del state["encoder.encoders.0.layers.0.norm.bias"]
    torch.save({"model": state}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"missing \(1\): encoder\.encoders\.0\.layers\.0\.norm\.bias\n"):
        load_encoder(tmp_path / "x.pt")
    del state["encoder.encoders.0.layers.0.self_attn1.in_proj.weight"]
    torch.save({"model": state}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"no tensor encoder\..*self_attn1\.in_proj\.weight.*not a complete"):
        load_encoder(tmp_path / "x.pt")


def test_causal_shapes():
    config = ZipformerConfig(**TINY, causal=True, chunk_size=(16,), left_context_frames=(64,))
    found = config_from_shapes(
        SpearEncoder(config).state_dict(),
        chunk_size=(16,),
        left_context_frames=(64,),
        encoder_unmasked_dim=20,
    )
    assert all(found.per_stack(name) == config.per_stack(name) for name in ("cnn_module_kernel", "num_heads"))
    assert found.causal and found.chunk_size == (16,)


@pytest.mark.parametrize("name", ["base", "large", "xlarge"])
def test_shapes_of_the_published_sizes(name):
    config = getattr(ZipformerConfig, name)()
    with torch.device("meta"):
        state = SpearEncoder(config).state_dict()
    found = config_from_shapes(state)
    for field in ("downsampling_factor", "num_encoder_layers", "encoder_dim", "feedforward_dim"):
        assert found.per_stack(field) == config.per_stack(field)
    for field in ("num_heads", "query_head_dim", "value_head_dim", "encoder_unmasked_dim"):
        assert found.per_stack(field) == config.per_stack(field)
    assert found.frontend_channels == config.frontend_channels


def test_all_names_that_do_not_fit_are_listed(encoder, tmp_path):
    save_encoder(encoder, tmp_path, {})
    state = dict(encoder.state_dict())
    state["encoder_embed.out.bias"] = torch.zeros(7)
    del state["mask_emb"], state["encoder.encoders.0.layers.0.norm.bias"]
    state["encoder.surplus.one"] = state["encoder.surplus.two"] = torch.zeros(1)
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        load_encoder(tmp_path)
    text = str(error.value)
    assert "missing (2): encoder.encoders.0.layers.0.norm.bias, mask_emb" in text
    assert "unexpected (2): encoder.surplus.one, encoder.surplus.two" in text
    assert "wrong shape (1): encoder_embed.out.bias (7,) instead of (32,)" in text


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no encoder at .*missing.*config.json"):
        load_encoder(tmp_path / "missing")


def test_folder_without_parts(encoder, tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_encoder(tmp_path)
    save_encoder(encoder, tmp_path, {})
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has none of model\.safetensors"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "is not valid JSON"),
        ("[1]", "holds a list, not the settings"),
        ('{"format": "spear_lib", "encoder": "wavlm", "config": {}}', "encoder 'wavlm'; this version reads"),
        (
            '{"format": "spear_lib", "encoder": "zipformer", "config": {"encoder_dims": 3}}',
            "unknown encoder settings: encoder_dims; known ones: .*encoder_dim,",
        ),
    ],
)
def test_bad_config_file(encoder, tmp_path, content, message):
    save_encoder(encoder, tmp_path, {})
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_encoder(tmp_path)


def test_damaged_weights(encoder, tmp_path):
    save_encoder(encoder, tmp_path, {})
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        load_encoder(tmp_path)
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match="cut.pt is not a whole PyTorch file|cut.pt holds Python objects"):
        load_encoder(tmp_path / "cut.pt")


class _Surprise:
    pass


def test_python_objects_are_not_loaded(encoder, tmp_path):
    torch.save({"model": encoder.state_dict(), "params": _Surprise()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds Python objects besides tensors.*for safety"):
        load_encoder(tmp_path / "x.pt")


def test_file_of_something_else(tmp_path):
    torch.save({"model": {"decoder.weight": torch.zeros(1)}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"holds no SPEAR encoder.*first names: decoder\.weight"):
        load_encoder(tmp_path / "x.pt")
    torch.save([1, 2], tmp_path / "y.pt")
    with pytest.raises(ValueError, match="holds a list, not a checkpoint"):
        load_encoder(tmp_path / "y.pt")


def test_extract_gives_what_the_features_give(encoder):
    from spear_lib.features.fbank import FbankExtractor

    waveforms, lengths = 0.1 * torch.randn(2, 16000), torch.tensor([16000, 9000])
    output = encoder.extract(waveforms, lengths)
    fbank, num_frames = FbankExtractor()(waveforms, lengths)
    assert torch.equal(output.encoder_out, encoder(fbank, num_frames).encoder_out)
    assert output.lengths.tolist() == [encoder.output_length(16000), encoder.output_length(9000)] == [46, 24]
    with pytest.raises(ValueError, match=r"lengths\[1\] is 1359, outside 1360..16000 samples"):
        encoder.extract(waveforms, torch.tensor([16000, 1359]))
    with pytest.raises(ValueError, match=r"waveforms must be \(B, N\)"):
        encoder.extract(waveforms[0], lengths)
