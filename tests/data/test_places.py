"""Places: experiments copied elsewhere, read-only stores, pipes, and paths of any characters."""

import json
import os
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile
from asr_fixtures import make_cuts
from token_fixtures import cut_of, make_store

from spear_lib.asr.units import TextUnits, train_bpe, units_of
from spear_lib.bin import check_tokens, transcribe
from spear_lib.config import parse
from spear_lib.data.audio import NO_FFMPEG, AudioError
from spear_lib.data.audio_files import find_audio, open_audio
from spear_lib.data.manifests import Manifest, named_sets, save_cuts
from spear_lib.tokens import checking

ODD = [
    "a b",
    "a,b",
    "a: b",
    "[x]",
    "a#b",
    "a #b",
    "'q'",
    'q"q',
    "{x}",
    "a=b",
    "*x",
    "日本",
    "-",
    "null",
    "1e3",
]


@dataclass(frozen=True)
class Options:
    """Options of a command."""

    one: str = ""
    """A path."""
    many: list[str] = field(default_factory=list)
    """Paths."""
    some: str | list[str] = ""
    """A path, or several."""


@pytest.mark.parametrize("name", ODD)
def test_paths_of_any_characters_in_options(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, other = tmp_path / name / "cuts.jsonl", tmp_path / "other.jsonl"
    path.parent.mkdir()
    path.touch(), other.touch()
    for text in (str(path), os.path.relpath(path)):
        assert parse(Options, ["--one", text]).one == text
        assert parse(Options, [f"--some={text}"]).some == text
        for given in (text, f"[{text}]", json.dumps([text])):
            assert parse(Options, ["--many", given]).many == [text]
            assert parse(Options, [f"--many={given}"]).many == [text]
        both = [text, str(other)]
        assert parse(Options, ["--many", json.dumps(both)]).many == both
    if "," not in name:
        assert parse(Options, ["--many", f"[{path}, {other}]"]).many == [str(path), str(other)]


def test_what_is_no_list_says_how_to_write_one(capsys):
    with pytest.raises(SystemExit):
        parse(Options, ["--many", "[dev=/a: b/cuts.jsonl]"])
    assert "put quotes around what holds a comma, colon, bracket or #" in capsys.readouterr().err


def test_names_of_sets_and_paths_with_an_equals_sign(tmp_path):
    path = tmp_path / "a=b" / "x_cuts_dev.jsonl"
    path.parent.mkdir()
    path.touch()
    assert named_sets([str(path), f"other={path}"]) == {"dev": path, "other": path}


# ---- an experiment that is copied elsewhere


def test_an_experiment_holds_its_units(tmp_path, monkeypatch):
    from spear_lib.bin import finetune_asr

    cuts = make_cuts(tmp_path / "corpus", "train", 6, [0])
    texts = [cut.supervisions[0].text for cut in Manifest(cuts)]
    train_bpe(texts, 20, tmp_path / "recipe" / "units")
    kept = []
    monkeypatch.chdir(tmp_path / "recipe")
    monkeypatch.setattr(finetune_asr, "finetune", lambda *_, keep, **__: kept.append(keep))
    finetune_asr.main(
        ["--experiment_dir", "exp", "--units", "units", "--dev_cuts", str(cuts), "--scratch", "true"]
    )
    kept[0](Path("exp"))
    kept[0](Path("exp"))  # again, when it is resumed
    shutil.copytree("exp", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "recipe" / "units")
    monkeypatch.chdir(tmp_path)
    assert units_of(str(tmp_path / "elsewhere"), "").id == TextUnits("recipe/exp/units").id


# ---- pipes


def test_a_pipe_is_transcribed(trained_toy, tmp_path, capsys):
    audio = sorted(trained_toy["folder"].glob("*.wav"))[0]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(audio.read_bytes()))
    writer.start()
    common = ("--experiment_dir", str(trained_toy["experiment"]), "--average", "0")
    transcribe.main([str(pipe), *common, "--search.method", "greedy"])
    writer.join()
    piped = capsys.readouterr().out
    transcribe.main([str(audio), *common, "--search.method", "greedy"])
    assert piped == capsys.readouterr().out and piped.strip()


