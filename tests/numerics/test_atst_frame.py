"""ATST-Frame against a second implementation: float64 NumPy from the formulas (DFT by matrix, patches and
attention by einsum)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from audio_teacher_fixtures import atst_state, mel_triangles, save_atst_checkpoint
from scipy.special import erf

from spear_lib.teachers.atst import AtstEncoder, AtstFrameTeacher
from spear_lib.teachers.decibel_mel import mel_filters

DIM, DEPTH = 128, 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_atst_checkpoint(tmp_path_factory.mktemp("atst") / "atst.ckpt", DIM, DEPTH)


def sound(num_samples: int, seed: int = 0) -> np.ndarray:
    """A chirp in noise, a third of it digital silence."""
    time = np.arange(num_samples) / 16000
    waveform = 0.3 * np.sin(2 * np.pi * (200 * time + 900 * time**2))
    waveform += 0.01 * np.random.default_rng(seed).standard_normal(num_samples)
    waveform[num_samples // 2 : 5 * num_samples // 6] = 0
    return waveform.astype(np.float32)


def witness_mel(waveform: np.ndarray) -> np.ndarray:
    """(N,) -> (N // 160 + 1, 64), scaled to about -1..1."""
    padded = np.pad(waveform.astype(np.float64), 512, mode="reflect")
    sample = np.arange(1024)
    window = np.sin(np.pi * sample / 1024) ** 2
    fourier = np.exp(-2j * np.pi * np.outer(sample, np.arange(513)) / 1024)
    starts = range(0, len(waveform) + 1, 160)
    power = np.stack([np.abs((padded[start : start + 1024] * window) @ fourier) ** 2 for start in starts])
    mel = power @ mel_triangles(513, 60.0, 7800.0).numpy()
    decibels = 10 * np.log10(np.maximum(mel, 1e-10))
    decibels = np.maximum(decibels, decibels.max() - 80)
    return (decibels + 79.6482) / (50.6842 + 79.6482) * 2 - 1


def witness_layers(mel: np.ndarray, state: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Normed outputs (T, D) of all blocks for one chunk of mel frames."""

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        spread = np.sqrt(x.var(axis=1, keepdims=True) + 1e-6)
        return (x - x.mean(axis=1, keepdims=True)) / spread * state[f"{name}.weight"] + state[f"{name}.bias"]

    count = len(mel) // 4
    patches = mel[: 4 * count].reshape(count, 4, 64)
    weight = state["patch_embed.patch_embed.weight"].reshape(DIM, 64, 4)
    x = np.einsum("tif,dfi->td", patches, weight) + state["patch_embed.patch_embed.bias"]
    x = x + state["pos_embed"][0, 1 : count + 1]
    outputs = []
    for block in range(DEPTH):
        name = f"blocks.{block}"
        heads = state[f"{name}.attn.qkv.weight"].reshape(3, DIM // 64, 64, DIM)
        query, key, value = np.einsum("td,khcd->khtc", norm(x, f"{name}.norm1"), heads)
        scores = np.exp(np.einsum("hqc,hkc->hqk", query, key) / 8)
        mixed = np.einsum("hqk,hkc->qhc", scores / scores.sum(axis=2, keepdims=True), value)
        x = x + mixed.reshape(count, DIM) @ state[f"{name}.attn.proj.weight"].T
        x = x + state[f"{name}.attn.proj.bias"]
        inner = norm(x, f"{name}.norm2") @ state[f"{name}.mlp.fc1.weight"].T + state[f"{name}.mlp.fc1.bias"]
        inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
        x = x + inner @ state[f"{name}.mlp.fc2.weight"].T + state[f"{name}.mlp.fc2.bias"]
        outputs.append(norm(x, "norm_frame"))
    return outputs


@pytest.mark.parametrize("num_samples", [513, 8000, 30123])
def test_mel_against_numpy(checkpoint, num_samples):
    waveform = sound(num_samples)
    teacher = AtstFrameTeacher(checkpoint)
    mel = teacher.mel(torch.from_numpy(waveform).unsqueeze(0), torch.tensor([num_samples]))[0]
    np.testing.assert_allclose(mel.numpy(), witness_mel(waveform), atol=1e-4)


def test_layers_against_numpy(checkpoint):
    state = {name: each.double().numpy() for name, each in atst_state(DIM, DEPTH).items()}
    waveform = sound(30123)
    expected = witness_layers(witness_mel(waveform), state)
    waveforms, lengths = torch.from_numpy(waveform).unsqueeze(0), torch.tensor([len(waveform)])
    for layer in range(1, DEPTH + 1):
        embeddings, counts = AtstFrameTeacher(checkpoint, layer).embed(waveforms, lengths)
        assert counts.tolist() == [47]
        np.testing.assert_allclose(embeddings[0].numpy(), expected[layer - 1], atol=2e-4)
    everything = AtstFrameTeacher(checkpoint, num_layers=DEPTH)
    assert (everything.field_prefix, everything.embedding_dim) == ("atst_frame_l1to3", DEPTH * DIM)
    assert everything.layer == "1 to 3 of 3, after the final norm"
    embeddings, _ = everything.embed(waveforms, lengths)
    np.testing.assert_allclose(embeddings[0].numpy(), np.concatenate(expected, axis=1), atol=2e-4)
    last_two = AtstFrameTeacher(checkpoint, num_layers=2)
    assert last_two.embedding_dim == 2 * DIM
    torch.testing.assert_close(
        last_two.embed(waveforms, lengths)[0], embeddings[..., DIM:], atol=1e-5, rtol=0
    )


def test_long_audio_against_numpy(checkpoint):
    """Chunks of 1000 mel frames (250 tokens): frame k of the recording stays at 40 k + 15 ms."""
    state = {name: each.double().numpy() for name, each in atst_state(DIM, DEPTH).items()}
    waveform = sound(16000 * 11)
    mel = witness_mel(waveform)
    expected = [witness_layers(mel[begin : begin + 1000], state)[-1] for begin in (0, 1000)]
    waveforms, lengths = torch.from_numpy(waveform).unsqueeze(0), torch.tensor([len(waveform)])
    embeddings, counts = AtstFrameTeacher(checkpoint).embed(waveforms, lengths)
    assert counts.tolist() == [275]
    np.testing.assert_allclose(embeddings[0].numpy(), np.concatenate(expected), atol=2e-4)


def test_the_teacher_encoder_is_taken_from_a_lightning_file(checkpoint, tmp_path):
    """The file holds the student's encoder as well, and an encoder's own names load too."""
    bare = tmp_path / "encoder.pt"
    torch.save(atst_state(DIM, DEPTH), bare)
    student = tmp_path / "student.pt"
    torch.save(atst_state(DIM, DEPTH, seed=1), student)
    assert AtstFrameTeacher(bare).id == AtstFrameTeacher(checkpoint).id != AtstFrameTeacher(student).id


def test_base_size_and_filters():
    with torch.device("meta"):
        encoder = AtstEncoder(768, 12)
    shapes = {name: tuple(each.shape) for name, each in encoder.state_dict().items()}
    assert shapes["pos_embed"] == (1, 251, 768) and shapes["patch_embed.patch_embed.weight"] == (768, 256)
    assert shapes["blocks.11.attn.qkv.weight"] == (2304, 768) and "blocks.0.attn.qkv.bias" not in shapes
    assert encoder.blocks[0].attn.num_heads == 12
    # 12 D^2 + 10 D per block (no bias of queries, keys, values), patches, 251 positions, mask, norm.
    by_hand = 12 * (12 * 768**2 + 10 * 768) + 257 * 768 + 251 * 768 + 768 + 2 * 768
    assert sum(parameter.numel() for parameter in encoder.parameters()) == by_hand
    filters = mel_filters(1024, 60.0, 7800.0)
    np.testing.assert_allclose(filters.numpy(), mel_triangles(513, 60.0, 7800.0).numpy(), atol=1e-6)
    assert (filters.sum(dim=0) > 0).all(), "an empty filter"
