"""ONNX export: the same numbers as PyTorch, the same text from three runtimes, refusals."""

import json
import sys

import onnx
import pytest
import soundfile
import torch
from asr_fixtures import TINY_ENCODER

from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.asr.searcher import SearchConfig, Searcher
from spear_lib.asr.units import TextUnits, character_units, train_bpe
from spear_lib.bin import decode, export_onnx, transcribe
from spear_lib.encoders import load_encoder, save_encoder
from spear_lib.sharing.onnx import encoders, export, files
from spear_lib.sharing.onnx.export import export_encoder, export_transducer, token_lines
from spear_lib.sharing.onnx.runtime import OnnxPart, OnnxTransducer, TokenTable


def call(module, *arguments: object) -> None:
    module.main(list(map(str, arguments)))


def tiny_model(**changes) -> AsrModel:
    """A model of random weights whose layers all matter."""
    torch.manual_seed(0)
    heads = TransducerConfig(decoder_dim=32, joiner_dim=24)
    model = AsrModel(load_encoder({**TINY_ENCODER, **changes}), heads, character_units().vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def exported(trained_toy, tmp_path_factory):
    """The folder of the toy model, exported by the command, 8-bit weights and word error rates included."""
    folder = tmp_path_factory.mktemp("onnx") / "exported"
    arguments = ("--experiment_dir", trained_toy["experiment"], "--average", 0, "--int8", "true")
    call(export_onnx, *arguments, "--output_dir", folder, "--cuts", f'["{trained_toy["cuts"]}"]')
    return folder


WIDE = {"downsampling_factor": [1, 2, 4], "encoder_dim": [32, 48, 32], "num_encoder_layers": [1]}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {**WIDE, "output_downsampling_factor": 2},
        {"causal": True, "chunk_size": [16], "left_context_frames": [64]},
    ],
    ids=["plain", "25 Hz", "causal"],
)
def test_files_compute_what_pytorch_does(changes, tmp_path):
    model = tiny_model(**changes)
    differences = export_transducer(model, character_units(), tmp_path / "onnx")
    assert sorted(differences) == ["decoder.onnx", "encoder.onnx", "joiner.onnx"]
    assert max(differences.values()) < 2e-5
    # Sizes that were neither recorded nor verified by the export itself.
    part = OnnxPart(tmp_path / "onnx" / "encoder.onnx")
    for batch, frames in ((1, 10), (4, 123), (1, 500)):
        fbank = torch.randn(batch, frames, 128)
        lengths = torch.linspace(frames, 9, batch).long()
        with torch.no_grad():
            expected = model.encoder(fbank, lengths)
            ours = model.joiner.encoder_proj(expected.encoder_out)
        found, found_lengths = part(x=fbank, x_lens=lengths)
        assert torch.equal(found_lengths, expected.lengths)
        for row, length in enumerate(expected.lengths.tolist()):
            torch.testing.assert_close(found[row, :length], ours[row, :length], rtol=0, atol=2e-5)


