"""What tokens keep of a speaker: the vectors, the numbers and the command."""

import json

import numpy as np
import pytest
import torch
from lhotse import SupervisionSegment
from test_token_stages import call, make_cuts

from spear_lib.bin import analyse_tokens
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.quantization import KMeans, Quantizer
from spear_lib.teachers.options import TeacherOptions
from spear_lib.tokens.analysis import (
    TEACHER,
    choose_utterances,
    drawn,
    named,
    representations,
    separability,
    two_dimensions,
    utterance_vectors,
)

SPEAKERS = ["ann", "bob", "eve"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Twelve cuts of three speakers; a quantiser and a k-means of the spectral teacher, untrained."""
    folder = tmp_path_factory.mktemp("analysis")
    cuts = []
    for number, cut in enumerate(Manifest(make_cuts(folder / "audio"))):
        who = SPEAKERS[number % 3]
        cut.supervisions = [SupervisionSegment(cut.id, cut.recording_id, 0.0, cut.duration, speaker=who)]
        cuts.append(cut)
    save_cuts(cuts, folder / "cuts.jsonl.gz")
    teacher_options = TeacherOptions()
    teacher = teacher_options.create()
    torch.manual_seed(0)
    for name, tokeniser in (("mvq", Quantizer(80, 3, 16)), ("kmeans", KMeans(80, 20))):
        with torch.no_grad():
            tokeniser.centers.normal_(std=10)
            tokeniser.mean.normal_()
            tokeniser.std.uniform_(0.5, 1.5)
        recipe = {**vars(teacher_options), "spectral": vars(teacher_options.spectral)}
        tokeniser.provenance = {"teacher": teacher.describe(), "recipe": recipe}
        tokeniser.save(folder / name)
    return folder


def test_choice_is_random_by_seed_and_balanced(made):
    manifest = Manifest(made / "cuts.jsonl.gz")
    chosen = choose_utterances([manifest], 2, 3, seed=1)
    assert len(chosen.positions[0]) == 6 and len(set(chosen.speakers)) == 2
    for position, who in zip(chosen.positions[0], chosen.speakers):
        assert who == SPEAKERS[position % 3]
    assert chosen == choose_utterances([manifest], 2, 3, seed=1)
    assert any(choose_utterances([manifest], 2, 3, seed=seed) != chosen for seed in range(2, 6))
    assert len(choose_utterances([manifest], 0, 25, seed=1).speakers) == 12
    with pytest.raises(ValueError, match="num_speakers is 4: it must be in 2..3"):
        choose_utterances([manifest], 4, 3, seed=1)


def test_single_codebooks_add_up_to_the_whole(made):
    quantizer, kmeans = Quantizer.load(made / "mvq"), KMeans.load(made / "kmeans")
    x = torch.randn(30, 80) * 10
    found = representations(x, {"3 codebooks": quantizer, "k-means 20": kmeans}, 2)
    singles = [f"3 codebooks: no. {n}" for n in (1, 2, 3)]
    assert list(found) == [TEACHER, "3 codebooks", *singles, "k-means 20"]
    total = sum(found[name] - quantizer.mean for name in singles) + quantizer.mean
    torch.testing.assert_close(total, found["3 codebooks"], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found["k-means 20"], kmeans.decode(kmeans.encode(x)))


@pytest.mark.parametrize("pooling", ["mean", "mean_std"])
def test_vectors_are_pooled_over_the_frames_of_each_utterance(made, pooling):
    manifest, teacher = Manifest(made / "cuts.jsonl.gz"), TeacherOptions().create()
    kmeans = KMeans.load(made / "kmeans")
    positions = [7, 2, 4]
    found = utterance_vectors(teacher, {"k": kmeans}, [manifest], [positions], pooling, batch_seconds=2)
    whole, errors = [], []
    for row, position in enumerate(positions):
        audio = torch.from_numpy(manifest[position].load_audio())
        frames = teacher.embed(audio, torch.tensor([audio.shape[1]]))[0][0]
        for name, values in ((TEACHER, frames), ("k", kmeans.decode(kmeans.encode(frames)))):
            expected = values.mean(0)
            if pooling == "mean_std":
                expected = torch.cat([expected, values.std(0, correction=0)])
            np.testing.assert_allclose(found.vectors[name][row], expected, atol=2e-3)
        whole.append(frames)
        errors.append((kmeans.decode(kmeans.encode(frames)) - frames).square().sum())
    frames = torch.cat(whole)
    expected = float(sum(errors) / (frames - frames.mean(0)).square().sum())
    assert found.relative_error["k"] == pytest.approx(expected, rel=1e-3)
    assert found.relative_error[TEACHER] == 0
    with pytest.raises(ValueError, match="pooling is 'max': use mean or mean_std"):
        utterance_vectors(teacher, {}, [manifest], [positions], "max")


def test_numbers_of_clear_and_of_no_speakers():
    random = np.random.default_rng(0)
    speakers = np.repeat(SPEAKERS, 20)
    far = random.standard_normal((60, 5)) + 50 * np.repeat(np.eye(3, 5), 20, axis=0)
    clear = separability(far, speakers)
    assert clear["nearest_neighbour"] == clear["linear_probe"] == 100 and clear["silhouette"] > 0.8
    none = separability(random.standard_normal((60, 5)), speakers)
    assert none["nearest_neighbour"] < 60 and none["linear_probe"] < 60 and abs(none["silhouette"]) < 0.15
    assert none["chance"] == pytest.approx(100 / 3)


def test_the_nearest_neighbour_is_another_utterance():
    """Equal vectors of two speakers: leaving one out, its twin decides, never the utterance itself."""
    speakers = ["a", "b", "a", "b"]
    vectors = np.array([[0.0], [0.0], [9.0], [9.0]])
    assert separability(vectors, speakers)["nearest_neighbour"] == 0


def test_names_for_readers(made):
    mvq, kmeans = Quantizer.load(made / "mvq"), KMeans.load(made / "kmeans")
    assert list(named({"x": mvq, "y": kmeans, "z": Quantizer(4, 1, 4)})) == [
        "3 codebooks",
        "k-means 20",
        "1 codebook",
    ]
    assert list(named({"x": mvq, "y": mvq})) == ["3 codebooks (x)", "3 codebooks (y)"]
    accuracy = {"3 codebooks": 9, "3 codebooks: no. 1": 5, "3 codebooks: no. 2": 1, "3 codebooks: no. 3": 3}
    numbers = {name: {"nearest_neighbour": value} for name, value in accuracy.items()}
    assert drawn(numbers, ["3 codebooks"], 0) == [TEACHER, "3 codebooks", "3 codebooks: no. 3"]
    assert drawn(numbers, ["3 codebooks"], 2)[-1] == "3 codebooks: no. 2"
    with pytest.raises(ValueError, match="codebook is 12, but '3 codebooks' has 3"):
        drawn(numbers, ["3 codebooks"], 12)


def test_command(made, tmp_path):
    options = ("--cuts", made / "cuts.jsonl.gz", "--tokenisers", f"[{made / 'mvq'},{made / 'kmeans'}]")
    options = (*options, "--output_dir", tmp_path, "--num_speakers", 3)
    call(analyse_tokens, *options)
    result = json.loads((tmp_path / "analysis.json").read_text())
    assert list(result["numbers"])[:2] == [TEACHER, "3 codebooks"]
    assert result["speakers"] == SPEAKERS and len(result["utterances"]) == 12
    assert result["method"] == "t-SNE"
    for name in ("speakers.png", "numbers.png"):
        assert (tmp_path / name).stat().st_size > 10000
    first = (tmp_path / "analysis.json").read_bytes()
    call(analyse_tokens, *options)
    assert (tmp_path / "analysis.json").read_bytes() == first


def test_tokenisers_of_two_teachers_are_refused(made, tmp_path):
    other = KMeans.load(made / "kmeans")
    other.provenance["teacher"] = {"teacher_id": "another"}
    other.save(tmp_path / "other")
    options = ("--cuts", made / "cuts.jsonl.gz", "--tokenisers", f"[{made / 'mvq'},{tmp_path / 'other'}]")
    with pytest.raises(ValueError, match="belong to 2 teachers, .*another.*: give one's only"):
        call(analyse_tokens, *options, "--output_dir", tmp_path)


def test_points_keep_their_neighbours():
    vectors = np.random.default_rng(0).standard_normal((40, 6)) + 20 * np.repeat(np.eye(2, 6), 20, axis=0)
    points = two_dimensions(vectors, 42)
    assert points.shape == (40, 2)
    assert separability(points, ["a"] * 20 + ["b"] * 20)["nearest_neighbour"] == 100
    assert np.array_equal(points, two_dimensions(vectors, 42))
