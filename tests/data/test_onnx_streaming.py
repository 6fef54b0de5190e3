"""Streaming ONNX files: the numbers of StreamingEncoder, the form that sherpa-onnx reads, its text."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
import yaml
from asr_fixtures import TINY_ENCODER

from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.asr.search import greedy_search_batch, modified_beam_search
from spear_lib.asr.units import character_units
from spear_lib.bin import export_onnx, finetune_asr, transcribe
from spear_lib.encoders import load_encoder, save_encoder
from spear_lib.encoders.zipformer.streaming import StreamingEncoder
from spear_lib.features.fbank import FbankExtractor, fbank_length
from spear_lib.sharing.onnx.encoders import Chunks
from spear_lib.sharing.onnx.export import export_encoder, export_transducer, streaming_encoder
from spear_lib.sharing.onnx.runtime import OnnxPart, OnnxStreamingEncoder, OnnxTransducer

TAIL = np.zeros(8000, np.float32)  # silence behind the end: the recogniser waits for whole blocks
CAUSAL = {
    "causal": True,
    "chunk_size": [-1, 16],
    "left_context_frames": [-1, 32],
    "encoder_dim": [32, 40],
    "encoder_unmasked_dim": [16],
    "value_head_dim": [6],
    "cnn_module_kernel": [7, 15],
    "num_encoder_layers": [1, 2],
}


def call(module, *arguments: object) -> None:
    module.main(list(map(str, arguments)))


def causal_model(**changes) -> AsrModel:
    """A model of random weights whose text follows its input and its own last labels."""
    torch.manual_seed(2)
    heads = TransducerConfig(decoder_dim=32, joiner_dim=24)
    encoder = load_encoder({**TINY_ENCODER, **CAUSAL, **changes})
    model = AsrModel(encoder, heads, character_units().vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for module in (model.joiner.output_linear, model.joiner.encoder_proj, model.decoder.embedding):
            module.weight.mul_(8.0)
        model.joiner.output_linear.bias[0] += 1.0
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[AsrModel, StreamingEncoder, Path]:
    """A model, its encoder in chunks, and the folder of its files."""
    model, folder = causal_model(), tmp_path_factory.mktemp("streaming") / "onnx"
    streaming = streaming_encoder(model.encoder)
    export_transducer(model, character_units(), folder, streaming=streaming)
    return model, streaming, folder


def in_steps(streaming: StreamingEncoder, fbank: torch.Tensor) -> torch.Tensor:
    """The chunks whose blocks end before the last frame: those for which the recogniser does not wait."""
    state, chunks = streaming.initial_state(len(fbank)), []
    full = torch.full((len(fbank),), streaming.block_frames)
    for start in range(0, fbank.shape[1] - streaming.block_frames, streaming.block_shift):
        output, state = streaming.step(fbank[:, start : start + streaming.block_frames], full, state)
        chunks.append(output.encoder_out)
    return torch.cat(chunks, dim=1)


def fbank_of(samples: np.ndarray) -> torch.Tensor:
    """(1, T, F)."""
    return FbankExtractor(128)(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))[0]


def noise(seed: int, num_samples: int) -> np.ndarray:
    """Noise whose loudness changes."""
    random = np.random.default_rng(seed)
    loudness = 0.1 * np.sin(np.arange(num_samples) / 3000)
    return (loudness * random.standard_normal(num_samples)).astype(np.float32)


def online_texts(folder: Path, recordings: list[np.ndarray], method: str = "greedy_search") -> list[str]:
    """What the online recogniser of sherpa-onnx writes of samples that come 100 ms at a time."""
    sherpa_onnx = pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed")
    files = {name: str(folder / f"{name}.onnx") for name in ("encoder", "decoder", "joiner")}
    recogniser = sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens=str(folder / "tokens.txt"), feature_dim=128, num_threads=1, decoding_method=method, **files
    )
    streams = [recogniser.create_stream() for _ in recordings]

    def decode() -> None:
        while ready := [stream for stream in streams if recogniser.is_ready(stream)]:
            recogniser.decode_streams(ready)  # streams of different lengths: the batch changes

    for start in range(0, max(map(len, recordings)), 1600):
        for stream, samples in zip(streams, recordings):
            stream.accept_waveform(16000, samples[start : start + 1600])
        decode()
    for stream in streams:
        stream.accept_waveform(16000, TAIL)
        stream.input_finished()
    decode()
    return [recogniser.get_result(stream).strip() for stream in streams]


def test_chunks_are_those_of_the_streaming_encoder(exported):
    """And of the whole utterance in chunks, which knows of no state."""
    model, streaming, folder = exported
    encoder = OnnxStreamingEncoder(OnnxPart(folder / "encoder.onnx"))
    assert (encoder.block_frames, encoder.block_shift) == (45, 32)
    fbank = 3 * torch.randn(3, 45 + 5 * 32 + 1, 128) - 8
    state, chunks = encoder.initial_state(3), []
    for start in range(0, fbank.shape[1] - 45, 32):
        chunk, state = encoder.step(fbank[:, start : start + 45], state)
        chunks.append(chunk)
    found = torch.cat(chunks, dim=1)
    expected = model.joiner.encoder_proj(in_steps(streaming, fbank))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    with torch.no_grad():
        embedded, lengths = model.encoder.encoder_embed(fbank, torch.full((3,), fbank.shape[1]))
        whole = model.encoder.encoder(embedded, lengths, 16, 32)[0]
    whole = model.joiner.encoder_proj(whole[:, : found.shape[1]])
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-4)
    assert state[-1].tolist() == 3 * [6 * 16]


def test_names_shapes_and_metadata_are_those_of_sherpa(exported):
    model = onnx.load(exported[2] / "encoder.onnx")
    onnx.checker.check_model(model)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    expected = {
        "model_type": "zipformer2",
        "decode_chunk_len": "32",
        "T": "45",
        "num_encoder_layers": "1,2",
        "encoder_dims": "32,40",
        "cnn_module_kernels": "7,15",
        "left_context_len": "32,16",
        "query_head_dims": "8,8",
        "value_head_dims": "6,6",
        "num_heads": "2,2",
    }
    assert expected.items() <= facts.items()

    def shapes(values) -> dict[str, list]:
        return {
            value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
            for value in values
        }

    states = {}
    for layer, (dim, left, kernel) in enumerate([(32, 32, 7), (40, 16, 15), (40, 16, 15)]):
        states |= {
            f"cached_key_{layer}": [left, "N", 16],
            f"cached_nonlin_attn_{layer}": [1, "N", left, 3 * dim // 4],
            f"cached_val1_{layer}": [left, "N", 12],
            f"cached_val2_{layer}": [left, "N", 12],
            f"cached_conv1_{layer}": ["N", dim, kernel // 2],
            f"cached_conv2_{layer}": ["N", dim, kernel // 2],
        }
    states |= {"embed_states": ["N", 128, 3, 31], "processed_lens": ["N"]}
    inputs = shapes(model.graph.input)
    assert inputs == {"x": ["N", 45, 128], **states}
    assert list(inputs) == ["x", *states]
    assert [output.name for output in model.graph.output] == ["encoder_out", *(f"new_{n}" for n in states)]


@pytest.mark.parametrize("method", ["greedy_search", "modified_beam_search"])
def test_sherpa_onnx_writes_our_text_of_chunks(exported, method):
    model, streaming, folder = exported
    recordings = [noise(1, 9000), noise(2, 30000), noise(3, 21234)]
    found = online_texts(folder, recordings, method)
    for samples, text in zip(recordings, found):
        encoded = in_steps(streaming, fbank_of(np.concatenate([samples, TAIL])))
        search = {"greedy_search": greedy_search_batch, "modified_beam_search": modified_beam_search}[method]
        (hypothesis,) = search(model, encoded, torch.tensor([encoded.shape[1]]))
        assert text == character_units().decode(hypothesis.ids) and len(text) > 20
    assert len(set("".join(found))) > 3


def test_labels_before_the_first_are_none(exported):
    """The online greedy search begins with two blanks, our searches with one and nothing before it."""
    decoder = OnnxPart(exported[2] / "decoder.onnx")
    (found,) = decoder(y=torch.tensor([[0, 0], [-1, 0], [0, 3], [-1, 3]]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert (found[2] - found[3]).abs().max() > 0.01


def test_our_runtime_takes_streaming_files(exported):
    """Rows of different lengths, each followed by silence whatever lies there in the batch."""
    model, streaming, folder = exported
    recordings = [noise(4, 20000), noise(5, 7000)]
    padded = torch.full((2, 20000), 0.3)
    for row, samples in zip(padded, recordings):
        row[: len(samples)] = torch.from_numpy(samples)
    found = OnnxTransducer(folder).encoder.extract(padded, torch.tensor([20000, 7000]))
    assert found.lengths.tolist() == [model.encoder.output_length(len(samples)) for samples in recordings]
    for row, samples in enumerate(recordings):
        silence = np.zeros(24000, np.float32)
        expected = model.joiner.encoder_proj(
            in_steps(streaming, fbank_of(np.concatenate([samples, silence])))
        )
        length = int(found.lengths[row])
        torch.testing.assert_close(found.encoder_out[row, :length], expected[0, :length], rtol=0, atol=1e-4)


def test_a_streaming_encoder_alone_at_25_hz(tmp_path):
    changes = {"downsampling_factor": [1, 4], "output_downsampling_factor": 2, "num_encoder_layers": [1]}
    encoder = causal_model(**changes).encoder
    save_encoder(encoder, tmp_path / "encoder", {})
    arguments = ("--encoder", tmp_path / "encoder", "--output_dir", tmp_path / "onnx", "--streaming", "true")
    call(export_onnx, *arguments, "--chunk_size", 8, "--left_context_frames", 24)
    theirs = OnnxStreamingEncoder(OnnxPart(tmp_path / "onnx" / "encoder.onnx"))
    ours = StreamingEncoder(encoder, 8, 24)
    block = 3 * torch.randn(1, ours.block_frames, 128) - 8
    expected, _ = ours.step(block, torch.tensor([ours.block_frames]), ours.initial_state(1))
    found, _ = theirs.step(block, theirs.initial_state(1))
    assert found.shape == (1, 4, 40)
    torch.testing.assert_close(found, expected.encoder_out, rtol=0, atol=1e-4)


def test_weights_beside_the_file(tmp_path):
    """As above 2 GiB, with a limit that a tiny encoder exceeds."""
    encoder, folder = causal_model().encoder, tmp_path / "onnx"
    streaming = streaming_encoder(encoder)
    save_encoder(encoder, tmp_path / "encoder", {})
    arguments = ("--encoder", tmp_path / "encoder", "--output_dir", folder, "--int8", "true")
    call(export_onnx, *arguments, "--streaming", "true", "--largest_file_mb", 0.001)
    names = ["encoder.int8.onnx", "encoder.int8.onnx.data", "encoder.onnx", "encoder.onnx.data"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    num_bytes = 4 * sum(parameter.numel() for parameter in encoder.parameters())
    assert (folder / "encoder.onnx.data").stat().st_size > 0.7 * num_bytes
    Chunks(streaming, torch.nn.Identity()).verify(OnnxPart(folder / "encoder.onnx"), 1e-4)
    (folder / "encoder.onnx.data").rename(tmp_path / "elsewhere")
    with pytest.raises(
        RuntimeError, match=r"beside it in encoder\.onnx\.data, which is missing .* copy both"
    ):
        OnnxPart(folder / "encoder.onnx")
    (tmp_path / "elsewhere").rename(folder / "encoder.onnx.data")
    (folder / "mine.txt").write_text("kept")
    export_encoder(encoder, folder, streaming=streaming)  # in one file again: what the first export left goes
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.onnx", "mine.txt"]
    Chunks(streaming, torch.nn.Identity()).verify(OnnxPart(folder / "encoder.onnx"), 1e-4)


def test_what_cannot_stream_says_why(tmp_path):
    def encoder(**changes):
        return load_encoder({**TINY_ENCODER, **changes})

    endless = {"causal": True, "chunk_size": [16], "left_context_frames": [-1]}
    with pytest.raises(ValueError, match="is a Linear: only Zipformer"):
        streaming_encoder(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="needs an encoder with causal: true.*without streaming"):
        streaming_encoder(encoder())
    with pytest.raises(ValueError, match=r"trained with left_context_frames \[-1\], without limit: give"):
        streaming_encoder(encoder(**endless))
    with pytest.raises(ValueError, match=r"left_context_frames is -1 .*fixed size"):
        Chunks(StreamingEncoder(encoder(**endless)), torch.nn.Identity())
    assert streaming_encoder(encoder(**endless), 0, 40).left_context_frames == 32
    with pytest.raises(ValueError, match="chunk_size is 15; .*multiple"):
        streaming_encoder(encoder(**endless), 15, 64)
    wide = encoder(**endless, frontend_channels=[4, 8, 129])
    with pytest.raises(ValueError, match="front end has 129 channels: sherpa-onnx keeps a state of 128"):
        Chunks(StreamingEncoder(wide, 16, 32), torch.nn.Identity())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--encoder", "x", "--chunk_size", 16), "chunk_size is 16, and is for streaming"),
        (("--encoder", "x", "--streaming", "true", "--left_context_frames", -1), "left_context_frames is -1"),
        (("--encoder", "x", "--streaming", "true", "--layers", "true"), "layers is for an encoder alone"),
        (("--encoder", "x", "--cuts", '["a=b"]'), "cuts is for a fine-tuned model"),
        (("--encoder", "x", "--largest_file_mb", 4000), r"largest_file_mb is 4000; it must lie in 0\.\.1900"),
    ],
)
def test_options_that_do_not_go_together(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        call(export_onnx, *arguments, "--output_dir", tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # trains a causal model: 20 s
def test_a_trained_causal_model_in_sherpa_onnx(trained_toy, tmp_path, capsys, caplog):
    config = yaml.safe_load((trained_toy["experiment"].parent / "finetune.yaml").read_text())
    config["encoder_config"] |= {"causal": True, "chunk_size": [16, 32], "left_context_frames": [32]}
    config["experiment_dir"] = str(tmp_path / "experiment")
    (tmp_path / "finetune.yaml").write_text(yaml.safe_dump(config))
    call(finetune_asr, "--config", tmp_path / "finetune.yaml")
    folder = tmp_path / "onnx"
    arguments = ("--experiment_dir", tmp_path / "experiment", "--average", 0, "--streaming", "true")
    cuts = json.dumps([str(trained_toy["cuts"])])
    call(export_onnx, *arguments, "--output_dir", folder, "--cuts", cuts, "--int8", "true")
    assert "divide its timestamps by 2" in caplog.text
    outcomes = json.loads((folder / "wer.json").read_text())["sets"]["dev"]
    assert list(outcomes) == ["PyTorch", "ONNX", "ONNX int8"]
    assert outcomes["PyTorch"]["wer"] < 20 and outcomes["ONNX"]["wer"] < 20
    capsys.readouterr()
    search = ("--search.method", "greedy", "--experiment_dir", folder)
    call(transcribe, trained_toy["folder"], *search)
    ours = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    recordings = [soundfile.read(path, dtype="float32")[0] for path in ours]
    theirs = online_texts(folder, recordings)
    # Theirs hears half a second of silence more, in which a last letter may come.
    assert all(one.startswith(other) for one, other in zip(theirs, ours.values(), strict=True))
    transducer = OnnxTransducer(folder)
    for samples, text in zip(recordings, theirs):
        padded = torch.from_numpy(np.concatenate([samples, TAIL, np.zeros(16000, np.float32)]))[None]
        num_frames = fbank_length(len(samples) + len(TAIL))
        encoded = transducer.encoder.extract(padded, torch.tensor([padded.shape[1]])).encoder_out
        num_chunks = -(-(num_frames - 45) // 32)
        lengths = torch.tensor([16 * num_chunks])
        (hypothesis,) = greedy_search_batch(transducer, encoded, lengths)
        assert text == transducer.units.decode(hypothesis.ids)
