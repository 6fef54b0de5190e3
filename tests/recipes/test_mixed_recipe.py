"""egs/mixed: what the scripts of egs/common/parts refuse, and (slow) the whole recipe at the tiny size."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from lhotse import Recording
from scipy.io import wavfile
from toy_recipe import REPOSITORY

from spear_lib import load_encoder
from spear_lib.data.domains import domain_of
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.quantization import Quantizer
from spear_lib.runtime.metrics_log import read_metrics
from spear_lib.runtime.overlays import read_overlays
from spear_lib.tokens.fields import load_tokens, token_facts

RECIPE = REPOSITORY / "egs" / "mixed"
SPEECH, AUDIO = "spectral_cb2", "spectral_25hz_cb3"
SETS = ("speech-train", "speech-dev", "audio-train", "audio-dev")


def load_script(name: str):
    """A module of egs/common/parts."""
    path = REPOSITORY / "egs" / "common" / "parts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"mixed_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


link_part, take_cuts, check_teachers = map(load_script, ("link_part", "take_cuts", "check_teachers"))


def command(script: str, folder: Path, *arguments: object, recipe: Path = RECIPE) -> list[str]:
    options = ["--conf", "tiny", "--data-dir", str(folder / "data"), "--exp-dir", str(folder / "exp")]
    return [str(recipe / script), *options, *map(str, arguments)]


def call(*arguments: object, **keywords) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(*arguments, **keywords), env=environment, capture_output=True, text=True, timeout=1500
    )


def succeed(*arguments: object, **keywords) -> str:
    result = call(*arguments, **keywords)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def refuse(*arguments: object, **keywords) -> str:
    result = call(*arguments, **keywords)
    assert result.returncode in (1, 2), result.stdout + result.stderr
    return result.stderr


# ---- quick: the scripts of egs/common/parts, and the options


def part(folder: Path) -> Path:
    """A data folder with the markers of stages 1 and 2."""
    (folder / ".done").mkdir(parents=True)
    for number in (1, 2):
        (folder / ".done" / f"stage-{number}.json").write_text('{"id": "x"}')
    return folder


def link(folder: Path | str, output: Path) -> None:
    options = ["--part", "audio", "--recipe", "audioset", "--folder", str(folder), "--output", str(output)]
    link_part.main(options)


def test_a_part_is_a_finished_data_folder(tmp_path):
    finished, output = part(tmp_path / "finished"), tmp_path / "data" / "audio"
    for _ in range(2):
        link(finished, output)
    assert output.resolve() == finished.resolve()
    with pytest.raises(ValueError, match="no audio corpus: give --audio-data DIR, .*../audioset/prepare.sh"):
        link("", output)
    with pytest.raises(ValueError, match="--audio-data .*nothing is not a folder: expected a data folder"):
        link(tmp_path / "nothing", output)
    (part(tmp_path / "half") / ".done" / "stage-2.json").unlink()
    with pytest.raises(ValueError, match=r"has no finished stage 2 \(noise; .*audioset/prepare.sh --stop"):
        link(tmp_path / "half", output)
    with pytest.raises(ValueError, match="is there already and is .*finished"):
        link(part(tmp_path / "other"), output)


def test_cuts_of_another_recipe_find_their_audio(tmp_path, monkeypatch):
    recipe = tmp_path / "egs" / "sounds"
    (recipe / "data" / "corpus").mkdir(parents=True)
    wavfile.write(recipe / "data" / "corpus" / "a.wav", 16000, np.ones(8000, np.int16))
    monkeypatch.chdir(recipe)
    relative = Recording.from_file("data/corpus/a.wav").to_cut()
    absolute = Recording.from_file(recipe / "data" / "corpus" / "a.wav").to_cut()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").symlink_to(recipe / "data")  # a link to the data folder, as stage 0 makes it
    for cut in (relative, absolute):
        save_cuts([cut], recipe / "data" / "cuts.jsonl.gz")
        missing = pytest.raises(Exception, match="data/corpus/a.wav")
        with missing if cut is relative else nullcontext():
            Manifest(recipe / "data" / "cuts.jsonl.gz")[0].load_audio()
        given = ["--cuts", "elsewhere/cuts.jsonl.gz", "--output", "taken.jsonl.gz"]
        take_cuts.main(given)
        assert Manifest("taken.jsonl.gz")[0].load_audio().shape == (1, 8000)
    save_cuts([relative], recipe / "data" / "cuts.jsonl.gz")
    (recipe / "data" / "corpus" / "a.wav").unlink()
    with pytest.raises(ValueError, match="names the audio data/corpus/a.wav, which is in no folder above it"):
        take_cuts.main(given)


def quantizer(folder: Path, teacher: str, prefix: str, codebooks: int = 2) -> str:
    result = Quantizer(4, codebooks, 4)
    result.provenance = {"teacher": {"teacher_id": teacher, "field_prefix": prefix}}
    result.save(folder)
    return str(folder)


def test_the_teachers_must_differ(tmp_path):
    speech = quantizer(tmp_path / "speech", "wavlm-1", "wavlm_l21")
    check_teachers.main(["--speech", speech, "--audio", quantizer(tmp_path / "b", "dasheng-1", "dasheng")])
    with pytest.raises(
        ValueError, match="teacher are the same, wavlm-1: its tokens would be predicted twice"
    ):
        check_teachers.main(["--speech", speech, "--audio", quantizer(tmp_path / "c", "wavlm-1", "x", 3)])
    with pytest.raises(ValueError, match="both teachers would be the field wavlm_l21_cb2 of a cut"):
        check_teachers.main(
            ["--speech", speech, "--audio", quantizer(tmp_path / "d", "wavlm-2", "wavlm_l21")]
        )


def test_the_teachers_of_the_mini_version_are_as_the_issue_wants_them():
    from spear_lib.teachers import create_teacher
    from spear_lib.teachers.options import SpectralOptions

    teachers, codebooks = {}, {}
    for domain in ("speech", "audio"):
        values = read_overlays(RECIPE / "conf" / "quantizer" / domain / "mini.yaml")
        teachers[domain] = create_teacher("spectral", **vars(SpectralOptions(**values["spectral"])))
        codebooks[domain] = values["training"]["num_codebooks"]
    assert codebooks == {"speech": 16, "audio": 8}
    assert {domain: teacher.frame_rate for domain, teacher in teachers.items()} == {"speech": 50, "audio": 25}
    speech, audio = teachers["speech"], teachers["audio"]
    assert speech.options["context_frames"] != audio.options["context_frames"] and speech.id != audio.id


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (
            "prepare.sh",
            ("--mini", "true", "--speech-data", "x"),
            "--speech-data names a finished one: give one",
        ),
        ("prepare.sh", ("--split", "2"), "--split is for stage 5 alone"),
        ("prepare.sh", ("--strategy", "single"), "takes one of asymmetrical, joint, disjoint, got 'single'"),
        ("run.sh", ("--strategy", "mean"), "takes one of asymmetrical, joint, disjoint, got 'mean'"),
        ("run.sh", ("--stage", "7"), "there is no stage 7 here"),
        ("prepare.sh", (), "no speech corpus: give --speech-data DIR"),
    ],
)
def test_options_that_make_no_sense(script, options, message, tmp_path):
    assert message in refuse(script, tmp_path, *options)


def test_help_lists_an_option_for_every_part():
    text = subprocess.run([str(RECIPE / "prepare.sh"), "--help"], capture_output=True, text=True).stdout
    for name in ("speech-data", "audio-data", "speech-quantizer", "audio-teacher-path", "strategy"):
        assert re.search(rf"^  --{name} ", text, re.MULTILINE), name


# ---- slow: the whole recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished prepare.sh and run.sh, with both recipes' corpora synthesised."""
    folder = tmp_path_factory.mktemp("mixed")
    for script in ("prepare.sh", "run.sh"):
        (folder / f"{script}.log").write_text(succeed(script, folder, "--mini", "true"))
    return folder


