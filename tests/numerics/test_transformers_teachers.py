"""WavLM and HuBERT teachers against transformers: layers, normalisation, padding, number formats, errors."""

import json
import sys

import pytest
import torch
import transformers
from teacher_fixtures import FAMILIES, SIZES, tiny_checkpoint

from spear_lib.quantization import Quantizer
from spear_lib.teachers import create_teacher, huggingface
from spear_lib.tokens.agreement import token_agreement

DEPTH = 3
KINDS = [(family, size) for family in FAMILIES for size in SIZES]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """(family, size) -> folder."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: tiny_checkpoint(folder / "-".join(kind), *kind, depth=DEPTH) for kind in KINDS}


@pytest.fixture
def copy(checkpoints, tmp_path):
    """A WavLM checkpoint that a test may spoil."""
    return tiny_checkpoint(tmp_path / "spoilt", depth=DEPTH)


def speech_like(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a slow envelope and an offset, (B, N), garbage behind the ends."""
    generator = torch.Generator().manual_seed(sum(lengths))
    waveforms = torch.full((len(lengths), max(lengths)), 0.7)
    for row, length in enumerate(lengths):
        envelope = 0.1 + torch.sin(torch.arange(length) / 3000).abs()
        waveforms[row, :length] = 0.05 * envelope * torch.randn(length, generator=generator) + 0.01 * row
    return waveforms, torch.tensor(lengths)


