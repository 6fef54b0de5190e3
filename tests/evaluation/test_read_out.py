"""Linear read-out of clips and frames: labels at times, the choice of the layer, the command."""

import json
import logging

import numpy as np
import pytest
import torch
from phone_corpus import SPEAKERS, write_corpus, write_encoder

from spear_lib.bin import evaluate_linear
from spear_lib.evaluation.read_out import Segment, frame_vectors, labels_at, read_out, read_segments
from spear_lib.interfaces.aligned import AlignedEncoder
from spear_lib.interfaces.upstreams import load_upstream


def test_labels_at_times():
    segments = [Segment(0.0, 0.1, "a"), Segment(0.1, 0.3, "b"), Segment(0.5, 0.6, "c")]
    times = np.array([0.0, 0.0999, 0.1, 0.3, 0.4, 0.5, 0.6, 9.0])
    assert labels_at(times, segments) == ["a", "a", "b", None, None, "c", None, None]
    assert labels_at(np.array([0.0]), segments[2:]) == [None]


def rounds_of(count: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rows = np.arange(count)
    return [(rows[rows % 4 < 2], rows[rows % 4 == 2], rows[rows % 4 == 3])]


def test_the_layer_that_knows_is_chosen_and_nothing_is_read_from_noise():
    random = np.random.default_rng(0)
    labels = random.choice(["a", "b", "c"], size=400)
    noise = random.standard_normal((400, 8))
    known = 0.3 * noise + np.eye(8)[np.searchsorted(["a", "b", "c"], labels)] * 3
    found = read_out([noise, known], labels, rounds_of(400), neighbours=True)
    assert found["layers"] == [1] and found["score"] == 100.0 and found["knn"] == 100.0
    assert found == read_out([noise, known], labels, rounds_of(400), neighbours=True)
    # The commonest label of the test part, counted by hand.
    test = labels[np.arange(400) % 4 == 3]
    assert found["chance"] == pytest.approx(max((test == name).mean() for name in "abc") * 100)
    nothing = read_out([noise], labels, rounds_of(400), neighbours=True)
    assert abs(nothing["score"] - found["chance"]) < 15 and abs(nothing["knn"] - 33) < 15


def test_the_score_is_that_of_ridge_regression():
    """Against scikit-learn's ridge classifier, with the one strength that is the best on validation."""
    from sklearn.linear_model import Ridge
    from sklearn.metrics import average_precision_score

    from spear_lib.evaluation.ridge import STRENGTHS

    random = np.random.default_rng(1)
    labels = np.where(random.random(240) < 0.3, "yes", "no")
    vectors = random.standard_normal((240, 5))
    vectors[:, 0] += labels == "yes"
    (train, valid, test) = rounds_of(240)[0]

    def scores(fitted: np.ndarray, asked: np.ndarray, strength: float) -> np.ndarray:
        mean, scale = vectors[fitted].mean(0), vectors[fitted].std(0)
        model = Ridge(alpha=strength * len(fitted)).fit(
            (vectors[fitted] - mean) / scale, labels[fitted] == "yes"
        )
        return model.predict((vectors[asked] - mean) / scale)

    def precision(rows: np.ndarray, predicted: np.ndarray) -> float:
        return average_precision_score(labels[rows] == "yes", predicted)

    best = max(STRENGTHS, key=lambda strength: precision(valid, scores(train, valid, strength)))
    both = np.concatenate([train, valid])
    expected = 100 * precision(test, scores(both, test, best))
    found = read_out([vectors], labels, [(train, valid, test)], positive="yes")
    assert found["score"] == pytest.approx(expected, abs=1e-6)
    assert found["chance"] == pytest.approx(100 * (labels[test] == "yes").mean())


def test_what_cannot_be_read_out_is_said(tmp_path):
    with pytest.raises(ValueError, match="the labels are a: two or more are needed"):
        read_out([np.ones((8, 2))], np.array(["a"] * 8), rounds_of(8))
    with pytest.raises(ValueError, match="two or more, with c, are needed"):
        read_out([np.ones((8, 2))], np.array(["a", "b"] * 4), rounds_of(8), positive="c")
    table = tmp_path / "t.tsv"

    def refused(text: str, match: str) -> None:
        table.write_text(text)
        with pytest.raises(ValueError, match=match):
            read_segments([str(table)], "part")

    refused("path\tlabel\n", "has no column start, end, part: expected the columns")
    head = "path\tstart\tend\tlabel\tpart\n"
    refused(head + "a.wav\t0\tx\ta\ttrain\n", "line 2: start and end must be seconds, they are '0' and 'x'")
    refused(head + "a.wav\t0\t1\ta\ttrain\na.wav\t1\t2\tb\ttest\n", "a.wav is in train and in test")
    refused(head + "a.wav\t0\t1\ta\ttrain\n", "the parts are train: train, valid and test are needed")


@pytest.fixture
def corpus(tmp_path):
    """The phones of three speakers as segments, one speaker in each part, and their recordings as clips."""
    folder = write_corpus(tmp_path / "corpus")
    parts = dict(zip(SPEAKERS, ("train", "valid", "test")))
    rows = [line.split("\t") for line in (folder / "phones.tsv").read_text().splitlines()[1:]]
    lines = ["path\tstart\tend\tlabel\tpart"]
    for name, start, end, phone in rows:
        speaker = name.split("-")[0]
        lines.append(f"audio/{speaker}/one.wav\t{start}\t{end}\t{phone}\t{parts[speaker]}")
    (folder / "frames.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_frames_do_not_depend_on_what_runs_beside_them(corpus, monkeypatch):
    encoder = AlignedEncoder(load_upstream(write_encoder(corpus / "encoder")), "all")
    recordings = read_segments([str(corpus / "frames.tsv")], "part")
    together = frame_vectors(encoder, recordings, "x")
    monkeypatch.setattr("spear_lib.evaluation.read_out._BATCH_SECONDS", 0.1)
    alone = frame_vectors(encoder, recordings, "x")
    for one, other in zip(together[0], alone[0]):
        torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other), atol=1e-4, rtol=1e-4)
    # 1.9 s of every recording have a label: 95 frames of 20 ms, the first centred at 5 ms.
    assert [int((together[2] == part).sum()) for part in ("train", "valid", "test")] == [95, 95, 95]
    assert list(together[1][:6]) == ["sil"] * 5 + ["a"]


