"""--corpus-dir without --mini: a folder in LibriSpeech's layout (synthesised here) is linked and used."""

import json
import os
import subprocess
import sys

import pytest
from toy_recipe import REPOSITORY

PREPARE = REPOSITORY / "egs" / "librispeech" / "prepare.sh"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder that holds LibriSpeech's parts."""
    folder = tmp_path_factory.mktemp("real") / "somewhere"
    options = "--train-minutes 0.6 --labelled-minutes 0.3 --num-train-voices 2 --labelled-speakers 1"
    options += " --dev-minutes 0.1 --test-minutes 0.1 --num-test-voices 1"
    tool = [sys.executable, str(REPOSITORY / "tools" / "synthesize_corpus.py"), "speech"]
    subprocess.run([*tool, "--output", str(folder), *options.split()], check=True, timeout=300)
    return folder / "LibriSpeech"


def prepare(folder, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(PREPARE), "--data-dir", str(folder / "data"), "--exp-dir", str(folder / "exp"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


def test_a_real_folder_is_linked_and_used(corpus, tmp_path):
    result = prepare(tmp_path, "--corpus-dir", str(corpus), "--conf", "tiny", "--stop-stage", "2")
    assert result.returncode == 0, result.stderr
    linked = tmp_path / "data" / "corpus" / "LibriSpeech"
    assert linked.is_symlink() and linked.resolve() == corpus.resolve()
    statistics = json.loads((tmp_path / "data" / "manifests" / "librispeech_statistics.json").read_text())
    assert statistics["train"]["speakers"] == 2
    assert statistics["labelled"]["speakers"] == 1
    # No noise was given: none is used, and the stage is done all the same.
    assert not (tmp_path / "data" / "manifests" / "noise_cuts.jsonl.gz").exists()
    assert (tmp_path / "data" / ".done" / "stage-2.json").exists()
    again = prepare(tmp_path, "--corpus-dir", str(corpus), "--conf", "tiny", "--stop-stage", "2")
    assert again.stdout.count("skipped") == 3


def test_no_corpus_is_a_clear_error(tmp_path):
    result = prepare(tmp_path, "--stop-stage", "0")
    assert result.returncode == 1
    assert "--mini true" in result.stderr and "--corpus-dir" in result.stderr


def test_a_folder_of_another_shape_is_a_clear_error(tmp_path):
    (tmp_path / "other").mkdir()
    result = prepare(tmp_path, "--corpus-dir", str(tmp_path / "other"), "--stop-stage", "0")
    assert result.returncode == 1
    assert "train-clean-100" in result.stderr


def test_a_corpus_without_the_test_sets_is_found_by_stage_0(corpus, tmp_path):
    """The layout of mini LibriSpeech, which has train-clean-5 and dev-clean-2 alone."""
    folder = tmp_path / "LibriSpeech"
    folder.mkdir()
    for part in ("train-clean-100", "dev-clean"):
        (folder / part).symlink_to(corpus / part)
    result = prepare(tmp_path, "--corpus-dir", str(folder), "--conf", "tiny", "--stop-stage", "1")
    assert result.returncode == 1
    assert "error: the corpus has no test-clean, test-other: complete it, or edit local/" in result.stderr
    assert "test_sets to those that are there (dev-clean/ train-clean-100/ are)" in result.stderr
    assert not (tmp_path / "data" / "manifests").exists()


def test_stage_5_alone_takes_a_split(tmp_path):
    result = prepare(tmp_path, "--split", "2", "--num-splits", "3")
    assert result.returncode == 2
    assert "--split is for stage 5 alone" in result.stderr
    stage_5 = ("--stage", "5", "--stop-stage", "5", "--num-splits", "3")
    assert "it goes from 1 to --num-splits 3" in prepare(tmp_path, *stage_5, "--split", "4").stderr
