"""Pairing of teacher and student frames: the reference's by position (golden) and ours by time (spec teachers
§7)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from spear_lib.pretraining.alignment import align_targets, teacher_frame

GOLDEN = Path(__file__).parents[1] / "golden" / "joint_codebook_loss.safetensors"
STUDENT_50, STUDENT_25 = (50.0, 45.0), (25.0, 55.0)
WAVLM, DASHENG = (50.0, 12.5), (25.0, 15.0)


def golden_cases():
    with safe_open(GOLDEN, "pt") as file:
        settings = json.loads(file.metadata()["align"])
        return [
            pytest.param(
                file.get_tensor(f"align.{name}.tokens"), file.get_tensor(f"align.{name}.out"), case, id=name
            )
            for name, case in settings.items()
        ]


@pytest.mark.parametrize("tokens, expected, case", golden_cases())
def test_by_index_as_the_reference(tokens, expected, case):
    student = STUDENT_25 if case["ratio"] == 2 else STUDENT_50
    token_rate = 25.0 if case.get("upsampled") else 50.0
    out = align_targets(tokens, token_rate, 0.0, case["T_enc"], *student, mode="index")
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    "student, teacher, pairing",
    [
        (STUDENT_50, WAVLM, lambda j: j + 2),
        (STUDENT_50, DASHENG, lambda j: j // 2 + 1),
        (STUDENT_25, WAVLM, lambda i: 2 * i + 2),
        (STUDENT_25, DASHENG, lambda i: i + 1),
    ],
)
def test_by_time_as_the_table(student, teacher, pairing):
    frames = torch.arange(400)
    assert torch.equal(teacher_frame(frames, *teacher, *student, "center"), pairing(frames))


def test_by_time_is_the_nearest_frame_and_never_further_than_half_a_hop():
    for student in (STUDENT_50, STUDENT_25):
        for rate, first in ((50.0, 0.0), (50.0, 10.0), (50.0, 12.5), (25.0, 15.0), (25.0, 20.0)):
            frames = torch.arange(50, dtype=torch.float64)
            group = max(1, round(rate / student[0]))
            chosen = teacher_frame(frames, rate, first, *student, "center")
            center = 1000 / rate * (chosen + (group - 1) / 2) + first
            error = (center - (1000 / student[0] * frames + student[1])).abs()
            assert error.max() <= 1000 / rate / 2 + 1e-6


def test_the_last_student_frame_always_has_a_teacher_frame():
    for num_samples in range(1360, 9000, 7):
        student_50 = ((num_samples + 80) // 160 - 7) // 2
        wavlm = (num_samples - 400) // 320 + 1
        tokens = torch.zeros(1, wavlm, 1, dtype=torch.int64)
        assert (align_targets(tokens, *WAVLM, student_50, *STUDENT_50) >= 0).all()
        student_25 = (student_50 + 1) // 2
        assert (align_targets(tokens, *WAVLM, student_25, *STUDENT_25)[..., 0] >= 0).all()


def test_padding_of_the_student_is_never_a_target():
    tokens = torch.randint(0, 256, (2, 30, 4))
    out = align_targets(tokens, *WAVLM, 20, *STUDENT_50, lengths=torch.tensor([20, 7]))
    assert (out[0] >= 0).all() and (out[1, :7] >= 0).all()
    assert (out[1, 7:] == -100).all()
    assert torch.equal(out[0, :, 1], tokens[0, 2:22, 1])


def test_padding_of_the_teacher_stays_padding():
    tokens = torch.full((1, 10, 2), -100)
    tokens[0, :4] = 5
    out = align_targets(tokens, *WAVLM, 12, *STUDENT_50)
    assert (out[0, :2] == 5).all() and (out[0, 2:] == -100).all()


def test_two_teacher_frames_become_extra_codebooks_in_order():
    tokens = torch.arange(12).reshape(1, 6, 2)
    out = align_targets(tokens, *WAVLM, 2, *STUDENT_25)
    assert out.tolist() == [[[4, 5, 6, 7], [8, 9, 10, 11]]]


def test_wrong_rates_and_modes_are_explained():
    tokens = torch.zeros(1, 5, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="tokens at 75 Hz cannot be aligned with an encoder at 50 Hz"):
        align_targets(tokens, 75.0, 0.0, 5, *STUDENT_50)
    with pytest.raises(ValueError, match="'center' or 'index', it is 'middle'"):
        align_targets(tokens, 50.0, 0.0, 5, *STUDENT_50, mode="middle")


def test_a_student_frame_halfway_between_two_teacher_frames_takes_the_later():
    frames = torch.arange(5)
    # Centres of students at 0, 20, 40 ms; of teachers at 10, 30, 50 ms: always 10 ms to either side.
    assert teacher_frame(frames, 50.0, 10.0, 50.0, 0.0, "center").tolist() == [0, 1, 2, 3, 4]
    # Teachers at 25 Hz, centres 20, 60, 100 ms: 0 lies before all of them, 40 and 80 between two.
    assert teacher_frame(frames, 25.0, 20.0, 50.0, 0.0, "center").tolist() == [0, 0, 1, 1, 2]