def test_an_empty_pipe_and_a_folder_say_so(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(b""))
    writer.start()
    with pytest.raises(AudioError, match="pipe is an empty file"):
        open_audio(tmp_path / "pipe")
    writer.join()
    with pytest.raises(AudioError, match="is a folder, expected an audio file"):
        open_audio(tmp_path)


# ---- formats


def test_a_format_that_needs_ffmpeg_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("a.m4a", "b.WEBM", "c.aac"):
        (tmp_path / name).write_bytes(b"\0\0\0\x20ftypM4A \0\0")
        with pytest.raises(AudioError, match=rf"{name} .* needs ffmpeg, which is not installed") as error:
            open_audio(tmp_path / name)
        assert error.value.kind == NO_FFMPEG
    (tmp_path / "d.wav").write_bytes(b"no audio")
    with pytest.raises(AudioError, match=r"d\.wav is no audio that can be read \(Error .*convert it to WAV"):
        open_audio(tmp_path / "d.wav")


def test_companions_of_macos_are_no_audio(trained_toy, tmp_path):
    audio = sorted(trained_toy["folder"].glob("*.wav"))[0]
    shutil.copy(audio, tmp_path / "a.wav")
    (tmp_path / "._a.wav").write_bytes(b"\0\5\26\7")
    assert find_audio([tmp_path]) == [tmp_path / "a.wav"]


# ---- read-only stores


@pytest.fixture
def read_only(monkeypatch):
    """The folders in this list refuse to be written to, as a mounted snapshot does (root ignores modes)."""
    folders: list[Path] = []
    opened, access, unlink = os.open, os.access, Path.unlink

    def inside(path) -> bool:
        return any(Path(path).resolve().is_relative_to(folder) for folder in folders)

    def refuse(path, *arguments, **options):
        if inside(path):
            raise OSError(30, "Read-only file system", str(path))
        return unlink(path, *arguments, **options)

    def touch(path, *arguments, **options):
        if inside(path):
            raise OSError(30, "Read-only file system", str(path))
        os.close(opened(path, os.O_CREAT | os.O_WRONLY))

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr(Path, "touch", touch)
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and not inside(path))
    return folders


def test_a_read_only_store_is_only_read(tmp_path, read_only, caplog):
    cuts = [cut_of("a", 1.0), cut_of("b", 0.5)]
    make_store(tmp_path / "store", cuts)
    save_cuts(cuts, tmp_path / "cuts.jsonl")
    arguments = ["--cuts", str(tmp_path / "cuts.jsonl"), "--store", str(tmp_path / "store")]
    arguments += ["--output_cuts", str(tmp_path / "out.jsonl")]
    check_tokens.main(arguments)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}
    read_only.append(tmp_path / "store")
    check_tokens.main(arguments)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}
    assert Manifest(tmp_path / "out.jsonl").ids == ["a", "b"]


def test_gaps_of_a_read_only_store_are_listed_beside_the_cuts(tmp_path, read_only):
    (tmp_path / "store").mkdir()
    gaps = {"b": "missing audio"}
    read_only.append(tmp_path / "store")
    words = checking.list_gaps(gaps, str(tmp_path / "store"), str(tmp_path / "out.jsonl"))
    listing = tmp_path / "out.jsonl.bad_cuts.txt"
    assert words == f"{listing} lists them all" and listing.read_text() == "b\tmissing audio\n"
    assert "give output_cuts" in checking.list_gaps(gaps, str(tmp_path / "store"), "")
    assert checking.list_gaps({}, str(tmp_path / "store"), "") == "none"


# ---- noises


@pytest.fixture
def musan(tmp_path):
    import numpy as np

    for part in ("music", "noise", "speech"):
        (tmp_path / "musan" / part).mkdir(parents=True)
        samples = np.random.default_rng(1).standard_normal(12 * 16000) * 0.1
        soundfile.write(tmp_path / "musan" / part / f"{part}1.wav", samples, 16000)
    return tmp_path / "musan"