def test_an_encoder_with_all_its_layers(tmp_path):
    encoder = tiny_model(**WIDE, output_downsampling_factor=2).encoder
    save_encoder(encoder, tmp_path / "encoder", {})
    arguments = ("--encoder", tmp_path / "encoder", "--output_dir", tmp_path / "onnx", "--layers", "true")
    call(export_onnx, *arguments, "--int8", "true")
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {"encoder.onnx", "encoder.int8.onnx"}
    graph = onnx.load(tmp_path / "onnx" / "encoder.onnx").graph
    assert [output.name for output in graph.output][2:] == ["layer_01", "layer_02", "layer_03"]
    fbank, lengths = torch.randn(2, 201, 128), torch.tensor([201, 90])
    with torch.no_grad():
        expected = encoder(fbank, lengths)
    for name, limit in (("encoder.onnx", 2e-5), ("encoder.int8.onnx", 1.0)):
        _, _, *layers = OnnxPart(tmp_path / "onnx" / name)(x=fbank, x_lens=lengths)
        for mine, other in zip(expected.hidden_states, layers, strict=True):
            assert mine.shape == other.shape
            for row, frames in enumerate(((lengths - 7) // 2).tolist()):
                assert (mine[row, :frames] - other[row, :frames]).abs().mean() < limit
    with pytest.raises(ValueError, match="layers is for an encoder alone"):
        call(export_onnx, "--experiment_dir", "x", "--output_dir", "y", "--layers", "true")


def test_a_size_that_became_a_constant_is_found(tmp_path, monkeypatch):
    """The check of the export can fail: here recording is not noticed, and sizes of the example stay."""
    monkeypatch.setattr("spear_lib.encoders.zipformer.modules.recording", lambda: False)
    with pytest.raises(RuntimeError, match=r"encoder\.onnx (cannot be run on|gives|\(batch)"):
        export_transducer(tiny_model(), character_units(), tmp_path / "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("module", "name"), [(encoders, "encoder"), (export, "decoder")])
def test_wrong_numbers_are_found(module, name, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "check_equal", lambda *values: files.check_equal(*values[:3], 0.0))
    with pytest.raises(RuntimeError, match=f"{name}.onnx .*differs from PyTorch by .*nothing was written"):
        export_transducer(tiny_model(), character_units(), tmp_path / "onnx")


def test_metadata_names_and_axes_are_those_of_sherpa(exported):
    facts = {}
    for name, inputs, outputs in (
        ("encoder", {"x": ["N", "T", 128], "x_lens": ["N"]}, {"encoder_out": 64, "encoder_out_lens": None}),
        ("decoder", {"y": ["N", 2]}, {"decoder_out": 64}),
        ("joiner", {"encoder_out": ["N", 64], "decoder_out": ["N", 64]}, {"logit": 29}),
    ):
        model = onnx.load(exported / f"{name}.onnx")
        onnx.checker.check_model(model)
        assert {
            i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim]
            for i in model.graph.input
        } == inputs
        for output in model.graph.output:
            width = outputs[output.name]
            assert width is None or output.type.tensor_type.shape.dim[-1].dim_value == width
        facts[name] = {entry.key: entry.value for entry in model.metadata_props}
    expected = {"model_type": "zipformer2", "version": "1", "model_author": "spear_lib", "feature_dim": "128"}
    assert expected.items() <= facts["encoder"].items() and facts["encoder"]["comment"]
    assert facts["decoder"] == {"context_size": "2", "vocab_size": "29"}
    assert facts["joiner"] == {"joiner_dim": "64"}
    lines = (exported / "tokens.txt").read_text().splitlines()
    assert lines[:3] == ["<blk> 0", "▁ 1", "' 2"] and lines[-1] == "Z 28"


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_exported_files_write_the_text_of_pytorch(method, trained_toy, exported, capsys, tmp_path):
    texts = {}
    for name, folder in (("torch", trained_toy["experiment"]), ("onnx", exported)):
        arguments = ("--search.method", method, "--average", 0, "--output_dir", tmp_path / name)
        call(transcribe, trained_toy["folder"], "--experiment_dir", folder, *arguments)
        texts[name] = capsys.readouterr().out.splitlines()
    assert texts["torch"] == texts["onnx"] and len(texts["onnx"]) == 12 and all(texts["onnx"])
    first, second = (json.loads((tmp_path / name / "dev-000.json").read_text()) for name in texts)
    assert first["weights_hash"] == second["weights_hash"]
    assert [word["start"] for word in first["words"]] == [word["start"] for word in second["words"]]


@pytest.mark.parametrize("method", ["greedy_search", "modified_beam_search"])
def test_sherpa_onnx_writes_the_same_text(method, trained_toy, exported, capsys):
    import sherpa_onnx

    ours = {"greedy_search": "greedy", "modified_beam_search": "beam"}[method]
    arguments = ("--experiment_dir", exported, "--search.method", ours)
    call(transcribe, trained_toy["folder"], *arguments)
    expected = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    recogniser = sherpa_onnx.OfflineRecognizer.from_transducer(
        encoder=str(exported / "encoder.onnx"),
        decoder=str(exported / "decoder.onnx"),
        joiner=str(exported / "joiner.onnx"),
        tokens=str(exported / "tokens.txt"),
        feature_dim=128,
        decoding_method=method,
    )
    streams = []
    for path in expected:
        samples, rate = soundfile.read(path, dtype="float32")
        streams.append(recogniser.create_stream())
        streams[-1].accept_waveform(rate, samples)
    recogniser.decode_streams(streams)
    assert [stream.result.text.strip() for stream in streams] == list(expected.values())


def test_eight_bits_write_nearly_the_same(trained_toy, exported):
    whole, small = (exported / name for name in ("encoder.onnx", "encoder.int8.onnx"))
    assert small.stat().st_size < 0.7 * whole.stat().st_size
    samples = [
        torch.from_numpy(soundfile.read(p, dtype="float32")[0]) for p in trained_toy["folder"].glob("*.wav")
    ]
    texts = []
    for int8 in (False, True):
        model = OnnxTransducer(exported, int8=int8)
        searcher = Searcher(model, model.units, SearchConfig(method="greedy"))
        found = []
        for waveform in samples:
            output = model.encoder.extract(waveform[None], torch.tensor([len(waveform)]))
            found.append(model.units.decode(searcher(output.encoder_out, output.lengths)[0].ids))
        texts.append(found)
    assert sum(a == b for a, b in zip(*texts)) >= 10


def test_word_error_rates_side_by_side(trained_toy, exported, tmp_path):
    written = json.loads((exported / "wer.json").read_text())
    found = written["sets"]["dev"]
    assert list(found) == ["PyTorch", "ONNX", "ONNX int8"] and "--cuts" in written["command"]
    arguments = ("--cuts", f'["{trained_toy["cuts"]}"]', "--average", 0, "--output_dir", tmp_path)
    call(decode, "--experiment_dir", trained_toy["experiment"], *arguments)
    expected = json.loads((tmp_path / "wer-dev.json").read_text())
    for runtime in ("PyTorch", "ONNX"):
        assert found[runtime]["wer"] == expected["wer"] and found[runtime]["differing_texts"] == 0
        assert found[runtime]["num_words"] == expected["num_words"]
    assert found["ONNX int8"]["differing_texts"] <= 2


def test_pretrained_encoder_alone(tmp_path):
    torch.manual_seed(0)
    encoder = load_encoder(TINY_ENCODER)
    save_encoder(encoder, tmp_path / "encoder", {"made": "for a test"})
    call(export_onnx, "--encoder", tmp_path / "encoder", "--output_dir", tmp_path / "onnx")
    assert [path.name for path in (tmp_path / "onnx").iterdir()] == ["encoder.onnx"]
    part = OnnxPart(tmp_path / "onnx" / "encoder.onnx")
    assert part.metadata["first_frame_center_ms"] == "45.0" and part.metadata["frame_rate"] == "50"
    fbank = torch.randn(1, 200, 128)
    with torch.no_grad():
        expected = encoder(fbank, torch.tensor([200])).encoder_out
    torch.testing.assert_close(part(x=fbank, x_lens=torch.tensor([200]))[0], expected, rtol=0, atol=1e-5)


def test_tokens_write_what_the_units_write(tmp_path):
    train_bpe(["GO ON AND STOP", "GO AND SEE THE SEA"], 24, tmp_path)
    text = "GO SEE THE SEA"
    for units in (TextUnits(tmp_path), character_units()):
        (tmp_path / "tokens.txt").write_text("".join(token_lines(units)), encoding="utf-8")
        table = TokenTable(tmp_path / "tokens.txt")
        assert table.vocab_size == units.vocab_size
        assert table.decode([0, *units.encode(text)]) == text


def test_what_cannot_be_exported_says_why(trained_toy, tmp_path, monkeypatch):
    heads = TransducerConfig(transducer_loss_scale=0.0, ctc_loss_scale=1.0)
    pure_ctc = AsrModel(load_encoder(TINY_ENCODER), heads, 29).eval()
    with pytest.raises(ValueError, match="no transducer.*transducer_loss_scale above 0"):
        export_transducer(pure_ctc, character_units(), tmp_path / "onnx")
    with pytest.raises(ValueError, match="is a Linear: only Zipformer"):
        export_encoder(torch.nn.Linear(2, 2), tmp_path / "onnx")
    with pytest.raises(ValueError, match="either experiment_dir .* or encoder"):
        call(export_onnx, "--output_dir", tmp_path / "onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(RuntimeError, match=r"needs onnx and onnxruntime.*pip install 'spear_lib\[onnx\]'"):
        export_encoder(load_encoder(TINY_ENCODER), tmp_path / "onnx")


def test_damaged_or_mixed_folders_are_refused(exported, tmp_path):
    with pytest.raises(ValueError, match=r"encoder\.onnx does not exist: export the model first"):
        OnnxTransducer(tmp_path)
    for path in exported.glob("*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokens.txt").write_text("<blk> 0\nA 1\n")
    with pytest.raises(ValueError, match="holds 2 units, the model writes 29"):
        OnnxTransducer(tmp_path)
    (tmp_path / "tokens.txt").write_text("<blk> 0\nA 2\n")
    with pytest.raises(ValueError, match="ids 0, 1, 2"):
        OnnxTransducer(tmp_path)
    (tmp_path / "joiner.onnx").write_bytes(b"no graph")
    with pytest.raises(RuntimeError, match=r"joiner\.onnx cannot be read"):
        OnnxTransducer(tmp_path)
