"""egs/an4: its readers on made-up folders of the official layouts, and the tiny size on the real corpus."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_recipe import REPOSITORY

from spear_lib.data.manifests import Manifest

RECIPE = REPOSITORY / "egs" / "an4"


def load_local(name: str):
    """A module of egs/an4/local."""
    spec = importlib.util.spec_from_file_location(f"an4_{name}", RECIPE / "local" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare_corpus, prepare_manifests = load_local("prepare_corpus"), load_local("prepare_manifests")
NAMES = {"train": ["an251-fash-b", "an253-fash-b", "cen1-mxyz-b"], "test": ["an406-fcaw-b"]}


def make_official(folder: Path, ending: str, below: str = "") -> dict[str, np.ndarray]:
    """AN4 as its archives unpack: audio by speaker, and transcriptions in etc."""
    samples = {}
    random = np.random.default_rng(0)
    for split, place in (("train", "an4_clstk"), ("test", "an4test_clstk")):
        lines = []
        for name in NAMES[split]:
            values = random.integers(-3000, 3000, 4000).astype(np.int16)
            samples[name] = values
            path = folder / below / place / name.split("-")[1] / f"{name}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if ending == "raw":
                path.write_bytes(values.astype(">i2").tobytes())
            else:
                soundfile.write(path, values, 16000, format="NIST", subtype="PCM_16")
            lines.append(f"<s> YES {name[0].upper()} </s> ({name})")
        etc = folder / "etc"
        etc.mkdir(exist_ok=True)
        (etc / f"an4_{split}.transcription").write_text("\n".join(lines) + "\n")
    return samples


@pytest.mark.parametrize(
    ("ending", "below", "above"), [("raw", "", ""), ("sph", "wav", ""), ("raw", "wav", "an4")]
)
def test_the_official_layout_is_read_sample_by_sample(ending, below, above, tmp_path):
    (tmp_path / "corpus" / above).mkdir(parents=True)
    samples = make_official(tmp_path / "corpus" / above, ending, below)
    prepare_corpus.main(["--corpus-dir", str(tmp_path / "corpus"), "--output", str(tmp_path / "out")])
    with (tmp_path / "out" / "an4" / "utterances.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["utt"] for row in rows] == [*NAMES["train"], *NAMES["test"]]
    assert [row["speaker"] for row in rows] == ["fash", "fash", "mxyz", "fcaw"]
    assert rows[0]["text"] == "YES A" and rows[2]["text"] == "YES C"
    for row in rows:
        read, rate = soundfile.read(tmp_path / "out" / "an4" / row["path"], dtype="int16")
        assert rate == 16000 and np.array_equal(read, samples[row["utt"]])


def test_what_is_missing_or_broken_is_named(tmp_path):
    def refused(folder: object, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            prepare_corpus.main(["--corpus-dir", str(folder), "--output", str(tmp_path / "out")])

    refused("", "no corpus: give --corpus-dir DIR")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no etc/an4_train.transcription, .*an4test_clstk: expected an4_clstk")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    make_official(corpus, "raw")
    path = corpus / "an4_clstk" / "fash" / "an251-fash-b.raw"
    path.write_bytes(path.read_bytes()[:-1])
    refused(corpus, "an251-fash-b.raw has 7999 bytes, no whole number of 16-bit samples")
    path.unlink()
    refused(corpus, "an4_train.transcription, line 1: no audio of an251-fash-b below")
    (corpus / "etc" / "an4_train.transcription").write_text("YES\n")
    refused(corpus, r"line 1 is 'YES': expected '<s> TEXT </s> \(UTTERANCE\)'")
    with pytest.raises(ValueError, match="--mini true: these are real recordings"):
        prepare_corpus.main(["--mini", "true", "--output", str(tmp_path)])


def test_dev_is_espnets_first_hundred():
    rows = [
        {"utt": f"an{number}-{speaker}-b", "speaker": speaker, "split": "train"}
        for number in range(20, 0, -1)
        for speaker in ("mb", "fa", "fc", "fb", "fd", "fe", "ma")
    ]
    rows.append({"utt": "x", "speaker": "t", "split": "test"})
    sets = prepare_manifests.sets_of(rows)
    assert {row["speaker"] for row in sets["dev"]} == {"fa", "fb", "fc", "fd", "fe"}
    assert sets["dev"][0]["utt"] == "an1-fa-b" and sets["dev"][1]["utt"] == "an10-fa-b"  # by name, not number
    assert (len(sets["dev"]), len(sets["labelled"]), len(sets["train"]), len(sets["test"])) == (
        100,
        40,
        140,
        1,
    )
    with pytest.raises(ValueError, match="99 training utterances: more than 100 are needed"):
        prepare_manifests.sets_of(rows[:99])


REAL = Path(os.environ.get("SPEAR_REAL_CORPORA", "")) / "an4"


@pytest.mark.skipif(
    not os.environ.get("SPEAR_REAL_CORPORA") or not REAL.is_dir(),
    reason="SPEAR_REAL_CORPORA names no folder that holds an4",
)
@pytest.mark.timeout(900)
def test_the_tiny_size_runs_on_the_real_corpus(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    options = ["--conf", "tiny", "--data-dir", str(tmp_path / "data"), "--exp-dir", str(tmp_path / "exp")]
    for script, given in (("prepare.sh", ["--corpus-dir", str(REAL.parent)]), ("run.sh", [])):
        command = [str(RECIPE / script), *options, *given]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
        assert done.returncode == 0, done.stdout + done.stderr
    manifests = tmp_path / "data" / "manifests"
    speakers = {
        name: {cut.supervisions[0].speaker for cut in Manifest(manifests / f"an4_cuts_{name}.jsonl.gz")}
        for name in ("labelled", "dev", "test")
    }
    assert len(speakers["dev"]) == 8
    assert not (
        speakers["labelled"] & speakers["dev"] or speakers["test"] & (speakers["labelled"] | speakers["dev"])
    )
    report = json.loads((tmp_path / "exp" / "report" / "report.json").read_text())
    assert {result["set"] for result in report["results"]} == {"dev", "test"}