def noises(musan, **options) -> list[str]:
    from spear_lib.corpora.musan import prepare_noise

    prepare_noise(musan, musan.parent / "noise.jsonl", **options)
    return Manifest(musan.parent / "noise.jsonl").ids


def test_one_bad_noise_is_counted_and_named(musan, caplog):
    whole = noises(musan)
    assert len(whole) == 6 and whole[0] == "music1-000"
    (musan / "noise" / "._noise1.wav").write_bytes(b"\0\5\26\7")
    assert noises(musan) == whole
    (musan / "noise" / "broken.wav").write_bytes(b"not audio")
    (musan / "noise" / "empty.wav").touch()
    soundfile.write(musan / "noise" / "none.wav", [], 16000)
    with pytest.raises(ValueError, match=r"3 of 9 noises .*1 corrupt audio \(.*broken\.wav\); 2 zero-length"):
        noises(musan)
    assert noises(musan, max_bad_fraction=0.5) == whole


def test_noises_of_other_formats_are_read(musan):
    whole = noises(musan)
    for path in musan.rglob("*.wav"):
        samples, rate = soundfile.read(path)
        soundfile.write(path.with_suffix(".flac"), samples, rate)
        path.unlink()
    assert noises(musan) == whole


def test_a_part_without_audio_is_found_by_stage_0(musan):
    from spear_lib.corpora.musan import find_musan

    assert find_musan(musan.parent) == musan
    (musan / "speech" / "speech1.wav").unlink()
    with pytest.raises(ValueError, match=r"musan/speech holds no audio .*unpacked whole"):
        find_musan(musan)


def test_noises_and_rooms_beside_each_other(tmp_path, monkeypatch):
    """Another layout than MUSAN's: noise and rir. A synthesised corpus speaks in its rooms."""
    import argparse

    from spear_lib.corpora import corpus_folders
    from spear_lib.corpora.musan import find_noises, prepare_noise, prepare_noise_folder

    folder = tmp_path / "noise_rir"
    for part, seconds in (("noise", 25), ("rir", 1)):
        (folder / part).mkdir(parents=True)
        soundfile.write(folder / part / f"{part}.flac", np.full(16000 * seconds, 0.1), 16000)
    assert find_noises(folder) == folder
    for name, make in (("as-musan", prepare_noise), ("as-folder", prepare_noise_folder)):
        make(folder, tmp_path / f"{name}.jsonl.gz")
        cuts = list(Manifest(tmp_path / f"{name}.jsonl.gz"))
        assert [(cut.id, cut.duration, cut.custom["kind"]) for cut in cuts] == [
            ("noise-000", 10.0, "noise"),
            ("noise-001", 10.0, "noise"),
            ("noise-002", 5.0, "noise"),
        ]
    made = []
    monkeypatch.setattr(
        corpus_folders, "synthesise", lambda kind, output, options: made.append((kind, options))
    )
    monkeypatch.setattr(corpus_folders, "link", lambda *paths: None)
    given = argparse.Namespace(
        output=tmp_path, mini="true", corpus_dir="", noise_dir=str(folder), seed=0, num_jobs=1
    )
    corpus_folders.prepare_corpus(given, "LibriSpeech", "speech", "s", ["-x"], [], None)
    corpus_folders.prepare_corpus(given, "AudioSet", "events", "s", ["-x"], [], None)
    common = ["--seed", "0", "--num-processes", "1", "-x"]
    assert made == [("speech", [*common, "--rooms", str(folder / "rir")]), ("events", common)]
    (folder / "rir" / "rir.flac").unlink()
    with pytest.raises(ValueError, match="noise_rir/rir holds no audio"):
        find_noises(folder)
    with pytest.raises(ValueError, match="has no music, speech: expected the unpacked archive"):
        (folder / "rir").rmdir()
        find_noises(folder)
