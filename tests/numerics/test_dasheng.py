"""Dasheng against the official package's numbers (golden file), its sizes, formats, layers and chunks."""

from pathlib import Path

import pytest
import torch
from audio_teacher_fixtures import dasheng_state, mel_triangles, save_dasheng_checkpoint, save_dasheng_folder
from safetensors.torch import load_file, save_file

from spear_lib.teachers.dasheng import DashengTeacher
from spear_lib.teachers.dasheng_encoder import CHUNK_TOKENS, RELEASED, DashengEncoder
from spear_lib.teachers.decibel_mel import mel_filters

GOLDEN = Path(__file__).parents[1] / "golden" / "dasheng_small.safetensors"
# The golden file's own limits: dB, normalised mel, blocks, output.
MEL, NORMALISED, HIDDEN, OUTPUT = 2e-3, 5e-4, 3e-4, 1e-4


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def golden_checkpoint(golden, tmp_path_factory) -> Path:
    """The golden weights as the official .pt file would hold them."""
    path = tmp_path_factory.mktemp("dasheng") / "dasheng_small.pt"
    weights = {
        name.removeprefix("weights."): each for name, each in golden.items() if name.startswith("weights.")
    }
    torch.save({"model": weights, "config": {"embed_dim": 48, "depth": 3, "num_heads": 4}}, path)
    return path


def close(actual: torch.Tensor, expected: torch.Tensor, limit: float) -> None:
    torch.testing.assert_close(actual.detach(), expected, atol=limit, rtol=0)


@pytest.mark.parametrize("case", [0, 1, 2])
def test_golden(golden, golden_checkpoint, case):
    """Case 0 holds digital silence, case 1 is longer than a chunk, case 2 quiet and short."""
    teacher = DashengTeacher(golden_checkpoint)
    waveforms = golden[f"case{case}.waveform"].unsqueeze(0)
    lengths = torch.tensor([waveforms.shape[1]])
    mel = teacher.encoder.mel(waveforms, lengths)
    close(mel[0].T, golden[f"case{case}.mel_db"], MEL)
    normalised = teacher.encoder.normalise(mel)
    close(normalised[0].T, golden[f"case{case}.mel_bn"], NORMALISED)
    first_chunk = mel[:, : 4 * min(CHUNK_TOKENS, mel.shape[1] // 4)]
    tokens = teacher.encoder.tokens(first_chunk)[0]
    close(tokens, golden[f"case{case}.hidden.0"][: len(tokens)], HIDDEN)
    for layer, name, limit in [(1, "hidden.1", HIDDEN), (2, "hidden.2", HIDDEN), (3, "output", OUTPUT)]:
        embeddings, counts = DashengTeacher(golden_checkpoint, layer).embed(waveforms, lengths)
        assert counts.tolist() == [teacher.num_frames(waveforms.shape[1])] == [embeddings.shape[1]]
        close(embeddings[0], golden[f"case{case}.{name}"], limit)


def test_golden_in_a_padded_batch(golden, golden_checkpoint):
    """The official package shares the dynamic range among a batch; ours must still give what each case gives
    alone."""
    teacher = DashengTeacher(golden_checkpoint)
    waveforms = [golden[f"case{case}.waveform"] for case in range(3)]
    lengths = torch.tensor([len(each) for each in waveforms])
    embeddings, counts = teacher.embed(torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), lengths)
    assert counts.tolist() == [78, 308, 25]
    for case, count in enumerate(counts.tolist()):
        close(embeddings[case, :count], golden[f"case{case}.output"], OUTPUT)
        assert not embeddings[case, count:].any()


def test_names_and_shapes_of_the_official_state(golden):
    state = {name: each for name, each in golden.items() if name.startswith("weights.")}
    assert {f"weights.{name}": each.shape for name, each in dasheng_state(48, 3).items()} == {
        name: each.shape for name, each in state.items()
    }


@pytest.mark.parametrize(
    "size, millions, rounded", [("base", 85.4, 86), ("06b", 630.3, 600), ("12b", 1134.0, 1200)]
)
def test_released_sizes(size, millions, rounded):
    """The published numbers are 86 M, 600 M and 1.2 G; the tensors of the layout give these counts."""
    with torch.device("meta"):
        encoder = DashengEncoder(RELEASED[size])
    count = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.1)
    assert count == pytest.approx(rounded, rel=0.06)
    # By hand: 12 D^2 + 13 D per block, patches, positions, norms.
    dim, depth = RELEASED[size].embed_dim, RELEASED[size].depth
    by_hand = depth * (12 * dim**2 + 13 * dim) + dim * (256 + 1) + dim * (252 + 1) + 2 * dim + 2 * 64
    assert by_hand == sum(parameter.numel() for parameter in encoder.parameters())


