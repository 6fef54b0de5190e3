"""egs/digits: a copy of egs/librispeech whose local/ joins recordings of single digits to strings."""

import csv
import filecmp
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_recipe import REPOSITORY

RECIPE = REPOSITORY / "egs" / "digits"
SPEAKERS = ("ann", "bob", "carl")


def load_local(name: str):
    """A module of egs/digits/local."""
    spec = importlib.util.spec_from_file_location(f"digits_{name}", RECIPE / "local" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


local = load_local("prepare_corpus")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """Short tones named like the recordings: 3 speakers (one soft), 10 digits, indices 0, 1, 5 to 8."""
    folder = tmp_path_factory.mktemp("fsdd")
    (folder / "recordings").mkdir()
    time = np.arange(800) / 8000
    for number, speaker in enumerate(SPEAKERS):
        for digit in range(10):
            for index in (0, 1, 5, 6, 7, 8):
                tone = (0.3, 0.3, 0.01)[number] * np.sin(2 * np.pi * (300 + 100 * digit + index) * time)
                soundfile.write(folder / "recordings" / f"{digit}_{speaker}_{index}.wav", tone, 8000)
    return folder


def make(recordings: Path, output: Path, held_out: str, seed: int = 0) -> list[dict[str, str]]:
    """Runs stage 0; the rows of strings.csv."""
    options = ["--corpus-dir", str(recordings), "--output", str(output), "--size", "tiny"]
    local.main([*options, "--held-out-speaker", held_out, "--seed", str(seed)])
    with (output / "digits" / "strings.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run_script(script: str, *arguments: str, speaker: str = "theo") -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment["DIGITS_HELD_OUT_SPEAKER"] = speaker
    command = [str(RECIPE / script), "--conf", "tiny", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


def test_the_scripts_are_those_of_librispeech():
    for script in ("prepare.sh", "run.sh"):
        assert filecmp.cmp(REPOSITORY / "egs" / "librispeech" / script, RECIPE / script, shallow=False), (
            f"egs/digits/{script} has diverged: cp egs/librispeech/{script} egs/digits/{script}"
        )
        assert os.access(RECIPE / script, os.X_OK)


def test_the_same_seed_gives_the_same_files(recordings, tmp_path):
    rows = make(recordings, tmp_path / "first", "bob")
    make(recordings, tmp_path / "again", "bob")
    other = make(recordings, tmp_path / "other", "bob", seed=1)
    for row in rows:
        first, again = (tmp_path / name / "digits" / row["file"] for name in ("first", "again"))
        assert first.read_bytes() == again.read_bytes(), row["file"]
    tables = [
        (tmp_path / name / "digits" / "strings.csv").read_bytes() for name in ("first", "again", "other")
    ]
    assert tables[0] == tables[1] != tables[2]
    assert [row["text"] for row in rows] != [row["text"] for row in other]


@pytest.mark.parametrize("held_out", SPEAKERS)
def test_the_held_out_speaker_is_in_no_other_set(recordings, tmp_path, held_out):
    rows = make(recordings, tmp_path, held_out)
    used: dict[str, Counter] = {}
    for row in rows:
        used.setdefault(row["set"], Counter()).update(row["recordings"].split())
        assert {name.split("_")[1] for name in row["recordings"].split()} == {row["speaker"]}
    test = f"test-{held_out}"
    assert set(used) == {"train", "dev", test}
    others = {speaker for speaker in SPEAKERS if speaker != held_out}
    assert {row["speaker"] for row in rows if row["set"] != test} == others
    assert {row["speaker"] for row in rows if row["set"] == test} == {held_out}
    # Each recording once: the data set's own test part in dev, the rest in train, all of the held-out speaker
    # in test.
    indices = {"train": (5, 6, 7, 8), "dev": (0, 1), test: (0, 1, 5, 6, 7, 8)}
    for name, names in used.items():
        speakers = {held_out} if name == test else others
        expected = {f"{d}_{s}_{i}" for d in range(10) for s in speakers for i in indices[name]}
        assert names == Counter(dict.fromkeys(expected, 1))
    labelled = [row for row in rows if row["labelled"] == "true"]
    assert {row["set"] for row in labelled} == {"train"}
    assert {row["speaker"] for row in labelled} == others


def test_a_string_says_its_digits(recordings, tmp_path):
    rows = make(recordings, tmp_path, "ann")
    for row in rows:
        names = row["recordings"].split()
        assert 3 <= len(names) <= 8
        assert row["text"].split() == [local.WORDS[int(name[0])] for name in names]
    row = next(row for row in rows if row["speaker"] == "carl")
    audio, rate = soundfile.read(tmp_path / "digits" / row["file"])
    assert rate == 16000
    # 0.1 s per tone and n + 1 pauses between 0.05 and 0.3 s.
    count = len(row["recordings"].split())
    assert 0.1 * count + 0.05 * (count + 1) <= len(audio) / rate <= 0.1 * count + 0.3 * (count + 1)
    # The soft speaker is as loud as the others; tones keep their frequency; a pause is not digital silence.
    assert 0.065 < np.abs(audio).max() < 0.085  # a tone of that level, and a little noise
    loud = np.flatnonzero(np.abs(audio) > 0.03)
    spectrum = np.abs(np.fft.rfft(audio[loud[0] : loud[0] + 1500] * np.hanning(1500)))
    digit, _, index = row["recordings"].split()[0].split("_")
    assert abs(spectrum.argmax() * 16000 / 1500 - (300 + 100 * int(digit) + int(index))) < 15
    assert 0.0005 < audio[: loud[0] - 100].std() < 0.002


def test_passes_use_each_recording_as_often():
    digits = [local.Digit("ann", number % 10, number // 10 + 5, Path("a.wav")) for number in range(31)]
    strings = local.join_digits("train", digits, 0, 3)
    assert Counter(digit for string in strings for digit in string.digits) == dict.fromkeys(digits, 3)
    assert {len(string.digits) for string in strings} <= set(range(3, 9))
    assert len({string.name for string in strings}) == len(strings)


def test_what_is_wrong_is_said(recordings, tmp_path):
    digits = local.find_recordings(str(recordings))
    assert digits == local.find_recordings(str(recordings / "recordings"))
    with pytest.raises(ValueError, match="'zoe' is not in the corpus, it has ann, bob, carl"):
        local.plan_strings(digits, "zoe", 0, 1, 5)
    with pytest.raises(ValueError, match="ann has no recordings for train"):
        local.plan_strings([digit for digit in digits if digit.is_test_part], "bob", 0, 1, 5)
    with pytest.raises(ValueError, match="ann is the only speaker"):
        local.plan_strings([digit for digit in digits if digit.speaker == "ann"], "ann", 0, 1, 5)
    with pytest.raises(ValueError, match="2 recordings of ann for dev: at least 3"):
        local.join_digits("dev", digits[:2], 0, 1)
    with pytest.raises(ValueError, match="holds no recordings: expected DIR/recordings"):
        local.find_recordings(str(tmp_path))
    with pytest.raises(ValueError, match="no corpus: give --corpus-dir"):
        local.find_recordings("")
    broken = tmp_path / "1_ann_0.wav"
    broken.write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"1_ann_0.wav cannot be read"):
        local.read_digit(broken)
    (tmp_path / "one_ann_0.wav").touch()
    with pytest.raises(ValueError, match="one_ann_0.wav is no recording of a digit"):
        local.find_recordings(str(tmp_path))


def test_mini_and_noise_are_refused(tmp_path):
    options = ["--output", str(tmp_path), "--held-out-speaker", "ann"]
    with pytest.raises(ValueError, match="these are real recordings, give --corpus-dir DIR --conf mini"):
        local.main([*options, "--mini", "true"])
    with pytest.raises(ValueError, match="this recipe mixes no noise"):
        local.main([*options, "--noise-dir", "somewhere"])


def test_another_held_out_speaker_does_not_mix_with_the_first(recordings, tmp_path):
    folders = ("--data-dir", str(tmp_path / "data"), "--exp-dir", str(tmp_path / "exp"))
    options = ("--corpus-dir", str(recordings), "--stop-stage", "1", *folders)
    result = run_script("prepare.sh", *options, speaker="ann")
    assert result.returncode == 0, result.stderr
    statistics = json.loads((tmp_path / "data" / "manifests" / "digits_statistics.json").read_text())
    assert {name: row["speakers"] for name, row in statistics.items()} == {
        "train": 2,
        "dev": 2,
        "labelled": 2,
        "test-ann": 1,
    }
    assert statistics["test-ann"]["words"] == 60
    result = run_script("prepare.sh", *options, speaker="bob")
    assert result.returncode == 1
    assert "corpus_options of local/corpus.sh: was --held-out-speaker ann" in result.stderr


@pytest.mark.skipif(not os.environ.get("SPEAR_REAL_CORPORA"), reason="SPEAR_REAL_CORPORA is not set")
def test_real_recordings_go_from_wav_to_a_report(tmp_path):
    corpus = Path(os.environ["SPEAR_REAL_CORPORA"]) / "fsdd"
    command = [str(REPOSITORY / "tools" / "studies" / "digits_all_speakers.sh"), "--corpus-dir", str(corpus)]
    command += ["--speakers", "nicolas", "--conf", "tiny"]
    command += ["--data-dir", str(tmp_path / "data"), "--exp-dir", str(tmp_path / "exp")]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    exp = tmp_path / "exp" / "nicolas-tiny"
    for arm in ("pretrained", "scratch"):
        rates = json.loads((exp / f"finetune_{arm}" / "decode" / "wer-test-nicolas.json").read_text())
        assert rates["num_words"] == 100
        assert f"{rates['wer']:.2f}" in result.stdout.splitlines()[-1]
    report = (exp / "report" / "report.html").read_text(encoding="utf-8")
    assert "SPEAR on spoken digits, nicolas held out" in report