@torch.no_grad()
def reference(folder, waveform) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """(hidden_states of transformers, raw outputs of the blocks by hooks) of one unpadded utterance."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    blocks = []
    for layer in model.encoder.layers:
        layer.register_forward_hook(
            lambda _, __, output: blocks.append(output[0] if isinstance(output, tuple) else output)
        )
    values = extractor(waveform.numpy(), sampling_rate=16000, return_tensors="pt").input_values
    output = model(values, output_hidden_states=True)
    return [each[0] for each in output.hidden_states], [each[0] for each in blocks]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_every_layer_is_that_of_transformers(checkpoints, kind):
    waveforms, lengths = speech_like(16161)
    hidden, blocks = reference(checkpoints[kind], waveforms[0])
    for layer in range(DEPTH + 1):
        teacher = create_teacher(kind[0], checkpoints[kind], layer=layer)
        embeddings, counts = teacher.embed(waveforms, lengths)
        assert embeddings.shape == (1, 50, 32) and counts.tolist() == [50]
        if layer:
            torch.testing.assert_close(embeddings[0], blocks[layer - 1], atol=1e-5, rtol=1e-5)
        if layer < DEPTH:
            # The last element of hidden_states is normalised in some versions of transformers.
            torch.testing.assert_close(embeddings[0], hidden[layer], atol=1e-5, rtol=1e-5)
        assert len(teacher.model.encoder.layers) == layer


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_embeddings_do_not_see_batch_mates_or_padding(checkpoints, kind):
    teacher = create_teacher(kind[0], checkpoints[kind], layer=2)
    torch.manual_seed(0)
    quantizer = Quantizer(32, 4, 16).eval()
    waveforms, lengths = speech_like(24000, 9000, 399, 15999, 1, 400)
    together, counts = teacher.embed(waveforms, lengths)
    assert counts.tolist() == [74, 27, 0, 49, 0, 1] == [teacher.num_frames(int(each)) for each in lengths]
    assert torch.isfinite(together).all()
    equal = []
    for row, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist())):
        alone, own = teacher.embed(waveforms[row : row + 1, :length], lengths[row : row + 1])
        assert own.tolist() == [count] and not together[row, count:].any()
        torch.testing.assert_close(together[row, :count], alone[0, :count], atol=1e-4, rtol=0)
        equal.append(quantizer.encode(together[row, :count]) == quantizer.encode(alone[0, :count]))
    assert torch.cat(equal).float().mean() >= 0.999
    louder = waveforms.clone()
    louder[1, 9000:] = -3.0
    torch.testing.assert_close(teacher.embed(louder, lengths)[0][1], together[1], atol=1e-5, rtol=0)


def test_padding_does_change_a_base_model_of_transformers(checkpoints):
    """Why the group norm has to be replaced: the test above would fail without."""
    model = transformers.AutoModel.from_pretrained(checkpoints["hubert", "base"]).eval()
    waveform = speech_like(9000)[0]
    padded = torch.nn.functional.pad(waveform, (0, 9000))
    mask = (torch.arange(18000) < 9000).long()[None]
    with torch.no_grad():
        difference = model(padded, attention_mask=mask)[0][:, :27] - model(waveform)[0]
    assert difference.abs().max() > 0.01


@pytest.mark.parametrize("size, scaled_alike", [("large", True), ("base", False)])
def test_loudness_is_taken_out_where_the_checkpoint_says_so(checkpoints, size, scaled_alike):
    teacher = create_teacher("wavlm", checkpoints["wavlm", size])
    assert teacher.do_normalize == scaled_alike
    assert ("variance 1" in teacher.normalisation) == scaled_alike
    torch.manual_seed(0)
    waveforms, lengths = speech_like(32000)
    quantizer = Quantizer(32, 8, 16).eval()
    loud, quiet = teacher.embed(waveforms, lengths)[0], teacher.embed(0.1 * waveforms, lengths)[0]
    equal = float((quantizer.encode(loud) == quantizer.encode(quiet)).float().mean())
    assert (equal > 0.99) == scaled_alike


def test_frame_geometry(checkpoints):
    teacher = create_teacher("wavlm", checkpoints["wavlm", "large"])
    assert (teacher.frame_rate, teacher.first_frame_center_ms, teacher.min_samples) == (50.0, 12.5, 400)
    for num_samples in (*range(0, 2000, 7), *range(2000, 40000, 333), 400, 719, 720, 16000, 160000):
        assert teacher.num_frames(num_samples) == max(0, (num_samples - 400) // 320 + 1)
    # Frame m sees the samples 320 m to 320 m + 399, centre 20 m + 12.5 ms.
    waveform = speech_like(16000)[0].requires_grad_()
    features = teacher.model.feature_extractor(waveform)[0]
    features[:, 7].sum().backward()
    seen = waveform.grad[0].nonzero()[:, 0]
    assert (int(seen.min()), int(seen.max())) == (320 * 7, 320 * 7 + 399)


def test_default_layers_and_names(tmp_path):
    assert [huggingface.default_layer(depth) for depth in (24, 12, 48, 3, 2, 1)] == [21, 9, 42, 3, 2, 1]
    folder = tiny_checkpoint(tmp_path / "large", depth=24)
    teacher = create_teacher("wavlm", folder)
    assert teacher.layer == "output of block 21 of 24, no layer norm after it"
    assert (teacher.field_prefix, teacher.embedding_dim) == ("wavlm_l21", 32)
    waveforms, lengths = speech_like(8000)
    hidden, _ = reference(folder, waveforms[0])
    torch.testing.assert_close(teacher.embed(waveforms, lengths)[0][0], hidden[21], atol=1e-5, rtol=1e-5)
    assert create_teacher("wavlm", folder, layer=-1).field_prefix == "wavlm_l24"


def test_identity_is_that_of_the_weights_layer_and_normalisation(checkpoints, tmp_path):
    make = lambda folder, **options: create_teacher("wavlm", folder, **{"layer": 2, **options})  # noqa: E731
    plain = make(checkpoints["wavlm", "large"])
    old = tiny_checkpoint(tmp_path / "old", depth=DEPTH, old_format=True)
    assert not (old / "model.safetensors").exists()
    assert make(old).id == plain.id
    assert make(old, dtype="bfloat16").id == plain.id
    assert make(old, dtype="bfloat16").describe()["dtype"] == "bfloat16"
    others = [
        make(tiny_checkpoint(tmp_path / "seed", depth=DEPTH, seed=1)),
        make(tiny_checkpoint(tmp_path / "loud", depth=DEPTH, do_normalize=False)),
        make(old, layer=1),
        make(old, window_seconds=20.0),
        make(old, overlap_seconds=1.0),
        create_teacher("hubert", checkpoints["hubert", "large"], layer=2),
    ]
    assert len({plain.id, *(other.id for other in others)}) == 1 + len(others)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_bfloat16_is_measured_against_float32(checkpoints, kind):
    torch.manual_seed(0)
    quantizer = Quantizer(32, 8, 64).eval()
    waveforms, lengths = speech_like(16000, 12000)
    audio = [waveforms[0], waveforms[1, :12000]]
    teacher = create_teacher(kind[0], checkpoints[kind], dtype="bfloat16", layer=2)
    found = token_agreement(teacher, quantizer, audio)
    assert teacher.dtype == "bfloat16" and found.num_frames == 49 + 37
    assert 0.9 < found.equal_tokens <= 1
    assert found.relative_error == pytest.approx(found.relative_error_float32, rel=0.01)
    assert "bfloat16 against float32, 86 frames" in str(found)
    exact = create_teacher(kind[0], checkpoints[kind], layer=2)
    assert token_agreement(exact, quantizer, audio).equal_tokens == 1
    half, full = teacher.embed(waveforms, lengths)[0], exact.embed(waveforms, lengths)[0]
    assert 1e-4 < (half - full).abs().max() < 0.1 * full.abs().max()
    # A caller's own autocast changes nothing.
    with torch.autocast("cpu", torch.bfloat16):
        inside = exact.embed(waveforms, lengths)[0]
    assert torch.equal(inside, exact.embed(waveforms, lengths)[0])
    with pytest.raises(ValueError, match="no recording of the batch is long enough"):
        token_agreement(teacher, quantizer, [waveforms[0, :300], waveforms[1, :200]])


def test_a_checkpoint_of_a_fine_tuned_model_loads(checkpoints, tmp_path):
    """Names with a prefix and heads of their own, as in CTC models."""
    base = checkpoints["hubert", "large"]
    model = transformers.HubertForCTC.from_pretrained(base, vocab_size=7)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text((base / "preprocessor_config.json").read_text())
    assert create_teacher("hubert", tmp_path).id == create_teacher("hubert", base).id


def test_without_a_preprocessor_config_the_published_normalisation_holds(tmp_path):
    for kind, expected in zip(KINDS, (True, False, True, True)):
        folder = tiny_checkpoint(tmp_path / "-".join(kind), *kind, depth=1, do_normalize=not expected)
        assert create_teacher(kind[0], folder).do_normalize != expected
        (folder / "preprocessor_config.json").unlink()
        assert create_teacher(kind[0], folder).do_normalize == expected


def _change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_missing_and_damaged_files_say_what_to_download(copy, tmp_path, checkpoints):
    def refused(message, path=copy, name="wavlm", **options):
        with pytest.raises(ValueError, match=message) as caught:
            create_teacher(name, path, **options)
        assert "\n" not in str(caught.value)

    download = r"download config.json, .*https://huggingface.co/microsoft/wavlm-large into a folder"
    refused(f"no folder {tmp_path}/none with the weights of the wavlm teacher: {download}", tmp_path / "none")
    refused(r"the hubert teacher needs a path .*hubert-large-ll60k; or, .* hub:facebook", "", "hubert")
    refused("holds a wavlm model, not hubert", name="hubert")
    refused(r"layer is 4: the wavlm model in .* has layers 0..3", layer=4)
    refused(r"layer is -5: the wavlm model in .* has layers 0..3", layer=-5)
    weights, config = copy / "model.safetensors", copy / "config.json"
    content = weights.read_bytes()
    weights.write_bytes(content[:-5000])
    refused("the weights in .* cannot be read .*download them again")
    weights.unlink()
    refused(f"has neither model.safetensors nor pytorch_model.bin: {download}")
    weights.write_bytes(content)
    settings = config.read_text()
    _change_json(config, intermediate_size=64)
    refused("does not fit its config.json: 0 weights are missing and 9 have another shape, for example enc")
    config.write_text(settings)
    _change_json(config, num_hidden_layers=4)
    refused("does not fit its config.json: .* weights are missing and 0 have", layer=4)
    assert create_teacher("wavlm", copy, layer=2).layer.startswith("output of block 2 of 4")
    config.write_text(settings[:-20])
    refused("config.json is not valid JSON")
    config.write_text("[]")
    refused("config.json holds a list, not the settings expected there")
    config.unlink()
    refused(f"has no config.json: {download}")
    config.write_text(settings)
    _change_json(copy / "preprocessor_config.json", sampling_rate=8000)
    refused("the model wants 8000 samples per second")
    other = tiny_checkpoint(tmp_path / "hubert", "hubert")
    _change_json(other / "config.json", conv_pos_batch_norm=True)
    refused("batch norm before the positional convolution", other, "hubert")


def test_pickled_code_is_not_run(copy):
    class Trap:
        def __reduce__(self):
            return (open, (str(copy / "trapped"), "w"))

    (copy / "model.safetensors").unlink()
    torch.save({"encoder": Trap()}, copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read"):
        create_teacher("wavlm", copy)
    assert not (copy / "trapped").exists()


def test_a_name_on_the_hub_is_fetched_or_explained(copy, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name: ["config.json", "pytorch_model.bin"])
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **filters: asked.append((name, filters)) or str(copy),
    )
    teacher = create_teacher("wavlm", "hub:microsoft/wavlm-large")
    assert teacher.id == create_teacher("wavlm", copy).id
    patterns = ["config.json", "preprocessor_config.json", "pytorch_model*"]
    assert asked == [("microsoft/wavlm-large", {"allow_patterns": patterns})]

    def unreachable(name):
        raise ConnectionError("no network\nsecond line")

    def cached(name, local_files_only):
        assert local_files_only
        if name != "microsoft/wavlm-large":
            raise FileNotFoundError("not in the cache")
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert create_teacher("wavlm", "hub:microsoft/wavlm-large").id == teacher.id
    with pytest.raises(
        RuntimeError, match=r"hub:me/mine cannot be fetched \(no network\): download .*co/me/mine"
    ):
        create_teacher("wavlm", "hub:me/mine")


def test_without_transformers_one_line_says_what_to_install(checkpoints, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        RuntimeError, match="needs the package transformers: pip install 'transformers>=4.45'"
    ):
        create_teacher("wavlm", checkpoints["wavlm", "large"])
