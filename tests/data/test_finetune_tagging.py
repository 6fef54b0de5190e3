"""Fine-tuning for tagging, its checkpoints, evaluation and tagging of files, through the commands."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from sklearn.metrics import average_precision_score
from tagging_fixtures import CLASSES, TINY_ENCODER, clip, make_clips, make_noise, write_class_list

from spear_lib.bin import evaluate_tagging, finetune_tagging, tag
from spear_lib.corpora.clip_tables import read_class_list
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.mixing import MixingConfig
from spear_lib.encoders import load_encoder, save_encoder
from spear_lib.tagging.data import MixupConfig, TaggingData, TaggingDataConfig
from spear_lib.tagging.model import TaggingConfig, TaggingModel
from spear_lib.tagging.task import TaggingTask
from spear_lib.training.loop import train
from spear_lib.training.options import TrainingConfig

CONFIG = {
    "data": {"batch_seconds": 12.0, "num_workers": 0, "weighted_sampling": True, "samples_per_epoch": 20},
    "training": {
        "max_steps": 6,
        "average_period": 1,
        "save_interval": 2,
        "valid_interval": 3,
        "log_interval": 1,
        "warmup_batches": 2.0,
        "device": "cpu",
    },
    "freeze_encoder_steps": 2,
}


def call(module, *arguments: str) -> None:
    module.main(list(map(str, arguments)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sounds")
    torch.manual_seed(0)
    save_encoder(load_encoder(TINY_ENCODER), folder / "encoder", {"made": "for a test"})
    return {
        "train": make_clips(folder, "train", 24),
        "dev": make_clips(folder, "dev", 8),
        "noise": make_noise(folder / "noise"),
        "classes": write_class_list(folder / "classes.csv"),
        "encoder": folder / "encoder",
    }


def finetune(corpus, folder: Path, *arguments: str, **changes) -> list[dict]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "training": {**CONFIG["training"], **changes}}))
    common = ["--config", path, "--experiment_dir", folder, "--classes", corpus["classes"]]
    common += ["--dev_cuts", f"[{corpus['dev']}]", "--data.train_cuts", f"[{corpus['train']}]"]
    common += ["--data.noise_cuts", f"[{corpus['noise']}]"]
    call(finetune_tagging, *common, *arguments)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(records: list[dict]) -> list[float]:
    return [record["loss"] for record in records if record["kind"] == "train"]


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("finetune") / "run"
    records = finetune(corpus, folder, "--encoder", str(corpus["encoder"]))
    return folder, records


@pytest.fixture(scope="module")
def evaluated(corpus, trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    arguments = ("--experiment_dir", trained[0], "--cuts", f"[{corpus['dev']},other={corpus['train']}]")
    call(evaluate_tagging, *arguments, "--output_dir", folder, "--average", 2)
    return folder


def test_a_class_list_with_commas_is_read_whole(corpus):
    assert read_class_list(corpus["classes"]) == CLASSES
    assert all("," in name for name in CLASSES.values())


def test_run_leaves_metrics_and_checkpoint_facts(trained):
    folder, records = trained
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    valid = [r for r in records if r["kind"] == "valid/dev"]
    assert [r["step"] for r in valid] == [3, 6] and all(0 < r["map"] <= 100 for r in valid)
    assert all("scores" not in r for r in records)
    mixed = np.mean([r["mixed_clip"] for r in map(_without_prefix, records) if "mixed_clip" in r])
    assert 0.1 < mixed < 0.9
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    assert state["kind"] == "tagging" and state["classes"] == CLASSES
    assert state["tagging_config"] == {"pooling": "mean", "dropout": 0.1}


def _without_prefix(record: dict) -> dict:
    return {name.split("/")[-1]: value for name, value in record.items()}


def test_encoder_is_loaded_frozen_then_trained(trained, corpus):
    folder, _ = trained
    start = load_encoder(corpus["encoder"]).state_dict()
    name = "encoder.encoders.0.layers.0.feed_forward2.in_proj.weight"
    at = {
        step: torch.load(folder / "checkpoints" / f"step-{step:08d}.pt", weights_only=True)["model"]
        for step in (2, 6)
    }
    assert torch.equal(at[2][f"encoder.{name}"], start[name])
    assert not torch.equal(at[6][f"encoder.{name}"], start[name])


def test_resumed_run_is_the_unbroken_one(trained, corpus, tmp_path):
    """In the middle of an epoch of weighted samples, with mixup and noise."""
    _, records = trained
    arguments = ("--encoder", str(corpus["encoder"]))
    first = finetune(corpus, tmp_path / "resumed", *arguments, max_steps=4)
    assert losses(first) == losses(records)[:4]
    resumed = finetune(corpus, tmp_path / "resumed", *arguments, max_steps=6)
    assert losses(resumed) == losses(records)


def test_a_resume_may_validate_on_another_set(trained, corpus, tmp_path):
    _, records = trained
    arguments = ("--encoder", str(corpus["encoder"]))
    finetune(corpus, tmp_path / "resumed", *arguments, max_steps=4)
    resumed = finetune({**corpus, "dev": corpus["train"]}, tmp_path / "resumed", *arguments, max_steps=6)
    assert losses(resumed) == losses(records)
    valid = [[line for line in lines if line["kind"] == "valid/dev"][-1] for lines in (records, resumed)]
    assert valid[0]["loss"] != valid[1]["loss"]


def test_a_resume_with_another_class_list_is_refused(trained, corpus, tmp_path):
    other = write_class_list(tmp_path / "other.csv", dict(reversed(CLASSES.items())))
    with pytest.raises(ValueError, match="classes"):
        finetune({**corpus, "classes": other}, trained[0], "--encoder", str(corpus["encoder"]))


def test_evaluation_is_that_of_scikit_learn(evaluated, corpus):
    for name, manifest in (("dev", corpus["dev"]), ("other", corpus["train"])):
        result = json.loads((evaluated / f"tagging-{name}.json").read_text())
        predictions = np.load(evaluated / f"predictions-{name}.npz")
        cuts = Manifest(manifest)
        assert predictions["ids"].tolist() == list(cuts.ids) and result["num_clips"] == len(cuts)
        targets, probabilities = predictions["targets"], predictions["probabilities"]
        known = targets.any(0)
        expected = average_precision_score(targets[:, known], probabilities[:, known], average="macro")
        assert result["map"] == pytest.approx(100 * expected, abs=1e-3)
        assert result["num_scored_classes"] == known.sum() and len(result["weights_hash"]) == 16
        with (evaluated / f"classes-{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["support"]) for row in rows] == sorted(targets.sum(0)[known], reverse=True)
        assert {row["label"]: row["name"] for row in rows}.items() <= CLASSES.items()
        assert float(rows[0]["average_precision"]) == pytest.approx(
            average_precision_score(
                targets[:, int(rows[0]["index"])], probabilities[:, int(rows[0]["index"])]
            ),
            abs=1e-5,
        )


def test_evaluation_does_not_depend_on_batches(evaluated, corpus, trained, tmp_path):
    arguments = ("--experiment_dir", trained[0], "--cuts", f"[{corpus['dev']}]", "--average", 2)
    call(evaluate_tagging, *arguments, "--output_dir", tmp_path, "--batch_seconds", 2)
    one, other = (
        np.load(folder / "predictions-dev.npz")["probabilities"] for folder in (evaluated, tmp_path)
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_unreadable_clips_are_counted_and_left_out(corpus, trained, tmp_path):
    cuts = [clip(tmp_path, f"part{number}", [number % 3], 1.0) for number in range(8)]
    cuts.append(clip(tmp_path, "tiny", [0], 0.03))
    for name, content in (("part1", None), ("part2", b""), ("part3", b"RIFFnothing")):
        path = tmp_path / f"{name}.wav"
        path.unlink() if content is None else path.write_bytes(content)
    save_cuts(cuts, tmp_path / "bad.jsonl.gz")
    arguments = ("--experiment_dir", trained[0], "--cuts", f"[bad={tmp_path / 'bad.jsonl.gz'}]")
    with pytest.raises(ValueError, match="clips of bad cannot be used"):
        call(evaluate_tagging, *arguments)
    call(evaluate_tagging, *arguments, "--max_bad_fraction", 0.4, "--output_dir", tmp_path)
    result = json.loads((tmp_path / "tagging-bad.json").read_text())
    kinds = {"corrupt audio": 1, "missing audio": 1, "zero-length audio": 1}
    assert result["problems"]["kinds"] == kinds and result["num_clips"] == 6
    assert "tiny" in np.load(tmp_path / "predictions-bad.npz")["ids"]


def test_a_set_without_labels_is_refused(corpus, trained):
    with pytest.raises(ValueError, match="they have none at all"):
        call(
            evaluate_tagging,
            "--experiment_dir",
            trained[0],
            "--cuts",
            f"[noise={corpus['noise']}]",
        )


def test_a_folder_without_checkpoint_says_what_to_run(tmp_path, corpus):
    with pytest.raises(ValueError, match="has no checkpoint: fine-tune first"):
        call(evaluate_tagging, "--experiment_dir", tmp_path, "--cuts", f"[{corpus['dev']}]")


def test_files_of_any_kind_are_tagged(trained, tmp_path, capsys):
    random = np.random.default_rng(0)
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    soundfile.write(sounds / "stereo.flac", 0.1 * random.standard_normal((44100, 2)), 44100)
    soundfile.write(sounds / "long.wav", 0.1 * random.standard_normal(8000 * 7), 8000)
    soundfile.write(sounds / "tiny.wav", 0.1 * random.standard_normal(300), 16000)
    arguments = ("--experiment_dir", trained[0], "--output_dir", tmp_path / "out", "--top", 3)
    windows = ("--windows.window_seconds", 3, "--windows.overlap_seconds", 1)
    call(tag, sounds, *arguments, *windows)
    printed = capsys.readouterr().out
    assert printed.count("Tone, number") == 9 and "long.wav (7 s)" in printed
    long = json.loads((tmp_path / "out" / "long.json").read_text())
    assert (long["sampling_rate"], long["channels"], long["windows"]) == (8000, 1, 3)
    stereo = json.loads((tmp_path / "out" / "stereo.json").read_text())
    assert (stereo["sampling_rate"], stereo["channels"], stereo["windows"]) == (44100, 2, 1)
    probabilities = [each["probability"] for each in stereo["classes"]]
    assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)
    for name in ("stereo", "long", "tiny"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_tables_and_labels_of_events(trained, tmp_path):
    soundfile.write(tmp_path / "one.wav", 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    arguments = ("--experiment_dir", trained[0], "--events.threshold", "0.01", "--output_dir", tmp_path)
    call(tag, tmp_path / "one.wav", *arguments, "--format", "json,csv,audacity")
    events = json.loads((tmp_path / "one.json").read_text())["events"]
    with open(tmp_path / "one.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert events and [row["name"] for row in rows] == [event["name"] for event in events]
    assert [float(row["end"]) for row in rows] == [event["end"] for event in events]
    labels = [line.split("\t") for line in (tmp_path / "one.labels.txt").read_text().splitlines()]
    assert [(float(start), float(end)) for start, end, _ in labels] == [
        (e["start"], e["end"]) for e in events
    ]
    with pytest.raises(ValueError, match="use json, csv, audacity"):
        tag.TagOptions(["one.wav"], "x", format="xml")


def test_bad_files_are_named_and_the_others_tagged(trained, tmp_path, capsys):
    soundfile.write(tmp_path / "good.wav", np.zeros(16000), 16000)
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "corrupt.wav").write_bytes(b"no audio at all")
    names = [tmp_path / f"{name}.wav" for name in ("missing", "empty", "corrupt", "good")]
    with pytest.raises(RuntimeError, match=r"3 of 4 files could not be tagged.*missing.wav, .*empty.wav"):
        call(tag, *names, "--experiment_dir", trained[0])
    assert "good.wav" in capsys.readouterr().out
    with pytest.raises(ValueError, match="top is 0"):
        tag.TagOptions(audio=["x"], experiment_dir="y", top=0)


def test_sixteen_clips_are_learnt_by_heart_in_seconds(tmp_path):
    manifest = make_clips(tmp_path, "few", 16)
    config = TaggingDataConfig(
        train_cuts=[str(manifest)],
        batch_seconds=40.0,
        num_workers=0,
        mixup=MixupConfig(probability=0.0),
        mixing=MixingConfig(enabled=False),
    )
    torch.manual_seed(0)
    model = TaggingModel(load_encoder(TINY_ENCODER), TaggingConfig(dropout=0.0), len(CLASSES))
    task = TaggingTask(model, CLASSES)
    task.augmented.config = type(task.augmented.config)(enabled=False)
    training = TrainingConfig(
        max_steps=40, learning_rate=0.1, lr_batches=100, warmup_batches=5, average_period=0, device="cpu",
        valid_interval=0, save_interval=100,
    )  # fmt: skip
    data = TaggingData(config, CLASSES)
    few = TaggingData(config, CLASSES, training=False)
    values = train(task, data, {"few": few}, training, tmp_path / "run", batch_seconds=40.0)
    assert values["few"]["map"] > 95.0
