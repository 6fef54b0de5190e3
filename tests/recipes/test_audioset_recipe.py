"""egs/audioset: stages 0 to 6 and 10 to 14 on the synthesised AudioSet, and what is refused."""

import csv
import filecmp
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from audio_teacher_fixtures import save_dasheng_checkpoint
from teacher_fixtures import tiny_checkpoint
from toy_recipe import REPOSITORY

from spear_lib import load_encoder
from spear_lib.corpora.clip_tables import read_class_list
from spear_lib.corpora.labelled_clips import labels_of
from spear_lib.data.manifests import Manifest
from spear_lib.encoders import save_encoder
from spear_lib.quantization import Quantizer
from spear_lib.teachers import create_teacher
from spear_lib.tokens.fields import load_tokens, token_facts

RECIPE = REPOSITORY / "egs" / "audioset"
SETS = ("train", "balanced", "dev", "eval")
CLASSES = read_class_list(RECIPE / "local" / "class_labels_indices.csv")


def load_local(name: str):
    """A module of egs/audioset/local."""
    spec = importlib.util.spec_from_file_location(f"audioset_{name}", RECIPE / "local" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare_corpus, prepare_manifests = map(load_local, ("prepare_corpus", "prepare_manifests"))


def run_script(
    script: str, folder: Path, *arguments: str, data: Path | None = None
) -> subprocess.CompletedProcess:
    """``data``: the data folder where it is not that of ``folder``."""
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(RECIPE / script), "--mini", "true", "--conf", "tiny"]
    command += ["--data-dir", str(data or folder / "data"), "--exp-dir", str(folder / "exp"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished prepare.sh and run.sh."""
    folder = tmp_path_factory.mktemp("audioset")
    for script in ("prepare.sh", "run.sh"):
        result = run_script(script, folder)
        assert result.returncode == 0, result.stdout + result.stderr
        (folder / f"{script}.log").write_text(result.stdout + result.stderr)
    return folder


@pytest.fixture
def spoilt(folder, tmp_path) -> Path:
    """A copy of the corpus that a test may damage; the folder of stage 0."""
    shutil.copytree(folder / "data" / "corpus" / "AudioSet", tmp_path / "corpus" / "AudioSet")
    return tmp_path / "corpus"


def prepare(corpus: Path, *options: str) -> dict:
    """Stage 1; the statistics."""
    output = corpus.parent / "manifests"
    prepare_manifests.main(["--corpus-dir", str(corpus), "--output", str(output), *map(str, options)])
    return json.loads((output / "audioset_statistics.json").read_text(encoding="utf-8"))


def rows_of(corpus: Path, part: str) -> list[str]:
    return (corpus / "AudioSet" / f"{part}_segments.csv").read_text().splitlines(keepends=True)


def write_rows(corpus: Path, part: str, rows: list[str]) -> None:
    (corpus / "AudioSet" / f"{part}_segments.csv").write_text("".join(rows))


def test_the_scripts_are_those_of_librispeech():
    for script in ("prepare.sh", "run.sh"):
        assert filecmp.cmp(REPOSITORY / "egs" / "librispeech" / script, RECIPE / script, shallow=False), (
            f"egs/audioset/{script} has diverged: cp egs/librispeech/{script} egs/audioset/{script}"
        )
        assert os.access(RECIPE / script, os.X_OK)


def test_manifests_hold_what_the_tables_say(folder):
    corpus, statistics = folder / "data" / "corpus" / "AudioSet", folder / "data" / "manifests"
    cuts = {name: Manifest(statistics / f"audioset_cuts_{name}.jsonl.gz") for name in SETS}
    table: dict[str, list[str]] = {}
    for part in ("balanced_train", "unbalanced_train", "eval"):
        with (corpus / f"{part}_segments.csv").open(newline="") as file:
            for row in csv.reader(file, skipinitialspace=True):
                if not row[0].startswith("#"):
                    table[f"{row[0]}_{round(1000 * float(row[1]))}"] = sorted(row[3].split(","))
    there = {path.stem for path in corpus.rglob("*.flac")}
    assert 0 < len(table) - len(there) < 0.3 * len(table)
    found = [cut for name in ("train", "dev", "eval") for cut in cuts[name]]
    assert sorted(cut.id for cut in found) == sorted(there)
    assert {cut.id: labels_of(cut) for cut in found} == {name: table[name] for name in there}
    assert set(cuts["balanced"].ids) < set(cuts["train"].ids)
    numbers = json.loads((statistics / "audioset_statistics.json").read_text())
    for name in SETS:
        assert numbers["sets"][name]["cuts"] == len(cuts[name])
        assert numbers["sets"][name]["hours"] == pytest.approx(cuts[name].hours, abs=1e-4)
    names = set(read_class_list(corpus / "class_labels_indices.csv").values())
    assert len(numbers["sets"]["train"]["labels"]) == 20
    assert set(numbers["sets"]["train"]["labels"]) <= names
    assert sum(part["missing"]["skipped"] for part in numbers["tables"].values()) == len(table) - len(there)


def test_the_quantiser_hears_the_balanced_set_and_all_training_cuts_get_tokens(folder):
    log = (folder / "prepare.sh.log").read_text()
    balanced = len(Manifest(folder / "data" / "manifests" / "audioset_cuts_balanced.jsonl.gz"))
    sampled = json.loads((folder / "data" / "embeddings" / "spectral" / "run.json").read_text())["cuts"][-1]
    assert 0 < sampled <= balanced
    assert "manifests/audioset_cuts_balanced.jsonl.gz" in log
    for name in ("train", "dev"):
        cuts = Manifest(folder / "data" / "cuts" / f"audioset_cuts_{name}.jsonl.gz")
        assert len(cuts) == len(Manifest(folder / "data" / "manifests" / f"audioset_cuts_{name}.jsonl.gz"))
        for cut in cuts:
            tokens = load_tokens(cut, "spectral_cb2")
            assert abs(len(tokens) - 50 * cut.duration) <= 2 and tokens.shape[1] == 2
            assert labels_of(cut), "the labels must survive stage 6"
            assert cut.custom["domain"] == "audio"


def test_the_encoder_reads_sounds(folder):
    encoder = load_encoder(folder / "exp" / "pretrain" / "encoder")
    with torch.no_grad():
        output = encoder.extract(0.1 * torch.randn(1, 32000), torch.tensor([32000]))
    assert torch.isfinite(output.encoder_out).all() and int(output.lengths[0]) > 90


def test_both_arms_are_trained_and_evaluated(folder):
    for arm in ("pretrained", "scratch"):
        place = folder / "exp" / f"finetune_{arm}"
        config = yaml.safe_load((place / "config.yaml").read_text())
        assert config["scratch"] == (arm == "scratch")
        assert config["data"]["train_cuts"][0].endswith("audioset_cuts_balanced.jsonl.gz")
        assert config["data"]["noise_cuts"], "noise must really be mixed in"
        for name in ("dev", "eval"):
            result = json.loads((place / "evaluation" / f"tagging-{name}.json").read_text())
            cuts = Manifest(folder / "data" / "manifests" / f"audioset_cuts_{name}.jsonl.gz")
            assert result["num_clips"] == len(cuts) and result["num_classes"] == 527
            assert 0 < result["map"] <= 100
            with (place / "evaluation" / f"classes-{name}.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
            assert sum(int(row["support"]) for row in rows) == sum(len(labels_of(cut)) for cut in cuts)
            # Names with commas, for example "Telephone dialing, DTMF", are one column.
            assert {row["label"]: row["name"] for row in rows}.items() <= CLASSES.items()
    report = (folder / "exp" / "report" / "report.html").read_text()
    for heading in ("Fine-tuning for audio tagging", "Mean average precision, eval", "Every class of eval"):
        assert heading in report


def test_the_model_of_the_recipe_tags_a_file(folder):
    clips = sorted((folder / "data" / "corpus" / "AudioSet" / "audio" / "eval").glob("*.flac"))
    command = [sys.executable, "-m", "spear_lib.bin.tag", str(clips[0]), "--output_dir", str(folder / "tags")]
    command += ["--experiment_dir", str(folder / "exp" / "finetune_pretrained"), "--top", "4"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    content = json.loads((folder / "tags" / f"{clips[0].stem}.json").read_text())
    assert [each["name"] in result.stdout for each in content["classes"]] == [True] * 4
    assert (folder / "tags" / f"{clips[0].stem}.png").is_file()


def test_the_labelled_set_and_its_configuration_are_options(folder):
    """AS-2M: --labelled-set train --finetune-conf base-as2m."""
    result = run_script("run.sh", folder, "--stage", "12", "--labelled-set", "train")
    assert result.returncode == 1
    assert "--labelled-set: was balanced, now train" in result.stderr
    result = run_script("run.sh", folder, "--stage", "12", "--finetune-conf", "base-as2m")
    assert result.returncode == 1
    assert "samples_per_epoch was 9, now 200000" in result.stderr


def test_an_encoder_of_speech_is_fine_tuned_by_the_same_command(folder, tmp_path):
    """The SPEAR_s rows of the paper's Table 3: --encoder names an encoder of another recipe."""
    torch.manual_seed(0)
    encoder = load_encoder(folder / "exp" / "pretrain" / "encoder")
    for parameter in encoder.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    save_encoder(encoder, tmp_path / "speech-encoder", {"made": "for a test"})
    options = ("--stage", "12", "--stop-stage", "12", "--compare-scratch", "false")
    options += ("--encoder", str(tmp_path / "speech-encoder"))
    result = run_script("run.sh", tmp_path, *options, data=folder / "data")
    assert result.returncode == 0, result.stderr
    state = torch.load(tmp_path / "exp" / "finetune_pretrained" / "checkpoints" / "step-00000004.pt")
    assert state["kind"] == "tagging" and not (tmp_path / "exp" / "finetune_scratch").exists()
    assert f"starts from     {tmp_path / 'speech-encoder'}" in result.stderr


def test_prepare_ends_before_the_text_units(folder):
    log = (folder / "prepare.sh.log").read_text()
    assert "the recipe ends with stage 6: text units are for speech recognition" in log
    assert "the data is ready in" in log
    result = run_script("prepare.sh", folder, "--stage", "7")
    assert result.returncode == 1
    assert "error: there is no stage 7 in this recipe: " in result.stderr
    assert "finetune=tagging in local/corpus.sh" in result.stderr
    again = run_script("prepare.sh", folder)
    assert again.returncode == 0 and again.stdout.count("skipped") == 7


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ("none", "there is no stage 12 in this recipe: it has no labels to fine-tune on (finetune=none"),
        ("tags", "finetune=tags in local/corpus.sh: use asr, tagging or none"),
    ],
)
def test_a_recipe_without_fine_tuning_says_so(tmp_path, fact, message):
    recipe = tmp_path / "egs" / "audioset"
    shutil.copytree(REPOSITORY / "egs" / "common", tmp_path / "egs" / "common")
    shutil.copytree(RECIPE, recipe, ignore=shutil.ignore_patterns("data", "exp"))
    facts = recipe / "local" / "corpus.sh"
    facts.write_text(facts.read_text().replace("finetune=tagging", f"finetune={fact}"))
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [str(recipe / "run.sh"), "--conf", "tiny", "--stage", "12"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and message in result.stderr


def test_manifests_have_the_same_bytes_each_time(folder, spoilt):
    for jobs in (1, 3):
        prepare(spoilt, "--num-jobs", jobs)
        made = {path.name: path.read_bytes() for path in (spoilt.parent / "manifests").iterdir()}
        if jobs == 1:
            first = made
    assert first == made and len(made) == 5


def test_missing_files_have_a_limit_of_their_own(spoilt):
    clips = sorted((spoilt / "AudioSet" / "audio" / "eval").glob("*.flac"))
    for path in clips[::2]:
        path.unlink()
    with pytest.raises(ValueError, match=r"clips of eval cannot be used, the limit is 30 %: \d missing file"):
        prepare(spoilt)
    numbers = prepare(spoilt, "--max-missing-fraction", 0.9)
    assert numbers["sets"]["eval"]["cuts"] == len(clips) - len(clips[::2])
    assert numbers["tables"]["eval"]["other"]["skipped"] == 0


def test_a_clip_of_eval_is_not_trained_on(spoilt):
    segment = rows_of(spoilt, "eval")[3]
    write_rows(spoilt, "balanced_train", [*rows_of(spoilt, "balanced_train"), segment])
    write_rows(spoilt, "unbalanced_train", [*rows_of(spoilt, "unbalanced_train"), segment])
    numbers = prepare(spoilt, "--max-bad-fraction", 0.2)
    for part in ("balanced_train", "unbalanced_train"):
        assert numbers["tables"][part]["other"]["kinds"] == {"duplicate id": 1}
    with pytest.raises(ValueError, match="1 duplicate id"):
        prepare(spoilt)


def test_unknown_labels_and_quotes(spoilt):
    rows = rows_of(spoilt, "balanced_train")
    known, unknown = rows[3].rstrip()[:-1] + ',/m/unheard"\n', rows[4].split('"')[0] + '"/m/unheard"\n'
    write_rows(spoilt, "balanced_train", [*rows[:3], known, unknown, *rows[5:]])
    numbers = prepare(spoilt, "--max-bad-fraction", 0.2)["tables"]["balanced_train"]["other"]
    assert numbers["notes"]["unknown label /m/unheard"] == 2
    assert numbers["kinds"] == {"without a known label": 1}
    unquoted = "abcdefghijk, 0.000, 10.000, /m/01v_m0,/m/0chx_\n"
    write_rows(spoilt, "balanced_train", [*rows, unquoted])
    with pytest.raises(ValueError, match=f"balanced_train_segments.csv, line {len(rows) + 1}"):
        prepare(spoilt)


def test_damaged_files_are_counted(spoilt):
    broken, empty = sorted((spoilt / "AudioSet" / "audio" / "unbalanced_train").glob("*.flac"))[:2]
    broken.write_bytes(broken.read_bytes()[:3000])
    empty.write_bytes(b"")
    numbers = prepare(spoilt, "--max-bad-fraction", 0.2)["tables"]["unbalanced_train"]["other"]
    assert numbers["kinds"] == {"corrupt audio": 1, "zero-length audio": 1}
    # The headers alone show the empty one only.
    numbers = prepare(spoilt, "--max-bad-fraction", 0.2, "--decode", "false")
    assert numbers["tables"]["unbalanced_train"]["other"]["kinds"] == {"zero-length audio": 1}


def test_the_balanced_part_alone_is_enough(spoilt):
    (spoilt / "AudioSet" / "unbalanced_train_segments.csv").unlink()
    shutil.rmtree(spoilt / "AudioSet" / "audio" / "unbalanced_train")
    (spoilt / "AudioSet" / "class_labels_indices.csv").unlink()  # there is a copy beside the script
    numbers = prepare(spoilt)["sets"]
    assert numbers["train"]["cuts"] == numbers["balanced"]["cuts"] > 3 * numbers["dev"]["cuts"] > 0
    manifests = {
        name: Manifest(spoilt.parent / "manifests" / f"audioset_cuts_{name}.jsonl.gz") for name in SETS
    }
    assert not set(manifests["train"].ids) & set(manifests["dev"].ids)


def test_what_is_not_audioset_says_what_is_expected(spoilt, tmp_path):
    output = ["--output", str(tmp_path / "linked")]
    for corpus, message in (
        ("", "no corpus: give --mini true .*--corpus-dir DIR"),
        (str(tmp_path / "no"), "is not a folder: expected DIR/balanced_train_segments.csv"),
        (str(tmp_path), "has no balanced_train_segments.csv: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_corpus.main(["--corpus-dir", corpus, *output])
    with pytest.raises(ValueError, match="give one of them"):
        prepare_corpus.main(["--mini", "true", "--corpus-dir", "x", *output])
    with pytest.raises(ValueError, match="AudioSet does not exist: run stage 0 first"):
        prepare(tmp_path / "nothing")
    prepare_corpus.main(["--corpus-dir", str(spoilt), *output])
    assert (tmp_path / "linked" / "AudioSet").resolve() == (spoilt / "AudioSet").resolve()
    (spoilt / "AudioSet" / "eval_segments.csv").unlink()
    with pytest.raises(ValueError, match="has no eval_segments.csv: copy"):
        prepare(spoilt)
    with pytest.raises(ValueError, match="has no eval_segments.csv: expected"):
        prepare_corpus.main(["--corpus-dir", str(spoilt), *output])


def test_a_set_without_cuts_is_refused(spoilt):
    with pytest.raises(ValueError, match="the set dev has no cuts"):
        prepare(spoilt, "--dev-clips", 0)


@pytest.mark.parametrize(
    ("teacher", "frame_rate", "first_center"),
    [
        pytest.param("dasheng", 25.0, 15.0),
        # The speech teacher hears sounds as well: egs/mixed needs its tokens.
        pytest.param("wavlm", 50.0, 12.5, marks=pytest.mark.slow),
    ],
)
def test_tokens_of_other_teachers(folder, tmp_path, teacher, frame_rate, first_center):
    if teacher == "dasheng":
        checkpoint = save_dasheng_checkpoint(tmp_path / "dasheng.pt")
    else:
        checkpoint = tiny_checkpoint(tmp_path / "checkpoint", teacher)
    data = tmp_path / "data"
    for name in ("corpus", "manifests"):
        shutil.copytree(folder / "data" / name, data / name, symlinks=True)
    (data / ".done").mkdir()
    for stage in (0, 1, 2):
        shutil.copy(folder / "data" / ".done" / f"stage-{stage}.json", data / ".done")
    options = ("--teacher", teacher, "--teacher-path", str(checkpoint), "--stage", "3", "--stop-stage", "6")
    result = run_script("prepare.sh", tmp_path, *options)
    assert result.returncode == 0, result.stdout + result.stderr
    quantizer = Quantizer.load(data / "quantizers" / teacher)
    cut = Manifest(data / "cuts" / "audioset_cuts_dev.jsonl.gz")[0]
    field = json.loads((data / "tokens" / teacher / "dev" / "store.json").read_text())["field"]
    assert field.startswith(teacher) and field in cut.custom
    facts = token_facts(cut, field)
    assert (facts["frame_rate"], facts["first_frame_center_ms"]) == (frame_rate, first_center)
    same = create_teacher(teacher, checkpoint)
    assert quantizer.provenance["teacher"]["teacher_id"] == same.id
    audio = torch.from_numpy(cut.load_audio())
    embeddings, lengths = same.embed(audio, torch.tensor([audio.shape[1]]))
    tokens = load_tokens(cut, field)
    assert len(tokens) == int(lengths[0])
    assert np.mean(tokens == quantizer.encode(embeddings[0]).numpy()) >= 0.999
    assert labels_of(cut)
