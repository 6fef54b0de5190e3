"""Training of the quantiser: solutions are optima, codes stay alive, a stopped run ends the same, the
bound."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from quantizer_fixtures import stream, toy_frames

from spear_lib.quantization import Quantizer, classifiers, search, trainer
from spear_lib.quantization.code_table import CodeTable, candidates_kept
from spear_lib.quantization.embeddings import split_held_out, statistics
from spear_lib.quantization.initialisation import discriminants, nearest, principal_blocks
from spear_lib.quantization.options import QuantizerTrainingOptions
from spear_lib.quantization.report import code_usage, gaussian_bound, make_report, plot_report
from spear_lib.quantization.start import start_codebooks
from spear_lib.quantization.trainer import train_quantizer
from spear_lib.runtime.metrics_log import read_metrics
from spear_lib.runtime.world import World

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantizer")
    return train_quantizer(stream(folder / "e", toy_frames()), OPTIONS, 0, folder, "run")


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
    """Stopped in each phase: the axes, a pass of the start, a round, the classifiers."""
    save, calls = trainer.save_state, []
    monkeypatch.setattr(classifiers, "_SAVE_EVERY", 10)

    def save_and_stop(state, path):
        save(state, path)
        calls.append((state["passes"], state["round"], state.get("classifier_step")))
        if len(calls) in (1, 3, 8, 12):
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_state", save_and_stop)
    frames = stream(tmp_path / "e", toy_frames())
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            train_quantizer(frames, OPTIONS, 0, tmp_path, "run")
    quantizer, history = train_quantizer(frames, OPTIONS, 0, tmp_path, "run")
    start = [(number, 0, None) for number in (0, 1, 2, 3, 4, 4)]
    rounds = [(4, number, None) for number in (1, 2, 3, 4)]
    assert calls == start + rounds + [(4, 4, step) for step in (10, 20, 30)]
    assert quantizer.id == trained[0].id and history == trained[1]
    curve = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert curve == [1, 2, 3, 4, 14, 24, 34]
    assert list((tmp_path / "tensorboard").iterdir())


def test_state_of_another_run_is_refused(tmp_path):
    frames = stream(tmp_path / "e", toy_frames(300))
    train_quantizer(frames, OPTIONS, 0, tmp_path, "run")
    with pytest.raises(ValueError, match="belongs to a training with other options or embeddings; delete it"):
        train_quantizer(frames, OPTIONS, 0, tmp_path, "other run")


def test_same_training_same_id_and_the_seed_decides(tmp_path):
    frames = stream(tmp_path / "e", toy_frames(300))
    first = train_quantizer(frames, OPTIONS, 0, tmp_path / "a", "run")[0]
    again = train_quantizer(frames, OPTIONS, 0, tmp_path / "b", "run")[0]
    other = train_quantizer(frames, OPTIONS, 1, tmp_path / "c", "run")[0]
    assert first.id == again.id != other.id


@pytest.mark.parametrize("num_codebooks", [1, 7])
def test_any_number_of_codebooks(num_codebooks, tmp_path):
    options = replace(OPTIONS, num_codebooks=num_codebooks, codebook_size=8, rounds=3, search="reference")
    quantizer, history = train_quantizer(stream(tmp_path / "e", toy_frames()), options, 0, tmp_path, "run")
    assert quantizer.search == "reference"
    assert quantizer.encode(toy_frames(50)).shape == (50, num_codebooks)
    assert history[-1]["relative_error"] < history[0]["relative_error"]
    report = make_report(quantizer, toy_frames(300, seed=1), toy_frames())
    assert report["num_dead_codes"] == 0


def test_best_search_is_never_worse_than_the_references(trained):
    quantizer, x = trained[0], toy_frames(400, seed=5)
    assert quantizer.search == "best"
    plain = Quantizer(12, 3, 16)
    plain.load_state_dict(quantizer.state_dict())

    def errors(model: Quantizer) -> torch.Tensor:
        normal = model.normalise(x)
        return (model.decode(model.encode(x, 2), normalised=True) - normal).square().sum(-1).detach()

    assert (errors(quantizer) <= errors(plain) + 1e-4).all()


def test_fewer_frames_than_codes(tmp_path):
    frames = stream(tmp_path / "e", toy_frames(100))
    options = replace(OPTIONS, codebook_size=128)
    with pytest.raises(ValueError, match=r"\d+ training frames are fewer than the 128 codes .*extract more"):
        train_quantizer(frames, options, 0, tmp_path, "run")


def test_centers_are_the_least_squares_solution():
    torch.manual_seed(0)
    quantizer, x = Quantizer(5, 3, 8), torch.randn(400, 5)
    table = quantizer.code_table()
    rows = quantizer.encode(x).long() + table.first_row
    hot = torch.zeros(400, 24, dtype=torch.float64).scatter_(1, rows, 1.0)
    assert torch.equal(trainer.cooccurrence(rows, table).double(), hot.T @ hot)
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


def started(frames, **changes):
    """The state after the start of the codebooks."""
    state = {"passes": 0, "position": 0}
    start_codebooks(state, frames, replace(OPTIONS, **changes), World(), lambda: None)
    return state


def test_start_finds_clusters_and_leaves_none_empty(tmp_path):
    """Four far clusters, in which some of the first frames are always the same."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    x = truth[torch.randint(4, (900,), generator=generator)] + 0.1 * torch.randn(900, 2, generator=generator)
    frames = stream(tmp_path / "e", x)
    state = started(frames, num_codebooks=1, codebook_size=16, init_frames=400, init_iterations=6)
    centers, seen = state["centers"][0], frames.read(0, frames.epoch_frames)
    assert (seen - centers[nearest(seen, centers)]).square().sum() < 0.001 * seen.square().sum()
    assert len(nearest(seen, centers).unique()) == 16
    assert state["position"] == 400 * 7
    # Fewer frames than a pass asks for.
    assert torch.isfinite(started(frames, init_frames=5000, codebook_size=256)["centers"]).all()


