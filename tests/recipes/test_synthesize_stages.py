"""Stages 0 to 2 of egs/librispeech on a tiny synthesised corpus, and on a spoilt one."""

import gzip
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spear_lib.data.audio import load_audio
from spear_lib.data.manifests import Manifest

REPOSITORY = Path(__file__).resolve().parents[2]
LOCAL = REPOSITORY / "egs" / "librispeech" / "local"


def script(name: str):
    """A file of egs/librispeech/local as a module."""
    spec = importlib.util.spec_from_file_location(name, LOCAL / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepare_corpus, prepare_manifests, prepare_noise = map(
    script, ("prepare_corpus", "prepare_manifests", "prepare_noise")
)


def call(module, *arguments) -> None:
    module.main([*map(str, arguments)])


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """data/corpus of --mini true, tiny."""
    folder = tmp_path_factory.mktemp("recipe") / "data" / "corpus"
    command = [sys.executable, LOCAL / "prepare_corpus.py", "--mini", "true", "--size", "tiny"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([*map(str, command), "--output", str(folder)], check=True, env=environment)
    return folder


@pytest.fixture
def spoilt(mini, tmp_path):
    """A copy of the corpus that a test may damage: (folder of stage 0, test-clean)."""
    shutil.copytree((mini / "LibriSpeech").resolve(), tmp_path / "corpus" / "LibriSpeech")
    return tmp_path / "corpus", tmp_path / "corpus" / "LibriSpeech" / "test-clean"


def test_mini_corpus_goes_through_the_stages(mini, tmp_path):
    call(prepare_manifests, "--corpus-dir", mini, "--output", tmp_path)
    facts = json.loads((mini / "synthetic_speech" / "corpus.json").read_text())
    statistics = json.loads((tmp_path / "librispeech_statistics.json").read_text())
    manifests = {}
    for name in ("train", "labelled", "dev", "test-clean", "test-other"):
        manifests[name] = Manifest(tmp_path / f"librispeech_cuts_{name}.jsonl.gz")
        assert statistics[name]["cuts"] == len(manifests[name])
        assert statistics[name]["hours"] == pytest.approx(manifests[name].hours, abs=1e-4)
    assert set(manifests) == set(statistics)
    speakers = {name: {cut.supervisions[0].speaker for cut in cuts} for name, cuts in manifests.items()}
    assert speakers["labelled"] == {str(speaker) for speaker in facts["labelled_speakers"]}
    assert speakers["labelled"] < speakers["train"] and len(speakers["train"]) == 6
    assert not speakers["train"] & (speakers["dev"] | speakers["test-clean"] | speakers["test-other"])
    for speaker in speakers["labelled"]:
        cuts = [cut for cut in manifests["train"] if cut.supervisions[0].speaker == speaker]
        assert {cut.id for cut in cuts} <= set(manifests["labelled"].ids)
    first = manifests["train"][0]
    assert first.id == first.supervisions[0].id == first.recording_id
    assert len(load_audio(first)) == round(first.duration * 16000)
    assert statistics["train"]["problems"]["skipped"] == 0

    call(prepare_noise, "--corpus-dir", mini, "--output", tmp_path / "noise_cuts.jsonl.gz")
    noise = Manifest(tmp_path / "noise_cuts.jsonl.gz")
    assert {cut.custom["kind"] for cut in noise} == {"music", "noise", "speech"}
    assert noise.durations.max() <= 10.0 and not any(cut.supervisions for cut in noise)
    np.testing.assert_allclose(noise.hours * 60, 1.0)


def test_manifests_have_the_same_bytes_each_time(mini, tmp_path):
    for name in ("first", "second"):
        call(
            prepare_manifests,
            "--corpus-dir",
            mini,
            "--output",
            tmp_path / name,
            "--num-jobs",
            1 + len(name) % 2,
        )
        call(prepare_noise, "--corpus-dir", mini, "--output", tmp_path / name / "noise_cuts.jsonl.gz")
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert len(names) == 7
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_synthesised_folder_as_a_real_corpus(mini, tmp_path):
    output = tmp_path / "data" / "corpus"
    speech = (mini / "LibriSpeech").resolve()
    options = ("--corpus-dir", speech.parent, "--noise-dir", mini / "synthetic_noise", "--output", output)
    call(prepare_corpus, *options)
    call(prepare_corpus, *options)  # again: nothing changes
    assert (output / "LibriSpeech").resolve() == speech and (output / "musan" / "music").is_dir()
    shutil.copytree((mini / "musan").resolve(), tmp_path / "other" / "musan")
    with pytest.raises(ValueError, match=r"musan is there already and is .*delete the data folder"):
        call(prepare_corpus, *options, "--noise-dir", tmp_path / "other")


def test_no_corpus_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="no corpus: give --mini true .*--corpus-dir.*download"):
        call(prepare_corpus, "--output", tmp_path / "corpus")
    with pytest.raises(ValueError, match="is not a folder: expected DIR/train-clean-100/<speaker>"):
        call(prepare_corpus, "--corpus-dir", tmp_path / "no", "--output", tmp_path / "corpus")
    with pytest.raises(ValueError, match=r"has no part train-\*: expected"):
        call(prepare_corpus, "--corpus-dir", tmp_path, "--output", tmp_path / "corpus")
    (tmp_path / "train-clean-100").mkdir()
    with pytest.raises(ValueError, match="train-clean-100 holds no transcripts"):
        call(prepare_corpus, "--corpus-dir", tmp_path, "--output", tmp_path / "corpus")
    with pytest.raises(ValueError, match="give one of them"):
        call(prepare_corpus, "--mini", "true", "--corpus-dir", tmp_path, "--output", tmp_path / "corpus")
    with pytest.raises(ValueError, match="LibriSpeech does not exist: run stage 0 first"):
        call(prepare_manifests, "--corpus-dir", tmp_path, "--output", tmp_path / "m")


def test_noise_folder_that_is_none(mini, tmp_path):
    with pytest.raises(ValueError, match="has no music, noise, speech: expected the unpacked archive"):
        call(prepare_corpus, "--corpus-dir", mini, "--noise-dir", tmp_path, "--output", tmp_path / "corpus")


def test_no_noise_leaves_no_manifest(tmp_path, caplog):
    caplog.set_level("INFO")
    output = tmp_path / "noise_cuts.jsonl.gz"
    output.write_text("of an earlier run")
    call(prepare_noise, "--corpus-dir", tmp_path, "--output", output)
    assert not output.exists() and "no noise will be mixed in" in caplog.text


def audio_files(part: Path) -> list[Path]:
    return sorted(part.rglob("*.flac"))


def remove_audio(part: Path) -> str:
    path = audio_files(part)[0]
    path.unlink()
    return path.stem


def remove_transcript(part: Path) -> str:
    path = sorted(part.rglob("*.trans.txt"))[0]
    first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rest))
    return first.split()[0]


