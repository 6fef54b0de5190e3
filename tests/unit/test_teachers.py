"""Teachers: frame geometry, independence of batch mates and loudness, identities, messages."""

import dataclasses
import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from spear_lib import encoders
from spear_lib.encoders.kinds import build_encoder
from spear_lib.encoders.transformer import TransformerConfig
from spear_lib.encoders.zipformer import ZipformerConfig
from spear_lib.teachers import (
    AtstFrameTeacher,
    DashengTeacher,
    EncoderOutputTeacher,
    ResemblyzerTeacher,
    SpeechEmbeddingTeacher,
    create_teacher,
)
from spear_lib.teachers.embedding import length_batches
from spear_lib.teachers.options import SpectralOptions, TeacherOptions
from spear_lib.teachers.spectral import cosine_basis
from spear_lib.tokens.plan import TokenFacts


def noise(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    waveforms = 0.1 * torch.randn(len(lengths), max(lengths), generator=generator)
    return waveforms, torch.tensor(lengths)


def test_spectral_declares_its_geometry():
    teacher = create_teacher("spectral")
    assert (teacher.name, teacher.field_prefix) == ("spectral", "spectral")
    assert (teacher.sample_rate, teacher.frame_rate, teacher.embedding_dim) == (16000, 50.0, 80)
    assert teacher.first_frame_center_ms == 5.0
    assert teacher.describe()["teacher_id"] == teacher.id


def test_spectral_frame_count_is_exact():
    teacher = create_teacher("spectral")
    for num_samples in [1, 79, 80, 239, 240, 400, 1360, 8000, 8159, 8160, 16000, 16081]:
        waveforms, lengths = noise(num_samples)
        embeddings, counts = teacher.embed(waveforms, lengths)
        assert counts.tolist() == [teacher.num_frames(num_samples)]
        assert embeddings.shape == (1, int(counts[0]), 80)
    assert teacher.num_frames(16000) == 50


def test_spectral_at_25_hz_is_every_second_frame_between_those_at_50_hz():
    slow, fast = create_teacher("spectral", frame_rate=25.0), create_teacher("spectral")
    assert (slow.frame_rate, slow.first_frame_center_ms, slow.field_prefix) == (25.0, 15.0, "spectral_25hz")
    student = build_encoder(ZipformerConfig.mini(output_downsampling_factor=2))
    assert (student.frame_rate, student.first_frame_center_ms) == (25.0, 15.0 + 40.0)
    for num_samples in [1, 239, 240, 399, 400, 560, 8000, 8160, 16081, 160000]:
        waveforms, lengths = noise(num_samples)
        embeddings, counts = slow.embed(waveforms, lengths)
        assert counts.tolist() == [slow.num_frames(num_samples)] == [embeddings.shape[1]]
    assert slow.num_frames(160000) == 250
    # Without its first 10 ms the utterance has its 50 Hz frames where the 25 Hz ones are: 15, 55, ... ms.
    plain = {"mean_normalisation": False, "dynamic_range_db": 0.0}
    waveforms, lengths = noise(16000)
    slow = create_teacher("spectral", frame_rate=25.0, **plain).embed(waveforms, lengths)[0][0]
    fast = create_teacher("spectral", **plain).embed(waveforms[:, 160:], lengths - 160)[0][0, ::2]
    torch.testing.assert_close(slow[2:-2], fast[2:-2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("rate", [50.0, 25.0])
def test_spectral_does_not_see_batch_mates_or_padding(rate):
    teacher = create_teacher("spectral", frame_rate=rate)
    waveforms, lengths = noise(24000, 8000, 15999)
    together, counts = teacher.embed(waveforms, lengths)
    for row, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist())):
        alone, _ = teacher.embed(waveforms[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(together[row, :count], alone[0], atol=1e-4, rtol=0)
        assert not together[row, count:].any()
    louder = waveforms.clone()
    louder[1, 8000:] = 1.0  # behind the end
    assert torch.equal(teacher.embed(louder, lengths)[0][1], together[1])


def test_spectral_takes_out_loudness():
    teacher = create_teacher("spectral")
    waveforms, lengths = noise(16000)
    loud, quiet = teacher.embed(waveforms, lengths)[0], teacher.embed(0.1 * waveforms, lengths)[0]
    torch.testing.assert_close(loud, quiet, atol=1e-2, rtol=0)
    kept = create_teacher("spectral", mean_normalisation=False)
    difference = kept.embed(waveforms, lengths)[0] - kept.embed(0.1 * waveforms, lengths)[0]
    assert float(difference.abs().max()) > 1


@pytest.mark.parametrize("rate", [50.0, 25.0])
@pytest.mark.parametrize("second", [0.215, 0.415, 0.6])
def test_a_click_lights_the_frame_whose_centre_it_is(second, rate):
    one = {"num_time_coefficients": 1, "num_mel_coefficients": 1}
    teacher = create_teacher("spectral", context_frames=0 if rate == 50 else 1, frame_rate=rate, **one)
    waveform = 1e-4 * noise(16000)[0]
    waveform[0, int(16000 * second) - 40 : int(16000 * second) + 40] += 0.5
    embeddings, lengths = teacher.embed(waveform, torch.tensor([16000]))
    loudest = int(embeddings[0, :, 0].argmax())
    center = teacher.first_frame_center_ms / 1000 + loudest / teacher.frame_rate
    assert abs(center - second) <= (0.0125 if rate == 50 else 0.0225)


def test_context_and_time_coefficients_see_the_slope():
    teacher = create_teacher("spectral", num_mel_coefficients=1, num_time_coefficients=2)
    waveform = noise(16000)[0] * torch.linspace(0.01, 1, 16000)
    slope = teacher.embed(waveform, torch.tensor([16000]))[0].view(50, 1, 2)[5:45, 0, 1]
    # A rising level is a negative first cosine (the cosine falls over the window).
    assert float(slope.mean()) < 0
    falling = teacher.embed(waveform.flip(1), torch.tensor([16000]))[0].view(50, 1, 2)[5:45, 0, 1]
    assert float(falling.mean()) > 0


def test_silence_and_dynamic_range_stay_finite():
    teacher = create_teacher("spectral")
    embeddings, _ = teacher.embed(torch.zeros(1, 8000), torch.tensor([8000]))
    assert torch.isfinite(embeddings).all()
    # 60 dB below the peak is the floor: 60 dB and 90 dB of digital silence look the same.
    waveforms, lengths = noise(16000)
    first, second = waveforms.clone(), waveforms.clone()
    first[0, 8000:] *= 1e-5
    second[0, 8000:] = 0
    one, two = teacher.embed(first, lengths)[0], teacher.embed(second, lengths)[0]
    torch.testing.assert_close(one[0, 30:], two[0, 30:], atol=1e-3, rtol=0)


def test_cosine_basis_is_orthonormal():
    basis = cosine_basis(9, 4)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(basis[:, 0], torch.full((9,), 1 / 3), atol=1e-6, rtol=0)


def test_identity_follows_every_option():
    plain = create_teacher("spectral")
    assert plain.id == create_teacher("spectral").id
    other = {
        "num_mel_coefficients": 12,
        "num_time_coefficients": 3,
        "context_frames": 6,
        "dynamic_range_db": 50.0,
        "mean_normalisation": False,
        "energy_weight": 1.0,
        "frame_rate": 25.0,
    }
    assert set(other) == {field.name for field in dataclasses.fields(SpectralOptions)}
    ids = {create_teacher("spectral", **{name: value}).id for name, value in other.items()}
    assert len(ids | {plain.id}) == 1 + len(other)


def test_recipe_makes_the_same_teacher_again():
    options = TeacherOptions(spectral=SpectralOptions(num_mel_coefficients=10), window_seconds=20.0)
    recipe = json.loads(json.dumps(dataclasses.asdict(options)))
    assert TeacherOptions.from_recipe(recipe).create().id == options.create().id
    moved = TeacherOptions.from_recipe({**recipe, "path": "old"}, path="new", dtype="bfloat16")
    assert (moved.path, moved.dtype, moved.spectral) == ("new", "bfloat16", options.spectral)
    assert TeacherOptions.from_recipe({**recipe, "path": "old"}).path == "old"


class StubEncoder(torch.nn.Module):
    """As much of SpearEncoder as the teacher uses: hidden state i is i times the frame's number."""

    hidden_dims, hidden_first_center_ms, min_samples = [4, 6, 6], 45.0, 1360

    def hidden_length(self, num_samples):
        return ((num_samples + 80) // 160 - 7) // 2

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def extract(self, waveforms, lengths):
        assert not self.training
        frames = ((waveforms.shape[1] + 80) // 160 - 7) // 2
        ramp = torch.arange(float(frames)).view(1, -1, 1).expand(len(waveforms), -1, 6)
        return SimpleNamespace(hidden_states=[index * ramp for index in range(3)])


def test_encoder_as_a_teacher(monkeypatch):
    monkeypatch.setattr(encoders, "load_encoder", lambda path: StubEncoder().train(), raising=False)
    teacher = create_teacher("spear", "some/folder", layer=-1)
    assert (teacher.layer, teacher.field_prefix, teacher.embedding_dim) == ("hidden_states[2]", "spear_l2", 6)
    assert (teacher.frame_rate, teacher.first_frame_center_ms) == (50.0, 45.0)
    embeddings, counts = teacher.embed(*noise(16000, 9000))
    assert counts.tolist() == [46, 24] == [teacher.num_frames(16000), teacher.num_frames(9000)]
    assert embeddings[0, 45, 0] == 90 and embeddings[1, 23, 0] == 46 and not embeddings[1, 24:].any()
    first = create_teacher("spear", "some/folder", layer=0)
    assert first.id != teacher.id and first.embedding_dim == 4
    other = StubEncoder()
    with torch.no_grad():
        other.weight[0] = 2
    monkeypatch.setattr(encoders, "load_encoder", lambda path: other)
    assert teacher.id != create_teacher("spear", "some/folder").id
    with pytest.raises(ValueError, match="layer is 3: the encoder at some/folder has hidden states 0..2"):
        create_teacher("spear", "some/folder", layer=3)


@pytest.mark.parametrize(("kind", "expected"), [("zipformer", [21, 12, 0]), ("transformer", [24, 15, 1])])
def test_a_real_encoder_does_not_see_batch_mates(monkeypatch, kind, expected):
    torch.manual_seed(0)
    config = ZipformerConfig.mini() if kind == "zipformer" else TransformerConfig.mini()
    encoder = build_encoder(config)
    monkeypatch.setattr(encoders, "load_encoder", lambda path: encoder, raising=False)
    teacher = create_teacher("spear", "folder", layer=1)
    waveforms, lengths = noise(8000, 5000, 400)
    together, counts = teacher.embed(waveforms, lengths)
    assert together.shape == (3, teacher.num_frames(8000), teacher.embedding_dim)
    assert counts.tolist() == expected
    alone, _ = teacher.embed(waveforms[1:2, :5000], lengths[1:2])
    torch.testing.assert_close(together[1, : expected[1]], alone[0], atol=1e-4, rtol=1e-3)


def every_geometry(monkeypatch):
    """(name, frames of N samples, frames per second, centre of frame 0) of every kind of teacher."""
    encoders_of = [
        ZipformerConfig.mini(),
        ZipformerConfig.mini(output_downsampling_factor=2),
        TransformerConfig.mini(),
    ]
    made = [create_teacher("spectral", frame_rate=rate) for rate in (25, 50)]
    for config in encoders_of:
        encoder = build_encoder(config)
        monkeypatch.setattr(encoders, "load_encoder", lambda path, encoder=encoder: encoder, raising=False)
        made += [create_teacher("spear", "folder"), EncoderOutputTeacher("folder")]
    for teacher in made:
        yield teacher.name, teacher.num_frames, teacher.frame_rate, teacher.first_frame_center_ms
    for kind in (DashengTeacher, AtstFrameTeacher, ResemblyzerTeacher, SpeechEmbeddingTeacher):
        yield kind.name, partial(kind.num_frames, None), kind.frame_rate, kind.first_frame_center_ms


def test_stage_6_expects_the_frames_that_every_teacher_has(monkeypatch):
    for name, count, rate, center in every_geometry(monkeypatch):
        facts = TokenFacts("x_cb1", name, "q", rate, center, 1, 256, "cuts")
        for num_samples in [*range(1600, 3300, 37), 15999, 16000, 16001, 160_000, 479_999]:
            assert abs(facts.num_frames(num_samples / 16000) - count(num_samples)) <= 1.01, (
                name,
                num_samples,
            )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: create_teacher("spectrall"), "unknown teacher 'spectrall'.*did you mean 'spectral'"),
        (lambda: create_teacher("spectral", "x.pt"), "has no weights, but a path was given: x.pt"),
        (
            lambda: create_teacher("spear"),
            r"needs a path \(--teacher_path\): an encoder that load_encoder reads",
        ),
        (lambda: create_teacher("spectral", bins=3), "has no option bins; it has num_mel_coefficients"),
        (lambda: create_teacher("spectral", layer=3), "the spectral teacher has no option layer"),
        (lambda: create_teacher("spectral", dtype="bfloat16"), "the spectral teacher computes in float32"),
        (lambda: create_teacher("spectral", window_seconds=0.5), "window_seconds is 0.5"),
        (
            lambda: create_teacher("spectral", overlap_seconds=16.0),
            r"overlap_seconds is 16: it must be in 0..15",
        ),
        (lambda: create_teacher("spectral", num_time_coefficients=12), "must be in 1..9"),
        (lambda: create_teacher("spectral", num_mel_coefficients=0), "must be in 1..128"),
        (
            lambda: create_teacher("spectral", frame_rate=40.0),
            "frame_rate is 40: the spectral teacher has 50 or 25 frames per second",
        ),
        (lambda: create_teacher("spectral", context_frames=-1), "context_frames is -1"),
        (lambda: create_teacher("spectral", dynamic_range_db=-1.0), "dynamic_range_db is -1.0"),
        (
            lambda: create_teacher("spectral").embed(torch.zeros(8000), torch.tensor([8000])),
            r"waveforms \(B, N\)",
        ),
        (
            lambda: create_teacher("spectral").embed(torch.full((1, 800), torch.nan), torch.tensor([800])),
            "NaN or infinity",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_batches_hold_neighbours_in_length_within_the_limit():
    durations = [3.0, 1.0, 9.0, 2.0, 2.5, 0.5]
    batches = length_batches(durations, 6.0)
    assert sorted(position for batch in batches for position in batch) == list(range(6))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(durations[position] for position in batch) <= 6.0
    assert len(batches) < 6
