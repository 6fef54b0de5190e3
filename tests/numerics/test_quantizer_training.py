"""Training of the quantiser: solutions are optima, codes stay alive, a stopped run ends the same, the
bound."""

import math

import numpy as np
import pytest
import torch

from spear_lib.quantization import Quantizer, search, trainer
from spear_lib.quantization.embeddings import FrameMatrix, split_held_out, statistics
from spear_lib.quantization.initialisation import discriminant_classifiers, k_means, residual_encode
from spear_lib.quantization.options import QuantizerTrainingOptions
from spear_lib.quantization.report import code_usage, gaussian_bound, make_report, plot_report
from spear_lib.quantization.trainer import train_quantizer

OPTIONS = QuantizerTrainingOptions(
    num_codebooks=3,
    codebook_size=16,
    rounds=4,
    frames_per_round=1500,
    init_frames=1000,
    init_iterations=4,
    classifier_frames=1500,
    classifier_steps=30,
    classifier_batch=256,
)


def toy_frames(count: int = 2000, seed: int = 0) -> torch.Tensor:
    """Frames on a 6-dimensional subspace of 12 channels with unequal scales, as float16."""
    generator = torch.Generator().manual_seed(seed)
    shape = torch.randn(6, 12, generator=torch.Generator().manual_seed(99)) * torch.linspace(0.2, 3, 12)
    noise = 0.05 * torch.randn(count, 12, generator=generator)
    return (torch.randn(count, 6, generator=generator) @ shape + 2 + noise).half()