def remove_words(part: Path) -> str:
    path = sorted(part.rglob("*.trans.txt"))[0]
    first, *rest = path.read_text().splitlines(keepends=True)
    name = first.split()[0]
    path.write_text("".join([name + "\n", *rest]))
    return name


def break_header(part: Path) -> str:
    path = audio_files(part)[1]
    path.write_bytes(b"\0" * 500)
    return path.stem


def break_samples(part: Path) -> str:
    path = audio_files(part)[1]
    path.write_bytes(path.read_bytes()[:2000])
    return path.stem


def empty_file(part: Path) -> str:
    path = audio_files(part)[2]
    path.write_bytes(b"")
    return path.stem


def repeat_line(part: Path) -> str:
    path = sorted(part.rglob("*.trans.txt"))[0]
    text = path.read_text()
    path.write_text(text + text.splitlines(keepends=True)[0])
    return text.split()[0]


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (remove_audio, "transcript without audio"),
        (remove_transcript, "audio without transcript"),
        (remove_words, "without transcript"),
        (break_header, "corrupt audio"),
        (break_samples, "corrupt audio"),
        (empty_file, "zero-length audio"),
        (repeat_line, "duplicate id"),
    ],
)
def test_damage_is_skipped_and_counted_up_to_the_limit(spoilt, tmp_path, damage, kind):
    corpus, part = spoilt
    num_files = len(audio_files(part))
    name = damage(part)
    options = ("--corpus-dir", corpus, "--output", tmp_path / "manifests")
    call(prepare_manifests, *options, "--max-bad-fraction", 0.2)
    statistics = json.loads((tmp_path / "manifests" / "librispeech_statistics.json").read_text())
    problems = statistics["test-clean"]["problems"]
    assert problems["kinds"] == {kind: 1} and problems["examples"] == {kind: [name]}
    manifest = Manifest(tmp_path / "manifests" / "librispeech_cuts_test-clean.jsonl.gz")
    assert len(manifest) == num_files - (damage is not repeat_line)
    assert (name in manifest) == (damage is repeat_line)
    with pytest.raises(ValueError, match=rf"utterances of test-clean .* limit is 1 %: 1 {kind} \({name}\)"):
        call(prepare_manifests, *options)