def cuts_of(folder: Path, name: str) -> Manifest:
    return Manifest(folder / "data" / "cuts" / f"mixed_cuts_{name}.jsonl.gz")


def fields_of(cut) -> set[str]:
    return {name for name in (SPEECH, AUDIO) if cut.has_custom(name)}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cuts_carry_what_the_strategy_needs(folder):
    identities = {}
    for name in SETS:
        cuts = cuts_of(folder, name)
        domain = name.split("-")[0]
        assert len(cuts) == len(Manifest(folder / "data" / "manifests" / f"mixed_cuts_{name}.jsonl.gz")) > 0
        for cut in cuts:
            assert domain_of(cut) == domain
            assert fields_of(cut) == ({SPEECH} if domain == "speech" else {SPEECH, AUDIO})
            assert abs(len(load_tokens(cut, SPEECH)) - 50 * cut.duration) <= 2
            if domain == "audio":
                assert load_tokens(cut, AUDIO).shape[1] == 3
                assert abs(len(load_tokens(cut, AUDIO)) - 25 * cut.duration) <= 2
            for field in fields_of(cut):
                facts = token_facts(cut, field)
                identities.setdefault(field, set()).add((facts["teacher_id"], facts["quantizer_id"]))
    assert all(len(values) == 1 for values in identities.values())
    assert len({next(iter(values))[0] for values in identities.values()}) == 2, "two different teachers"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_model_is_trained_and_reported_on_both_domains(folder):
    lines = read_metrics(folder / "exp" / "pretrain" / "metrics.jsonl")
    valid = {line["kind"]: line for line in lines if line["kind"].startswith("valid/")}
    assert set(valid) == {"valid/speech-dev", "valid/audio-dev"}
    assert f"{SPEECH}/speech/masked_loss" in valid["valid/speech-dev"]
    assert {f"{SPEECH}/audio/masked_loss", f"{AUDIO}/audio/masked_loss"} <= set(valid["valid/audio-dev"])
    assert load_encoder(folder / "exp" / "pretrain" / "encoder") is not None
    report = json.loads((folder / "exp" / "report" / "report.json").read_text())
    assert {"dev", "test-clean", "test-other"} <= {result["set"] for result in report["results"]}
    assert (folder / "exp" / "speech" / "finetune_pretrained" / "probe" / "probes.json").is_file()
    again = succeed("prepare.sh", folder, "--mini", "true") + succeed("run.sh", folder, "--mini", "true")
    assert len(re.findall("skipped$", again, re.MULTILINE)) == 8 + 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_strategy_without_its_tokens_says_what_is_missing(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data", symlinks=True)
    message = refuse("run.sh", tmp_path, "--strategy", "joint", "--stop-stage", "10")
    assert f"has no tokens '{AUDIO}', which every speech cut needs here" in message
    message = refuse("prepare.sh", tmp_path, "--mini", "true", "--strategy", "joint")
    assert "--strategy: was asymmetrical, now joint" in message


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_in_stage_5_it_ends_with_the_same_tokens(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data", symlinks=True)
    data = tmp_path / "data"
    for number in (5, 6, 7):
        (data / ".done" / f"stage-{number}.json").unlink()
    shutil.rmtree(data / "tokens")
    shutil.rmtree(data / "cuts")
    options = ("--mini", "true", "--stage", 5, "--stop-stage", 6)
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command("prepare.sh", tmp_path, *options),
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        deadline = time.monotonic() + 600
        while not list(data.glob("tokens/speech/audio-train/plan.json")):  # the second part has begun
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (data / ".done" / "stage-5.json").exists()
    succeed("prepare.sh", tmp_path, *options)
    for name in SETS:
        before, after = cuts_of(folder, name), cuts_of(tmp_path, name)
        assert list(before.ids) == list(after.ids)
        for old, new in zip(before, after):
            assert fields_of(old) == fields_of(new)
            for field in fields_of(old):
                assert np.array_equal(load_tokens(old, field), load_tokens(new, field))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_finished_recipes_are_linked_and_only_missing_tokens_are_made(folder, tmp_path):
    """Joint, from linked data folders, of which that of speech has tokens; and a third corpus."""
    egs = tmp_path / "egs"
    for name in ("common", "librispeech", "audioset", "mixed"):
        ignored = shutil.ignore_patterns("data", "exp")
        shutil.copytree(REPOSITORY / "egs" / name, egs / name, ignore=ignored, symlinks=True)
    (tmp_path / "spear_lib").symlink_to(REPOSITORY / "spear_lib")
    facts = egs / "mixed" / "local" / "corpus.sh"
    line = '  "audio audio audioset small,audio-13k,sa-97k,sa-197k"\n'
    assert line in facts.read_text()
    facts.write_text(facts.read_text().replace(line, line + '  "music audio audioset"\n'))
    linked = tmp_path / "linked"
    for name in ("speech", "audio"):
        shutil.copytree(folder / "data" / name, linked / name, symlinks=True)
    for name in ("train", "dev"):  # as librispeech's own stages 5 and 6 would have left them
        store = folder / "data" / "tokens" / "speech" / f"speech-{name}"
        shutil.copytree(store, linked / "speech" / "tokens" / "spectral" / name)
    unwritten = {path: path.stat().st_mtime_ns for path in linked.rglob("*") if path.is_file()}
    quantizers = folder / "data" / "quantizers"
    options = ["--speech-data", linked / "speech", "--audio-data", linked / "audio", "--strategy", "joint"]
    options += ["--music-data", folder / "data" / "audio", "--speech-quantizer", quantizers / "speech"]
    given = {"recipe": egs / "mixed"}
    same = ["--audio-quantizer", quantizers / "speech"]
    message = refuse("prepare.sh", tmp_path / "same", *options, *same, **given)
    assert "the speech and the audio teacher are the same, spectral-" in message
    succeed(
        "prepare.sh",
        tmp_path,
        *options,
        "--audio-quantizer",
        quantizers / "audio",
        "--stop-stage",
        6,
        **given,
    )
    tokens = tmp_path / "data" / "tokens"
    made = {str(path.relative_to(tokens)) for path in tokens.glob("*/*") if not path.is_symlink()}
    assert made == {
        f"{domain}/{name}-{each}"
        for each in ("train", "dev")
        for domain, name in (
            ("audio", "speech"),
            ("speech", "audio"),
            ("audio", "audio"),
            ("speech", "music"),
            ("audio", "music"),
        )
    }
    assert (
        tokens / "speech" / "speech-train"
    ).resolve() == linked / "speech" / "tokens" / "spectral" / "train"
    assert unwritten == {path: path.stat().st_mtime_ns for path in linked.rglob("*") if path.is_file()}
    assert not (tmp_path / "data" / "embeddings").exists(), "both quantisers were given"
    for name in SETS:
        for old, new in zip(cuts_of(folder, name), cuts_of(tmp_path, name)):
            assert old.id == new.id and fields_of(new) == {SPEECH, AUDIO}
            for field in fields_of(old):
                assert np.array_equal(load_tokens(old, field), load_tokens(new, field))
    # The linked folder was made again by its own recipe.
    marker = linked / "audio" / ".done" / "stage-1.json"
    marker.write_text(marker.read_text().replace('"id": "', '"id": "0'))
    options += ["--audio-quantizer", quantizers / "audio"]
    assert "linked_stages of local/corpus.sh: was " in refuse("prepare.sh", tmp_path, *options, **given)
