"""The command on made-up task folders of all three kinds: reading, caching, resuming, errors."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from zipformer_fixtures import TINY

from spear_lib.bin import evaluate_hear
from spear_lib.encoders import load_encoder, save_encoder
from spear_lib.encoders.zipformer import ZipformerConfig
from spear_lib.evaluation.hear import predictor
from spear_lib.evaluation.hear.tasks import embed_split, find_tasks, read_task
from spear_lib.interfaces import AlignedEncoder, load_upstream

RATE = 16000
TONES = {"low": 300.0, "high": 3000.0}


def write_task(folder: Path, embedding_type: str, prediction_type: str, split_mode: str, rate: int = RATE):
    """Tones that any features tell apart."""
    random = np.random.default_rng(0)
    splits = ["train", "valid", "test"] if split_mode == "trainvaltest" else ["fold00", "fold01", "fold02"]
    for split in splits:
        (folder / str(rate) / split).mkdir(parents=True)
        clips = {}
        for number in range(8):
            time = np.arange(rate) / rate
            audio = 0.01 * random.standard_normal(rate)
            name = f"{split}-{number}.wav"
            if embedding_type == "event":
                label, start = list(TONES)[number % 2], 200.0 + 50 * number
                sounds = (time >= start / 1000) & (time < start / 1000 + 0.3)
                audio += 0.3 * np.sin(2 * np.pi * TONES[label] * time) * sounds
                clips[name] = [{"label": label, "start": start, "end": start + 300}]
            else:
                own = [label for bit, label in enumerate(TONES) if (number % 3 + 1) >> bit & 1]
                own = own if prediction_type == "multilabel" else own[:1]
                for label in own:
                    audio += 0.2 * np.sin(2 * np.pi * TONES[label] * time)
                clips[name] = own
            soundfile.write(folder / str(rate) / split / name, audio, rate)
        (folder / f"{split}.json").write_text(json.dumps(clips))
    (folder / "labelvocabulary.csv").write_text("idx,label\n0,low\n1,high\n")
    metadata = {
        "task_name": folder.name,
        "version": "v1",
        "embedding_type": embedding_type,
        "prediction_type": prediction_type,
        "split_mode": split_mode,
        "sample_duration": 1.0,
        "evaluation": ["event_onset_200ms_fms"] if embedding_type == "event" else ["top1_acc", "mAP"],
        "splits": splits,
    }
    (folder / "task_metadata.json").write_text(json.dumps(metadata))


@pytest.fixture(autouse=True)
def small_predictor(monkeypatch):
    monkeypatch.setattr(predictor, "HIDDEN_DIM", 128)


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    write_task(folder / "scenes", "scene", "multiclass", "presplit_kfold")
    write_task(folder / "labels", "scene", "multilabel", "trainvaltest", rate=48000)
    write_task(folder / "events", "event", "multilabel", "trainvaltest")
    return folder


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    save_encoder(load_encoder(ZipformerConfig(**TINY)), tmp_path / "encoder", {})
    return tmp_path / "encoder"


def run(tasks, encoder, output, *more):
    evaluate_hear.main(
        [f"--encoders=[ours={encoder}]", f"--tasks=[{tasks}]", f"--output_dir={output}", "--num_seeds=2"]
        + ["--predictor.grid_points=1", "--predictor.max_epochs=30", "--device=cpu", *more]
    )
    return json.loads((output / "results.json").read_text())


def test_all_kinds_of_tasks(tasks, encoder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    output = tmp_path / "hear"
    content = run(tasks, encoder, output, "--timestamp_offsets_ms=[0,-32.5]")
    assert content["kind"] == "hear" and "evaluate_hear" in content["command"]
    assert set(content["results"]) == {"ours", "random weights", "log-mel"}
    for name, results in content["results"].items():
        assert set(results) == {"scenes-v1", "labels-v1", "events-v1"}
        for result in results.values():
            score = result["scores"][result["metric"]]
            assert 0 <= score["mean"] <= 1 and len(score["values"]) == 2 == len(result["seeds"])
            assert result["facts"]["encoder"] and result["code"] and result["counts"]
            if name == "log-mel":
                assert score["mean"] > 0.7, (name, result)
    assert content["results"]["ours"]["events-v1"]["timestamp_offset_ms"] in (0.0, -32.5)
    assert content["results"]["ours"]["scenes-v1"]["counts"]["fold00"] == {"clips": 8, "rows": 8}
    assert content["results"]["log-mel"]["events-v1"]["counts"]["test"] == {"clips": 8, "rows": 8 * 50}
    assert not list((output / "embeddings").rglob("*.npz"))
    # The same again: nothing is measured.
    caplog.clear()
    assert run(tasks, encoder, output, "--timestamp_offsets_ms=[0,-32.5]")["results"] == content["results"]
    assert caplog.text.count("measured before") == 9


def test_another_encoder_of_the_same_name_is_measured_again(tasks, encoder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    output = tmp_path / "hear"
    options = ("--baselines=false", "--keep_embeddings=true")
    first = run(tasks / "scenes", encoder, output, *options)
    torch.manual_seed(1)
    save_encoder(load_encoder(ZipformerConfig(**TINY)), encoder, {})
    second = run(tasks / "scenes", encoder, output, *options)
    assert "measured again, as encoder, features changed" in caplog.text
    facts = [content["results"]["ours"]["scenes-v1"]["facts"] for content in (first, second)]
    assert facts[0]["encoder"] != facts[1]["encoder"]
    # Each has a folder of embeddings of its own.
    assert len(list((output / "embeddings").iterdir())) == 2


def test_embeddings_are_cached_and_checked(tasks, encoder, tmp_path):
    task = read_task(tasks / "events")
    aligned = AlignedEncoder(load_upstream(encoder))
    one = embed_split(task, "test", aligned, tmp_path / "cache")
    assert one.times[0][0] == 5.0
    again = embed_split(task, "test", aligned, tmp_path / "cache", -32.5)
    assert np.array_equal(again.vectors, one.vectors) and again.times[0][0] == -27.5
    assert one.targets.any() and one.times[0][-1] <= 1000.0
    with pytest.raises(ValueError, match="embeddings of other clips"):
        (tmp_path / "cache" / "train.npz").write_bytes((tmp_path / "cache" / "test.npz").read_bytes())
        embed_split(task, "train", aligned, tmp_path / "cache")


def test_what_is_wrong_with_a_task_is_said(tasks, tmp_path):
    assert [path.name for path in find_tasks([str(tasks)])] == ["events", "labels", "scenes"]
    with pytest.raises(ValueError, match="no HEAR task and holds none"):
        find_tasks([str(tmp_path / "nothing")])
    metadata = tasks / "scenes" / "task_metadata.json"
    good = json.loads(metadata.read_text())
    for change, message in (
        ({"prediction_type": "ranking"}, "prediction_type is 'ranking'"),
        ({"evaluation": ["wer"]}, r"evaluation is \['wer'\]"),
        ({"splits": ["fold00", "fold01"]}, "three or more are needed"),
    ):
        metadata.write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=message):
            read_task(tasks / "scenes")
    metadata.write_text(json.dumps(good))
    (tasks / "scenes" / "fold01.json").write_text(json.dumps({"x.wav": ["middle"]}))
    with pytest.raises(ValueError, match=r"x\.wav has the label 'middle'"):
        read_task(tasks / "scenes")
    (tasks / "scenes" / "fold01.json").unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        read_task(tasks / "scenes")