def test_a_speaker_on_another_disk_is_linked_and_not_left_out(spoilt, tmp_path):
    corpus, part = spoilt
    options = ("--corpus-dir", corpus, "--output", tmp_path / "manifests")
    call(prepare_manifests, *options)
    path = tmp_path / "manifests" / "librispeech_cuts_test-clean.jsonl.gz"
    before = list(Manifest(path).ids)
    for speaker in sorted(part.iterdir()):
        shutil.move(speaker, tmp_path / "disk2" / speaker.name)
        speaker.symlink_to(tmp_path / "disk2" / speaker.name)
    (part / "again").symlink_to(part)
    call(prepare_manifests, *options)
    assert list(Manifest(path).ids) == before


def test_speech_on_one_of_two_channels_is_what_every_reader_reads(spoilt, tmp_path):
    corpus, part = spoilt
    path = audio_files(part)[0]
    samples, _ = soundfile.read(path)
    soundfile.write(path, np.stack([0 * samples, samples], 1), 16000)
    silent = audio_files(part)[1]
    soundfile.write(silent, np.zeros((16000, 2)), 16000)
    options = ("--corpus-dir", corpus, "--output", tmp_path / "manifests", "--max-bad-fraction", 0.2)
    call(prepare_manifests, *options)
    statistics = json.loads((tmp_path / "manifests" / "librispeech_statistics.json").read_text())
    problems = statistics["test-clean"]["problems"]
    assert problems["notes"] == {"mean of 2 channels": 1, "with a silent channel": 1}
    assert problems["kinds"] == {"silent": 1} and problems["examples"]["silent"] == [silent.stem]
    manifest = Manifest(tmp_path / "manifests" / "librispeech_cuts_test-clean.jsonl.gz")
    cut = manifest[manifest.position(path.stem)]
    np.testing.assert_allclose(load_audio(cut), samples / 2, atol=1e-4)


def test_noises_in_linked_folders_are_taken_once(mini, tmp_path):
    shutil.copytree((mini / "musan").resolve(), tmp_path / "corpus" / "musan")
    options = ("--corpus-dir", tmp_path / "corpus", "--output", tmp_path / "noise.jsonl.gz")
    call(prepare_noise, *options)
    before = list(Manifest(tmp_path / "noise.jsonl.gz").ids)
    folder = tmp_path / "corpus" / "musan" / "noise"
    shutil.move(folder, tmp_path / "disk2")
    folder.mkdir()
    (folder / "here").symlink_to(tmp_path / "disk2")
    (tmp_path / "disk2" / "back").symlink_to(folder)
    call(prepare_noise, *options)
    assert list(Manifest(tmp_path / "noise.jsonl.gz").ids) == before