def test_the_command(corpus, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    clips = ["path\tlabel\tfold"]
    for number, speaker in enumerate(SPEAKERS * 4):
        (corpus / f"{number}.wav").symlink_to(corpus / "audio" / speaker / "one.wav")
        clips.append(f"{number}.wav\t{speaker}\t{number // 3 % 3}")
    (corpus / "clips.tsv").write_text("\n".join(clips) + "\n")
    given = [f"--encoders=[ours={write_encoder(tmp_path / 'encoder')}]", f"--output_dir={tmp_path / 'out'}"]
    given += ["--device=cpu"]
    frames = [*given, "--task=phones", f"--frames=[{corpus / 'frames.tsv'}]"]
    evaluate_linear.main(frames)
    evaluate_linear.main([*given, "--task=a", f"--frames=[{corpus / 'frames.tsv'}]", "--positive=a"])
    evaluate_linear.main([*given, "--task=who", f"--clips=[{corpus / 'clips.tsv'}]", "--split=fold"])
    content = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert set(content) == {"ours", "random weights", "log-mel"}
    for tasks in content.values():
        assert tasks["phones"]["metric"] == "accuracy (%)" and "knn" not in tasks["phones"]
        assert tasks["a"]["metric"] == "average precision of a (%)"
        assert (tasks["who"]["rounds"], tasks["who"]["counts"]) == (3, {"rows": 12, "classes": 3})
        assert tasks["who"]["mean"] == tasks["who"]["knn"] == 100.0  # the same recordings in every fold
    assert content["log-mel"]["phones"]["mean"] > 85
    caplog.clear()
    evaluate_linear.main(frames)
    assert caplog.text.count("measured before") == 3


def test_options(tmp_path):
    for wrong in ([], ["--clips=[a.tsv]", "--frames=[b.tsv]"]):
        with pytest.raises(SystemExit):
            evaluate_linear.main(["--encoders=[log-mel]", "--task=t", f"--output_dir={tmp_path}", *wrong])