def test_started_codebooks_decode_as_their_blocks_do(tmp_path):
    """Every codebook lives in its own block of axes, so its nearest entry there is the greedy search's."""
    frames = stream(tmp_path / "e", toy_frames())
    state = started(frames)
    centers, axes = state["centers"], state["axes"]
    torch.testing.assert_close(axes.T @ axes, torch.eye(12), atol=1e-5, rtol=0)
    in_axes = (centers @ axes).abs().amax(dim=1)  # (N, D)
    assert ((in_axes > 1e-4).sum(dim=0) == 1).all()
    x, blocks = toy_frames(200, seed=3).float(), axes.split(4, dim=1)
    table = CodeTable(centers)
    codes = search.greedy(table, table.project(x))
    for codebook, block in enumerate(blocks):
        assert torch.equal(codes[:, codebook], nearest(x @ block, centers[codebook] @ block))


def test_more_codebooks_than_channels_start_with_what_is_left(tmp_path):
    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    frames = stream(tmp_path / "e", x)
    errors = []
    for number in (2, 4):
        table = CodeTable(started(frames, num_codebooks=number, codebook_size=8)["centers"])
        seen = frames.read(0, 1000)
        codes = search.greedy(table, table.project(seen))
        errors.append(float((seen - table.vectors[codes + table.first_row].sum(dim=1)).square().mean()))
    assert errors[1] < errors[0] / 5


def test_principal_blocks_share_the_bits():
    """Variances 16, 4, 2, 1 in two blocks: 2 bits are worth 16 alone against the rest (water level 1)."""
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double())[0]
    blocks = principal_blocks(turn @ torch.diag(torch.tensor([16.0, 4, 2, 1]).double()) @ turn.T, 2, 3.5)
    axes = [(turn.T @ block.double()).abs().argmax(dim=0).tolist() for block in blocks]
    assert axes == [[0, 3], [1, 2]]


def test_search_noise_spreads_as_the_code_vectors_do():
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    spread = torch.tensor([5.0, 1.0, 0.0])
    # The offset of a codebook is no spread.
    centers = (torch.randn(2, 4000, 3, generator=generator) * spread + 7.0) @ axes.T
    noise = trainer._noise_like(centers, axes, "test", 1) @ axes
    torch.testing.assert_close(noise.std(dim=(0, 1)), spread, atol=0.02, rtol=0.03)
    assert not torch.equal(noise, trainer._noise_like(centers, axes, "test", 2) @ axes)


