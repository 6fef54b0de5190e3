"""Long recordings in overlapping windows: where they lie, which frames are kept, and what they cost."""

import numpy as np
import pytest
import torch
from teacher_fixtures import tiny_checkpoint

from spear_lib.teachers import create_teacher
from spear_lib.teachers.base import Teacher
from spear_lib.teachers.embedding import embed_batches
from spear_lib.teachers.windows import frame_hop, plan_windows

SECOND = 16000


class GeometryTeacher(Teacher):
    """Frame m holds the first and the last sample that it sees: where it was cut is written in its values."""

    name = "geometry"
    embedding_dim = 2
    first_frame_center_ms = 0.0

    def __init__(self, hop: int, field: int) -> None:
        super().__init__()
        self.hop, self.field, self.frame_rate = hop, field, 16000 / hop
        self.longest_batch = 0

    def num_frames(self, num_samples: int) -> int:
        return max(0, (num_samples - self.field) // self.hop + 1)

    def frames(self, waveforms, lengths):
        self.longest_batch = max(self.longest_batch, waveforms.numel())
        seen = waveforms.unfold(1, self.field, self.hop)
        return seen[..., [0, -1]], (lengths - self.field) // self.hop + 1


def geometry(hop=320, field=400, window=30.0, overlap=2.0) -> Teacher:
    return GeometryTeacher(hop, field).configure("float32", window, overlap)


def joined(teacher: Teacher, samples: np.ndarray, batch_seconds: float = 60.0) -> torch.Tensor:
    result = torch.full((teacher.num_frames(len(samples)), teacher.embedding_dim), torch.nan)
    for pieces in embed_batches(teacher, {0: samples}, batch_seconds):
        for piece in pieces:
            place = result[piece.first_frame : piece.first_frame + len(piece.embeddings)]
            assert place.isnan().all()
            place.copy_(piece.embeddings)
    assert not result.isnan().any()
    return result


def test_what_fits_is_one_window():
    teacher = geometry()
    for num_samples in (0, 1, 400, 30 * SECOND):
        (window,) = plan_windows(teacher, num_samples)
        assert (window.start, window.num_samples, window.first_frame, window.skip) == (0, num_samples, 0, 0)
        assert window.num_frames == teacher.num_frames(num_samples)
    assert len(plan_windows(teacher, 30 * SECOND + 1)) == 2


@pytest.mark.parametrize("hop, field", [(320, 400), (640, 640), (320, 1360)])
@pytest.mark.parametrize("window, overlap", [(30.0, 2.0), (10.08, 1.0), (2.0, 0.0), (3.0, 1.5)])
def test_windows_cover_every_frame_once_from_where_it_is_farthest_from_an_edge(hop, field, window, overlap):
    teacher = geometry(hop, field, window, overlap)
    random = np.random.default_rng(0)
    for num_samples in [int(window * SECOND) + 1, *random.integers(int(window * SECOND), 150 * SECOND, 20)]:
        windows = plan_windows(teacher, int(num_samples))
        total = teacher.num_frames(int(num_samples))
        counts = [teacher.num_frames(each.num_samples) for each in windows]
        begins = [each.start // hop for each in windows]
        frames = [
            (each.first_frame + offset, number)
            for number, each in enumerate(windows)
            for offset in range(each.num_frames)
        ]
        assert [frame for frame, _ in frames] == list(range(total))
        for each, begin in zip(windows, begins):
            assert each.start % hop == 0 and each.num_samples <= window * SECOND
            assert each.first_frame - each.skip == begin
        for former, latter in zip(windows, windows[1:]):
            assert former.start + former.num_samples - latter.start >= overlap * SECOND - hop
        # Alike but for the last, which may lack less than a frame.
        assert len({each.num_samples for each in windows[:-1]}) == 1
        assert 0 <= windows[0].num_samples - windows[-1].num_samples < hop
        if overlap:
            frame_edges = list(zip(begins, (begin + count - 1 for begin, count in zip(begins, counts))))
            for frame, number in frames:
                margins = {
                    other: min(
                        frame - begin if other else total, end - frame if other < len(windows) - 1 else total
                    )
                    for other, (begin, end) in enumerate(frame_edges)
                    if begin <= frame <= end
                }
                assert number == max(margins, key=lambda other: (margins[other], -other))  # tie: the earlier


def test_a_window_with_its_default_overlap_keeps_a_second_of_context():
    for window in plan_windows(geometry(), 3600 * SECOND)[1:-1]:
        behind = 1499 - window.skip - window.num_frames
        assert window.skip >= 49 and behind >= 49


def test_joined_frames_are_those_of_the_whole_recording():
    samples = np.arange(95 * SECOND + 123, dtype=np.float32)
    for teacher in (geometry(), geometry(640, 640, 10.08, 1.0)):
        whole, _ = teacher.embed(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
        assert torch.equal(joined(teacher, samples), whole[0])
        assert torch.equal(joined(teacher, samples, batch_seconds=10.0), whole[0])


def test_two_hours_cost_no_more_memory_than_a_batch():
    teacher = geometry()
    samples = np.zeros(7200 * SECOND, dtype=np.float32)  # the pages are never touched
    frames = largest = 0
    for pieces in embed_batches(teacher, {0: samples}, batch_seconds=120.0):
        frames += sum(len(piece.embeddings) for piece in pieces)
        largest = max(largest, sum(len(piece.embeddings) for piece in pieces))
    assert frames == teacher.num_frames(len(samples)) == 359999
    assert teacher.longest_batch <= 120 * SECOND and largest <= 120 * 50


def test_the_frames_of_windows_do_not_depend_on_other_recordings(tmp_path):
    teacher = create_teacher("wavlm", tiny_checkpoint(tmp_path), window_seconds=2.0, overlap_seconds=0.5)
    random = np.random.default_rng(0)
    samples = random.standard_normal(7 * SECOND).astype(np.float32)
    others = {number: random.standard_normal(9000 * number).astype(np.float32) for number in (1, 2, 3)}
    alone = joined(teacher, samples)
    together = torch.zeros_like(alone)
    for pieces in embed_batches(teacher, {**others, 9: samples}, 12.0):
        for piece in pieces:
            if piece.position == 9:
                together[piece.first_frame : piece.first_frame + len(piece.embeddings)] = piece.embeddings
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_every_teacher_without_weights_or_with_a_tiny_checkpoint_joins_exactly(tmp_path):
    """Frame counts with windows are those without, for a real front end and a real network."""
    samples = np.random.default_rng(0).standard_normal(50001).astype(np.float32)
    spectral_whole = create_teacher("spectral", mean_normalisation=False, dynamic_range_db=0.0)
    spectral = create_teacher(
        "spectral",
        window_seconds=1.0,
        overlap_seconds=0.3,
        mean_normalisation=False,
        dynamic_range_db=0.0,
    )
    whole, _ = spectral_whole.embed(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    # 4 frames of context, 15 of overlap: nothing that is kept sees an edge.
    torch.testing.assert_close(joined(spectral, samples), whole[0], atol=1e-3, rtol=1e-4)
    hubert = create_teacher(
        "hubert", tiny_checkpoint(tmp_path, "hubert"), window_seconds=1.0, overlap_seconds=0.3
    )
    assert joined(hubert, samples).shape == (hubert.num_frames(50001), 32)


def test_geometry_that_cannot_be_joined_is_refused():
    with pytest.raises(ValueError, match="frames per second, which is no whole number of samples"):
        teacher = geometry()
        teacher.frame_rate = 48.0
        frame_hop(teacher)
    teacher = geometry(window=4.0)
    teacher.num_frames = lambda num_samples: num_samples // 500
    with pytest.raises(RuntimeError, match="num_frames must grow by one frame per 320 samples"):
        plan_windows(teacher, 5 * SECOND)