def matrix(frames: torch.Tensor) -> FrameMatrix:
    mean, std = statistics(frames, "channel")
    return FrameMatrix(frames, mean, std + 1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantizer")
    return train_quantizer(matrix(toy_frames()), OPTIONS, 0, folder, "run")


def test_training_beats_its_start_and_uses_every_code(trained):
    quantizer, history = trained
    report = make_report(quantizer, toy_frames(500, seed=1), toy_frames())
    errors = [entry["relative_error"] for entry in history]
    assert errors[-1] < errors[0]
    assert report["num_dead_codes"] == 0
    assert min(report["perplexity"]) > 10
    # 12 bits in small codebooks cannot come as close to the bound as long blocks would.
    assert report["relative_error"]["5"] < 2 * report["gaussian_bound"]
    assert report["relative_error"]["5"] <= report["relative_error"]["1"] < report["relative_error"]["0"]
    # Every codebook matters.
    assert min(report["relative_error_without_codebook"]) > 2 * report["relative_error"]["5"]


def test_first_guess_is_worth_having(trained):
    quantizer, _ = trained
    x = toy_frames(500, seed=2)
    guess, found = quantizer.encode(x, 0), quantizer.encode(x, 5)
    assert (guess == found).float().mean() > 0.4


def test_stopped_and_started_again_ends_with_the_same_quantiser(trained, tmp_path, monkeypatch):
    save, calls = trainer.save_state, []

    def save_and_stop(state, path):
        save(state, path)
        calls.append(state["round"])
        if len(calls) in (2, 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_state", save_and_stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_quantizer(matrix(toy_frames()), OPTIONS, 0, tmp_path, "run")
    quantizer, history = train_quantizer(matrix(toy_frames()), OPTIONS, 0, tmp_path, "run")
    assert calls == [0, 1, 2, 3, 4]
    assert quantizer.id == trained[0].id and history == trained[1]


def test_state_of_another_run_is_refused(tmp_path):
    train_quantizer(matrix(toy_frames(300)), OPTIONS, 0, tmp_path, "run")
    with pytest.raises(ValueError, match="belongs to a training with other options or embeddings; delete it"):
        train_quantizer(matrix(toy_frames(300)), OPTIONS, 0, tmp_path, "other run")


def test_seed_decides(tmp_path):
    first = train_quantizer(matrix(toy_frames(300)), OPTIONS, 0, tmp_path / "a", "run")[0]
    again = train_quantizer(matrix(toy_frames(300)), OPTIONS, 0, tmp_path / "b", "run")[0]
    other = train_quantizer(matrix(toy_frames(300)), OPTIONS, 1, tmp_path / "c", "run")[0]
    assert first.id == again.id != other.id


def test_centers_are_the_least_squares_solution():
    torch.manual_seed(0)
    quantizer, x = Quantizer(5, 3, 8), torch.randn(400, 5)
    table = quantizer.code_table()
    rows = quantizer.encode(x).long() + table.first_row
    hot = torch.zeros(400, 24, dtype=torch.float64).scatter_(1, rows, 1.0)
    assert torch.equal(trainer.cooccurrence(rows, table), hot.T @ hot)
    previous = quantizer.effective_centers().detach()
    solved = trainer.solve_centers(hot.T @ hot, hot.T @ x.double(), previous, 1e-3)
    best = torch.linalg.lstsq(hot, x.double(), driver="gelsd").solution
    torch.testing.assert_close(hot @ solved.view(24, 5).double(), hot @ best, atol=1e-3, rtol=1e-3)
    strong = trainer.solve_centers(hot.T @ hot, hot.T @ x.double(), previous, 1e9)
    torch.testing.assert_close(strong, previous, atol=1e-4, rtol=1e-4)


def test_unused_codes_move_beside_the_most_used():
    centers = torch.arange(8.0).view(1, 4, 2).clone()
    usage = torch.tensor([[100, 0, 1, 899]])
    assert trainer._revive(centers, usage, 0.01, "test") == 2
    assert (centers[0, 1] - torch.tensor([6.0, 7.0])).abs().max() < 0.1
    assert centers[0, 0].tolist() == [0.0, 1.0] and not torch.equal(centers[0, 1], centers[0, 2])


def test_k_means_finds_clusters_and_leaves_none_empty():
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    x = truth[torch.randint(4, (400,), generator=generator)] + 0.1 * torch.randn(400, 2, generator=generator)
    centers = k_means(x, 4, 20, "test", 1)
    assert centers.shape == (4, 2)
    codes = residual_encode(x, centers[None])
    assert len(codes.unique()) == 4
    # Fewer frames than centres is possible, too.
    assert torch.isfinite(k_means(x[:3], 5, 3, "test")).all()


def test_discriminants_classify_gaussians():
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(6, 4, generator=generator)
    classes = torch.randint(6, (3000, 1), generator=generator)
    x = means[classes[:, 0]] + torch.randn(3000, 4, generator=generator) * torch.tensor([0.2, 0.5, 1.0, 0.5])
    weight, bias = discriminant_classifiers(x, classes, 6)
    right = ((x @ weight.T + bias).argmax(1) == classes[:, 0]).float().mean()
    assert right > 0.95


def test_statistics_are_the_channels():
    frames = toy_frames(1000)
    mean, std = statistics(frames, "channel", chunk=77)
    exact = frames.double()
    torch.testing.assert_close(mean, exact.mean(0).float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(std, exact.std(0, correction=0).float(), atol=1e-5, rtol=1e-5)
    mean, std = statistics(frames, "global")
    torch.testing.assert_close(std, exact.var(0, correction=0).mean().sqrt().float().expand(12))
    half = statistics(frames, "half")[1]
    torch.testing.assert_close(half, (exact.std(0, correction=0).float() * std).sqrt(), atol=1e-4, rtol=1e-4)
    assert statistics(frames, "none")[1].tolist() == [1.0] * 12


def test_held_out_frames_are_whole_recordings():
    ids = [f"r{number}" for number in range(200)]
    counts = np.arange(200)
    held_out = split_held_out(ids, counts, 0.1, 0)
    assert len(held_out) == counts.sum()
    pieces = np.split(held_out, np.cumsum(counts)[:-1])
    assert all(len(np.unique(piece)) <= 1 for piece in pieces)
    assert 8 <= sum(bool(piece[:1].any()) for piece in pieces) <= 40
    assert np.array_equal(held_out, split_held_out(ids, counts, 0.1, 0))
    assert not np.array_equal(held_out, split_held_out(ids, counts, 0.1, 1))
    assert split_held_out(["a", "b"], np.array([1, 1]), 0.01, 0).sum() == 1


def test_gaussian_bound_is_the_worked_example():
    covariance = torch.diag(torch.logspace(0, -2, 64, dtype=torch.float64))
    for bits, expected in ((32, 0.271), (64, 0.117), (128, 0.0285)):
        assert gaussian_bound(covariance, bits) == pytest.approx(expected, rel=5e-3)
    assert gaussian_bound(torch.eye(1), 1) == pytest.approx(0.25)
    assert gaussian_bound(torch.eye(4), 0) == pytest.approx(1.0)
    assert gaussian_bound(torch.diag(torch.tensor([4.0, 0.0])), 2) == pytest.approx(1 / 16)


def test_code_usage_of_known_histograms():
    codes = torch.tensor([[0, 1], [1, 1], [2, 1], [3, 1]], dtype=torch.uint8)
    usage = code_usage(codes, 4)
    assert usage["perplexity"] == pytest.approx([4.0, 1.0])
    assert usage["used_share"] == [1.0, 0.25]
    assert usage["entropy_bits"] == pytest.approx([2.0, 0.0])


def test_report_is_complete_and_drawn(trained, tmp_path):
    quantizer, _ = trained
    report = make_report(quantizer, toy_frames(300, seed=3), toy_frames())
    assert list(report["relative_error"]) == ["0", "1", "2", "5"]
    assert report["bits_per_frame"] == 12 and 0 < report["entropy_bits_per_frame"] <= 12
    # The report's error is measured with the normalisation undone, too.
    x = toy_frames(300, seed=3)
    normal = quantizer.normalise(x)
    decoded = quantizer.normalise(quantizer.decode(quantizer.encode(x)))
    spread = (normal - quantizer.data_mean()).square().sum()
    error = float(((decoded - normal).square().sum() / spread).detach())
    assert error == pytest.approx(report["relative_error"]["5"], rel=1e-3)
    plot_report({"quantizer_id": quantizer.id, **report}, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert math.isfinite(sum(report["channel_error"]))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"normalisation": "batch"}, "normalisation is 'batch': use channel, half, global or none"),
        ({"rounds": 0}, "rounds is 0: it must be at least 1"),
        ({"held_out_fraction": 0.7}, r"held_out_fraction is 0.7: it must be in \(0, 0.5\)"),
    ],
)
def test_options_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        QuantizerTrainingOptions(**change)


def test_search_of_the_table_keeps_candidate_limits():
    assert [search.candidates_kept(joined, 256) for joined in (1, 2, 4, 8, 16, 32)] == [
        16,
        16,
        32,
        32,
        64,
        64,
    ]
    assert [search.candidates_kept(joined, 16) for joined in (1, 2, 4, 8, 16)] == [8, 8, 16, 16, 32]
    assert search.candidates_kept(4096, 256) == 128