def test_8_khz_file_is_kept_and_counted(spoilt, tmp_path):
    corpus, part = spoilt
    path = audio_files(part)[0]
    samples, _ = soundfile.read(path)
    soundfile.write(path, samples[::2], 8000)
    call(prepare_manifests, "--corpus-dir", corpus, "--output", tmp_path / "manifests")
    statistics = json.loads((tmp_path / "manifests" / "librispeech_statistics.json").read_text())
    assert statistics["test-clean"]["problems"]["notes"] == {"resampled from 8000 Hz": 1}
    manifest = Manifest(tmp_path / "manifests" / "librispeech_cuts_test-clean.jsonl.gz")
    cut = manifest[manifest.position(path.stem)]
    assert cut.sampling_rate == 8000
    assert abs(len(load_audio(cut)) - len(samples)) <= 1


def test_utterance_in_two_sets(spoilt, tmp_path):
    corpus, part = spoilt
    speaker = sorted(part.iterdir())[0]
    shutil.copytree(speaker, corpus / "LibriSpeech" / "test-other" / speaker.name)
    with pytest.raises(ValueError, match="is in test-clean and in test-other: remove one of them"):
        call(prepare_manifests, "--corpus-dir", corpus, "--output", tmp_path / "manifests")


def test_missing_part(spoilt, tmp_path):
    corpus, _ = spoilt
    shutil.rmtree(corpus / "LibriSpeech" / "dev-clean")
    with pytest.raises(ValueError, match=r"has no dev-\* folder"):
        call(prepare_manifests, "--corpus-dir", corpus, "--output", tmp_path / "manifests")


def labelled(folder: Path) -> set[str]:
    with gzip.open(folder / "librispeech_cuts_labelled.jsonl.gz", "rt") as file:
        return {json.loads(line)["supervisions"][0]["speaker"] for line in file}


def test_choice_of_labelled_speakers(spoilt, tmp_path):
    corpus, _ = spoilt  # no corpus.json beside it, as beside a real corpus
    train = {path.name for path in (corpus / "LibriSpeech" / "train-clean-100").iterdir()}
    options = ("--corpus-dir", corpus, "--output", tmp_path)
    for choice, expected in (
        ("auto", train),
        ("all", train),
        ("2", {"100", "101"}),  # these two read more than the others
        ("103,105", {"103", "105"}),
        ("104", {"104"}),  # a speaker, not a number of speakers
    ):
        call(prepare_manifests, *options, "--labelled-speakers", choice)
        assert labelled(tmp_path) == expected
    with pytest.raises(ValueError, match="there are 6 speakers, choose 1 to 6"):
        call(prepare_manifests, *options, "--labelled-speakers", 7)
    with pytest.raises(ValueError, match="999 is not in the training set; its speakers are 100, 101"):
        call(prepare_manifests, *options, "--labelled-speakers", "100,999")


def test_killed_synthesis_is_completed_by_the_next_run(mini, tmp_path):
    output = tmp_path / "data" / "corpus"
    command = [
        sys.executable,
        LOCAL / "prepare_corpus.py",
        "--mini",
        "true",
        "--size",
        "tiny",
        "--output",
        output,
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(list(map(str, command)), env=environment, start_new_session=True)
    unfinished = output / "synthetic_speech.tmp"
    deadline = time.monotonic() + 60
    while not list(unfinished.rglob("*.flac")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert unfinished.is_dir() and not (output / "synthetic_speech").exists()
    subprocess.run(list(map(str, command)), env=environment, check=True)
    assert not unfinished.exists()
    for path in sorted(mini.rglob("*.flac")) + sorted(mini.rglob("*.wav")):
        assert path.read_bytes() == (output / path.relative_to(mini)).read_bytes()