def test_filters_are_the_official_ones(golden):
    filters = mel_filters(512, 0.0, 8000.0)
    close(filters, golden["weights.front_end.0.mel_scale.fb"], 1e-5)
    close(filters.double(), mel_triangles(257, 0.0, 8000.0), 1e-6)
    assert (filters.sum(dim=0) > 0).all(), "an empty filter"


def test_all_formats_are_the_same_teacher(tmp_path):
    pt = DashengTeacher(save_dasheng_checkpoint(tmp_path / "dasheng.pt"))
    folder = save_dasheng_folder(tmp_path / "folder")
    bare = tmp_path / "bare" / "dasheng.safetensors"
    bare.parent.mkdir()
    save_file(dasheng_state(), bare)
    (bare.parent / "config.json").write_text('{"num_heads": 2}', encoding="utf-8")
    waveforms, lengths = 0.1 * torch.randn(1, 12000, generator=torch.Generator().manual_seed(1)), [12000]
    expected, _ = pt.embed(waveforms, torch.tensor(lengths))
    assert DashengTeacher(bare).id == pt.id
    for path in (folder, folder / "model.safetensors"):
        embeddings, _ = DashengTeacher(path).embed(waveforms, torch.tensor(lengths))
        # Hugging Face folders come without mel filters; ours differ from torchaudio's by up to 6e-6.
        close(embeddings, expected, 1e-4)
    other = DashengTeacher(save_dasheng_checkpoint(tmp_path / "other.pt", seed=1))
    assert (
        other.id != pt.id and float((other.embed(waveforms, torch.tensor(lengths))[0] - expected).std()) > 0.1
    )


def test_layers(tmp_path):
    path = save_dasheng_checkpoint(tmp_path / "dasheng.pt", depth=3)
    last, first = DashengTeacher(path), DashengTeacher(path, layer=1)
    assert (last.field_prefix, first.field_prefix) == ("dasheng_d32_l3", "dasheng_d32_l1")
    assert last.layer == "3 of 3, after the final norm" and first.layer == "1 of 3, no norm"
    assert DashengTeacher(path, layer=-3).id == first.id != last.id == DashengTeacher(path, layer=3).id
    waveforms, lengths = torch.randn(1, 16000), torch.tensor([16000])
    # The rule of the layers: an earlier one does not run the blocks behind it and is not normalised.
    seen = []
    hook = first.encoder.blocks[1].register_forward_hook(lambda *_: seen.append(1))
    raw = first.embed(waveforms, lengths)[0]
    hook.remove()
    assert not seen
    tokens = first.encoder.tokens(first.encoder.mel(waveforms, lengths)[:, :100])
    close(raw, first.encoder.blocks[0](tokens, None).detach(), 1e-5)
    normed = last.embed(waveforms, lengths)[0] - last.encoder.norm.bias
    close((normed / last.encoder.norm.weight).square().mean(dim=2), torch.ones(1, 25), 1e-3)


def test_chunks_do_not_see_each_other(tmp_path):
    """Beyond 10.08 s positions start again; the last chunk is short and not padded."""
    teacher = DashengTeacher(save_dasheng_checkpoint(tmp_path / "dasheng.pt"))
    waveforms = 0.1 * torch.randn(1, 163841, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([163841])
    embeddings, counts = teacher.embed(waveforms, lengths)
    assert counts.tolist() == [256]
    mel = teacher.encoder.mel(waveforms, lengths)
    tail = teacher.encoder.layer(teacher.encoder.tokens(mel[:, 1008:1024]), None, 2)
    close(embeddings[:, 252:], tail.detach(), 1e-5)
    changed = waveforms.clone()
    changed[0, 162000:] *= 0.5
    close(teacher.embed(changed, lengths)[0][:, :252], embeddings[:, :252], 1e-5)
