"""X-ARES's protocols: the nearest neighbours of xares, the linear layer, folds and parts, the command."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from phone_corpus import write_encoder

from spear_lib.bin import evaluate_xares
from spear_lib.evaluation.clip_sets import Clip, read_clips, rounds
from spear_lib.evaluation.xares import Clips, LinearConfig, knn_scores, linear_score

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "xares_knn.json").read_text(encoding="utf-8"))


def test_nearest_neighbours_of_xares():
    train, test = torch.tensor(GOLDEN["train"]), torch.tensor(GOLDEN["test"])
    labels, right = torch.tensor(GOLDEN["train_labels"]), torch.tensor(GOLDEN["test_labels"])
    expected = torch.tensor(GOLDEN["scores"])
    scores = knn_scores(train, labels, test, expected.shape[1], GOLDEN["k"], GOLDEN["temperature"])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
    assert (scores.argmax(1) == right).float().mean() == pytest.approx(GOLDEN["accuracy"])
    ordinary = knn_scores(train, labels, test, expected.shape[1], over_samples=False)
    assert (ordinary.argmax(1) == right).float().mean() == pytest.approx(
        GOLDEN["accuracy_if_every_training_vector_is_normalised"]
    )


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_linear_layer_learns_what_is_linear(multilabel):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 16, generator=generator)

    def part(count: int, informative: bool = True) -> Clips:
        targets = torch.rand(count, 4, generator=generator) < 0.4
        if not multilabel:
            targets = torch.nn.functional.one_hot(torch.arange(count) % 4, 4).bool()
        noise = 0.1 * torch.randn(count, 16, generator=generator)
        return Clips(3 * (targets.float() @ mixing) * informative + noise, targets.numpy())

    config = LinearConfig(epochs=20, learning_rate=1e-2)
    score, valid = linear_score(part(200), part(40), part(100), multilabel, config, 0)
    assert score > 0.9 and valid > 0.9
    chance, _ = linear_score(part(200, False), part(40, False), part(100, False), multilabel, config, 0)
    assert chance < 0.6


def clip(name: str, part: str) -> Clip:
    return Clip(Path(name), ("x",), part)


def test_rounds():
    folds = [clip(f"{part}{n}", part) for part in "123" for n in range(2)]
    found = rounds(folds)
    assert [name for name, *_ in found] == ["1", "2", "3"]
    for name, train, valid, test in found:
        assert {c.part for c in test} == {name} and len({c.part for c in train + valid}) == 2
        assert not {c.name for c in train} & {c.name for c in valid + test}
    parts = [clip(f"{part}{n}", part) for part in ("train", "test") for n in range(20)]
    ((_, train, valid, test),) = rounds(parts)
    assert (len(train), len(valid), len(test)) == (18, 2, 20)
    assert rounds(parts) == rounds(parts) != rounds(parts, 1)
    ((_, train, valid, _),) = rounds([*parts, clip("d", "dev")])
    assert len(train) == 20 and [c.name for c in valid] == ["d"]
    for wrong in (folds[:4], parts[:20], [*parts, folds[0]]):
        with pytest.raises(ValueError, match="the parts are"):
            rounds(wrong)


@pytest.fixture
def table(tmp_path):
    """Tones of two pitches in three folds."""
    rows = ["path\tlabel\tfold\tboth"]
    for number in range(24):
        label = ("low", "high")[number % 2]
        time = np.arange(4000) / 16000
        audio = 0.3 * np.sin(2 * np.pi * {"low": 300, "high": 3000}[label] * time)
        soundfile.write(tmp_path / f"{number}.wav", audio, 16000)
        rows.append(f"{number}.wav\t{label}\t{number // 2 % 3}\t{label}{';loud' if number % 3 else ''}")
    (tmp_path / "clips.tsv").write_text("\n".join(rows) + "\n")
    return tmp_path / "clips.tsv"


def test_the_command(table, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    encoder = write_encoder(tmp_path / "encoder")
    given = [f"--encoders=[ours={encoder}]", f"--clips=[{table}]", f"--output_dir={tmp_path / 'out'}"]
    given += ["--device=cpu", "--num_seeds=2", "--linear.learning_rate=0.01", "--linear.epochs=20"]
    evaluate_xares.main([*given, "--task=tones"])
    evaluate_xares.main([*given, "--task=tags", "--label=both"])
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(content["results"]) == {"ours", "random weights", "log-mel"}
    for tasks in content["results"].values():
        tones, tags = tasks["tones"], tasks["tags"]
        assert tones["metric"] == "accuracy (%)" and tags["metric"] == "mAP (%)"
        assert tones["rounds"] == 3 and tones["counts"] == {"clips": 24, "classes": 2}
        assert "knn" in tones and "knn" not in tags and len(tones["values"]) == 2
    assert content["results"]["log-mel"]["tones"]["mean"] == 100.0
    caplog.clear()
    evaluate_xares.main([*given, "--task=tones"])
    assert caplog.text.count("measured before") == 3


def test_cuts(tmp_path, table):
    from phone_corpus import write_corpus

    from spear_lib.data.manifests import Manifest, save_cuts

    corpus = write_corpus(tmp_path / "corpus")
    cuts = list(Manifest(corpus / "cuts.jsonl.gz"))
    for cut, mood in zip(cuts, ("glad", "sad", "glad")):
        cut.custom = {"mood": mood, "part": "train"}
    save_cuts(cuts, tmp_path / "moods.jsonl.gz")
    found = read_clips([str(tmp_path / "moods.jsonl.gz")], "mood", "part")
    assert [(c.labels, c.part) for c in found] == [
        (("glad",), "train"),
        (("sad",), "train"),
        (("glad",), "train"),
    ]
    assert {c.part for c in read_clips([str(tmp_path / "moods.jsonl.gz")], "mood", "part", "test")} == {
        "test"
    }
    with pytest.raises(ValueError, match=r"cut ann-one of .*moods\.jsonl\.gz has no 'speaker'"):
        read_clips([str(tmp_path / "moods.jsonl.gz")], "speaker", "part")
    with pytest.raises(ValueError, match="has no column mood: .* found path, label, fold, both"):
        read_clips([str(table)], "mood", "fold")


def test_options(tmp_path):
    for wrong in ([], ["--train=[a.tsv]"], ["--clips=[a.tsv]", "--layers=all"]):
        with pytest.raises(SystemExit):
            evaluate_xares.main(["--encoders=[log-mel]", "--task=t", f"--output_dir={tmp_path}", *wrong])
