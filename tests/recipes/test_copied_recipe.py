"""A recipe for another corpus is a copy of egs/librispeech with other files in local/ and conf/, no more."""

import csv
import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_recipe import REPOSITORY

FLAT = Path(__file__).parent / "flat_corpus"
WORDS = {"low": 220.0, "middle": 440.0, "high": 880.0, "top": 1760.0}


def make_flat_corpus(folder: Path) -> None:
    """One flat folder of 16 kHz wav files, a tone for each word, and texts.csv."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    time = np.arange(8000) / 16000
    rows = []
    for number in range(30):
        words = generator.choice(list(WORDS), size=4)
        tones = [np.sin(2 * np.pi * WORDS[word] * time) * np.hanning(len(time)) for word in words]
        audio = 0.2 * np.concatenate(tones) + 0.01 * generator.standard_normal(4 * len(time))
        name = f"recording{number:02d}.wav"
        soundfile.write(folder / name, audio, 16000)
        part = "dev" if number % 10 == 8 else "exam" if number % 10 == 9 else "train"
        speaker = "labelled" if number % 2 == 0 else "other"
        rows.append({"file": name, "speaker": speaker, "set": part, "text": " ".join(words).upper()})
    with (folder / "texts.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file", "speaker", "set", "text"])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """egs/mycorpus in a repository of its own, with a finished prepare.sh."""
    root = tmp_path_factory.mktemp("copied")
    make_flat_corpus(root / "corpus")
    shutil.copytree(REPOSITORY / "egs" / "common", root / "egs" / "common")
    source = REPOSITORY / "egs" / "librispeech"
    folder = root / "egs" / "mycorpus"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("data", "exp", "local"))
    shutil.copytree(FLAT / "local", folder / "local")
    for name in ("spear_lib", "tools"):
        (root / name).symlink_to(REPOSITORY / name)
    for script in ("prepare.sh", "run.sh"):
        assert filecmp.cmp(source / script, folder / script, shallow=False)
    return folder


def call(recipe: Path, script: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [str(recipe / script), *arguments], env=environment, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_a_copied_recipe_goes_from_a_csv_file_to_a_report(recipe):
    options = ("--conf", "tiny")
    call(recipe, "prepare.sh", *options, "--corpus-dir", str(recipe.parents[1] / "corpus"))
    assert sorted(path.name for path in (recipe / "data" / "cuts").iterdir()) == [
        "flat_cuts_dev.jsonl.gz",
        "flat_cuts_train.jsonl.gz",
    ]
    call(recipe, "run.sh", *options, "--compare-scratch", "true")
    for arm in ("pretrained", "scratch"):
        result = json.loads((recipe / "exp" / f"finetune_{arm}" / "decode" / "wer-exam.json").read_text())
        assert result["num_words"] == 12
        assert 0 <= result["wer"] <= 400
    report = (recipe / "exp" / "report" / "report.html").read_text(encoding="utf-8")
    assert "SPEAR on a flat folder" in report
    # Nothing of the corpus that the recipe was copied from is left.
    assert "librispeech" not in json.dumps([path.name for path in (recipe / "data").rglob("*")]).lower()


@pytest.mark.slow
def test_clusters_make_the_tokens_of_the_ablation(recipe):
    """--clusters: k-means in place of the quantiser, in folders of its own, up to pre-training."""
    data, exp = recipe / "ablation", recipe / "ablation_exp"
    folders = ("--conf", "tiny", "--data-dir", str(data), "--exp-dir", str(exp))
    corpus = ("--corpus-dir", str(recipe.parents[1] / "corpus"), "--clusters", "300")
    call(recipe, "prepare.sh", *folders, *corpus)
    facts = json.loads((data / "tokens" / "spectral" / "train" / "store.json").read_text())
    assert (facts["field"], facts["dtype"]) == ("spectral_km300", "uint16")
    call(recipe, "run.sh", *folders, "--stop-stage", "10")
    log = (exp / "pretrain" / "log.txt").read_text(encoding="utf-8")
    assert "tokens spectral_km300" in log and "1 codebooks x 300 at 50 Hz" in log


def test_self_distillation_needs_no_tokens(recipe):
    """--method spidr: stages 0 to 2 and 10, 11, in folders of its own."""
    folders = ("--conf", "tiny", "--data-dir", str(recipe / "audio"), "--exp-dir", str(recipe / "spidr"))
    options = (*folders, "--method", "spidr")
    corpus = ("--corpus-dir", str(recipe.parents[1] / "corpus"))
    log = call(recipe, "prepare.sh", *options, *corpus, "--stop-stage", "6")
    assert "stages 3 to 6 are skipped: --method spidr needs no tokens" in log
    assert not (recipe / "audio" / "tokens").exists()
    call(recipe, "run.sh", *options, "--stop-stage", "11")
    described = json.loads((recipe / "spidr" / "pretrain" / "encoder" / "config.json").read_text())
    assert described["encoder"] == "spidr" and "not averaged" in described["provenance"]["average"]
    again = call(recipe, "run.sh", *options, "--stop-stage", "11")
    assert again.count("with the same options, skipped") == 2, again
    # Another method in the same folder is refused, by name.
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(recipe / "run.sh"), *folders, "--method", "dinosr", "--stop-stage", "10"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert result.returncode == 1 and "--method: was spidr, now dinosr" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dinosr", "spidr-z", "spear-spidr"])
def test_the_other_methods(recipe, method):
    """From the corpus to a report."""
    data, exp = recipe / f"data_{method}", recipe / f"exp_{method}"
    options = ("--conf", "tiny", "--data-dir", str(data), "--exp-dir", str(exp), "--method", method)
    call(recipe, "prepare.sh", *options, "--corpus-dir", str(recipe.parents[1] / "corpus"))
    assert (data / "tokens").exists() == (method == "spear-spidr")
    call(recipe, "run.sh", *options)
    report = (exp / "report" / "report.html").read_text(encoding="utf-8")
    assert "Self-distillation" in report and "perplexity" in report


def test_the_scripts_of_the_recipe_name_no_corpus():
    for script in ("prepare.sh", "run.sh"):
        text = (REPOSITORY / "egs" / "common" / script).read_text(encoding="utf-8").lower()
        for word in ("train-clean", "test-clean", "test-other", "dev-clean", "fsdd"):
            assert word not in text
        code = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        assert "librispeech" not in "\n".join(code)