def test_chance_is_shrunk_away_and_structure_stays():
    """One codebook whose entries differ along the first axis only."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(32, (1000,), generator=generator)
    truth = torch.zeros(32, 4)
    truth[:, 0] = torch.linspace(-3, 3, 32)
    x = truth[codes] + torch.randn(1000, 4, generator=generator)
    hot = torch.nn.functional.one_hot(codes, 32).double()
    counts, sums = hot.T @ hot, hot.T @ x.double()
    axes = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    solved = trainer.solve_centers(counts, sums, torch.zeros(1, 32, 4), 1e-6)
    energy = (x @ axes).double().square().sum(dim=0)
    identity = (x.double().square().sum(dim=0), 1000.0, torch.eye(4))
    shrunk = trainer.shrink(solved, counts, sums, *identity, 1.0)[0]
    off = [(each - truth).square().sum(dim=0) for each in (solved[0], shrunk)]
    assert off[1][0] < 1.1 * off[0][0] and (off[1][1:] < 0.2 * off[0][1:]).all()
    # Chance alone is isotropic, so any axes do for the total error; repetitions make it larger.
    turned = trainer.shrink(solved, counts, sums, energy, 1000.0, axes, 1.0)[0]
    assert (turned - truth).square().sum() < (solved[0] - truth).square().sum()
    repeated = trainer.shrink(solved, counts, sums, *identity, 1e-3)[0]
    torch.testing.assert_close(repeated[:, 1:], repeated[:1, 1:].expand(32, 3))
    # The mean, and with it the sum of all codebooks, stays.
    mean = (counts.diagonal().float() / 1000) @ solved[0]
    torch.testing.assert_close((counts.diagonal().float() / 1000) @ shrunk, mean, atol=2e-2, rtol=0)


def test_greedy_codes_take_the_nearest_to_what_is_left():
    torch.manual_seed(0)
    centers, x = torch.randn(5, 16, 8), 2 * torch.randn(100, 8)
    table = CodeTable(centers)
    residual, codes = x.clone(), []
    for codebook in centers:
        codes.append(nearest(residual, codebook))
        residual -= codebook[codes[-1]]
    assert torch.equal(search.greedy(table, table.project(x)), torch.stack(codes, dim=1))


def test_discriminants_classify_gaussians():
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(6, 4, generator=generator)
    classes = torch.randint(6, (3000,), generator=generator)
    x = means[classes] + torch.randn(3000, 4, generator=generator) * torch.tensor([0.2, 0.5, 1.0, 0.5])
    hot = torch.nn.functional.one_hot(classes, 6)
    sums = (hot.T.double() @ x.double()).unsqueeze(0)
    weight, bias = discriminants(x.double().T @ x.double(), sums, hot.sum(dim=0, keepdim=True), 3000)
    right = ((x @ weight.T + bias).argmax(1) == classes).float().mean()
    assert right > 0.95


def test_statistics_are_the_channels():
    frames = toy_frames(1000).float()
    exact = frames.double()
    mean, std, first = statistics(frames.split(77), 12, "channel")
    torch.testing.assert_close(mean, exact.mean(0).float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(std, exact.std(0, correction=0).float(), atol=1e-5, rtol=1e-5)
    mean, std, second = statistics(frames.split(500), 12, "global")
    torch.testing.assert_close(std, exact.var(0, correction=0).mean().sqrt().float().expand(12))
    half = statistics([frames], 12, "half")[1]
    torch.testing.assert_close(half, (exact.std(0, correction=0).float() * std).sqrt(), atol=1e-4, rtol=1e-4)
    assert statistics([frames], 12, "none")[1].tolist() == [1.0] * 12
    assert first == second != statistics([frames[1:]], 12, "none")[2]  # the hash of the frames


def test_constant_channels_are_named():
    frames = toy_frames(200).float()
    frames[:, [3, 7]] = 0.1
    with pytest.raises(ValueError, match=r"2 of 12 channels \(number 3, 7\) .* all 200 .*global"):
        statistics(frames.split(50), 12, "channel")
    assert torch.isfinite(statistics(frames.split(50), 12, "global")[1]).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_frames_that_are_no_numbers_are_refused(value, tmp_path):
    frames = toy_frames(300)
    frames[123, 4] = value
    with pytest.raises(ValueError, match="e holds values that float16 cannot"):
        stream(tmp_path / "e", frames)


def test_stream_shows_every_training_frame_once_per_epoch(tmp_path):
    frames = torch.arange(2000.0).unsqueeze(1).repeat(1, 2)  # float16 holds them exactly
    made = stream(tmp_path / "e", frames, buffer_frames=300, normalisation="none")
    made.std = torch.ones(2)
    count = made.epoch_frames
    epochs = [made.read(count * number, count)[:, 0] for number in range(2)]
    expected = torch.from_numpy(made.stored.train).float()
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, expected)
        # Neighbours in the stream are not neighbours in a recording.
        assert ((epoch[1:] - epoch[:-1]).abs() == 1).float().mean() < 0.05
    assert not torch.equal(*epochs)
    # From disk one buffer at a time, whatever was asked for.
    assert 200 < made.most_held <= 350
    # Any position can be opened afresh: that is what resuming and ranks do.
    fresh = stream(tmp_path / "f", frames, buffer_frames=300, normalisation="none")
    fresh.std = torch.ones(2)
    across = fresh.read(count - 100, 230)[:, 0]
    assert torch.equal(across, torch.cat([epochs[0][-100:], epochs[1][:130]]))


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
        ({"search": "exact"}, "search is 'exact': use best or reference"),
        ({"rounds": 0}, "rounds is 0: it must be at least 1"),
        ({"search_noise": -0.1}, r"search_noise is -0.1: it must be in \[0, 1\)"),
        ({"held_out_fraction": 0.7}, r"held_out_fraction is 0.7: it must be in \(0, 0.5\)"),
    ],
)
def test_options_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        QuantizerTrainingOptions(**change)


def test_search_of_the_table_keeps_candidate_limits():
    assert [candidates_kept(joined, 256) for joined in (1, 2, 4, 8, 16, 32)] == [
        16,
        16,
        32,
        32,
        64,
        64,
    ]
    assert [candidates_kept(joined, 16) for joined in (1, 2, 4, 8, 16)] == [8, 8, 16, 16, 32]
    assert candidates_kept(4096, 256) == 128
