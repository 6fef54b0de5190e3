"""Benchmark corpora in their published layouts, made up: parts, labels, errors."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from spear_lib.bin import prepare_benchmark
from spear_lib.corpora.benchmarks.common import Read
from spear_lib.corpora.benchmarks.registry import CORPORA, write_manifests
from spear_lib.corpora.benchmarks.superb_corpora import with_slots
from spear_lib.data.manifests import Manifest


def audio(path: Path, seconds: float = 0.2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.ones(round(16000 * seconds)), 16000)
    return path


def table(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def voxceleb1(folder: Path) -> None:
    listed = [
        "1 id10001/a/00001.wav",
        "2 id10001/b/00001.wav",
        "3 id10002/a/00001.wav",
        "1 id10270/a/00001.wav",
    ]
    for line in listed:
        part = "test" if "10270" in line else "dev"
        audio(folder / part / "wav" / line.split()[1])
    audio(folder / "test/wav/id10271/x/00002.wav")
    table(folder / "iden_split.txt", "\n".join(listed) + "\n")
    table(folder / "veri_test2.txt", "0 id10270/a/00001.wav id10271/x/00002.wav\n")


def speech_commands(folder: Path) -> None:
    first = folder / "speech_commands_v0.01"
    for number in range(40):
        audio(first / ("yes" if number % 2 else "bed") / f"speaker{number:02d}_nohash_0.wav")
    audio(first / "_background_noise_" / "tap.wav", 10.5)
    audio(folder / "speech_commands_test_set_v0.01" / "_unknown_" / "a_nohash_0.wav")


def fluent(folder: Path) -> None:
    for part in ("train", "valid", "test"):
        audio(folder / f"wavs/speakers/s1/{part}.wav")
        header = ",path,speakerId,transcription,action,object,location\n"
        row = f'0,wavs/speakers/s1/{part}.wav,s1,"Lights, on",activate,none,none\n'
        table(folder / "data" / f"{part}_data.csv", header + row)


def iemocap(folder: Path) -> None:
    for session in range(1, 6):
        name, lines = f"Ses0{session}F_impro01", "% header\n\n"
        for number, emotion in enumerate(("exc", "neu", "fru", "sad", "ang") * 3):
            audio(folder / f"Session{session}/sentences/wav/{name}/{name}_F{number:03d}.wav")
            lines += f"[6.29 - 8.23]\t{name}_F{number:03d}\t{emotion}\t[2.5, 2.5, 2.5]\nC-E2:\tNeutral;\t()\n"
        table(folder / f"Session{session}/dialog/EmoEvaluation/{name}.txt", lines)


def librimix(folder: Path) -> None:
    for part in ("train-100", "dev", "test"):
        for kind in ("mix_clean", "mix_single", "s1", "s2"):
            audio(folder / "wav16k/min" / part / kind / "1_2.wav")


def kaldi(folder: Path) -> None:
    for part in ("train", "dev", "test"):
        path = audio(folder / part / "one.wav", 2.0)
        table(folder / part / "wav.scp", f"rec {path}\n")
        table(folder / part / "segments", "u1 rec 0.00 1.20\nu2 rec 1.00 2.00\n")
        table(folder / part / "utt2spk", "u1 a\nu2 b\n")


def voicebank(folder: Path) -> None:
    for source, names in {"trainset_28spk": ("p226_1", "p227_1"), "testset": ("p232_1",)}.items():
        for kind in ("noisy", "clean"):
            for name in names:
                audio(folder / f"{kind}_{source}_wav" / f"{name}.wav")


def snips(folder: Path) -> None:
    lines = ""
    for part, speaker in (("train", "Ivy"), ("valid", "Amy"), ("test", "Emma")):
        name = f"{speaker}-snips-{part}-0"
        audio(folder / part / f"{name}.wav")
        audio(folder / part / f"Nobody-snips-{part}-0.wav")
        lines += f"{name} BOS PLAY BEYONCÉ , NOW EOS\tO O B-artist O O PlayMusic\n"
    table(folder / "all.iob.snips.txt", lines)


def quesst14(folder: Path) -> None:
    for name, inside in (("utterances", "Audio"), ("dev", "dev_queries"), ("eval", "eval_queries")):
        audio(folder / inside / f"{name}_1.wav")
        lines = f"quesst14Database/{inside}/{name}_1.wav nnenglish\nquesst14Database/x.wav albanian\n"
        table(folder / "scoring" / f"language_key_{name}.lst", lines)
    truth = "LEXEME utterances_1 1 0.00 1.00 {} <NA> <NA> <NA>\nSPEAKER x 1 0 1 y <NA>\n"
    for name in ("dev", "eval"):
        path = folder / f"scoring/groundtruth_quesst14_{name}/quesst14_{name}.rttm"
        table(path, truth.format(f"{name}_1"))


LAYOUTS = {
    "voxceleb1-sid": voxceleb1,
    "voxceleb1-asv": voxceleb1,
    "speech-commands-v1": speech_commands,
    "fluent": fluent,
    "iemocap": iemocap,
    "librimix-ss": librimix,
    "librimix-se": librimix,
    "librimix-sd": kaldi,
    "voicebank-demand": voicebank,
    "snips": snips,
    "quesst14": quesst14,
}


@pytest.fixture
def read(tmp_path):
    """Corpus -> part -> cuts, of a made-up folder."""

    def of(name: str, fold: int = 1) -> dict[str, list]:
        LAYOUTS[name](tmp_path / "corpus")
        write_manifests(name, tmp_path / "corpus", tmp_path / "out", fold)
        found = {
            part: list(Manifest(tmp_path / "out" / f"{part}.jsonl.gz")) for part in ("train", "valid", "test")
        }
        assert all(cut.load_audio().shape[1] > 0 for cuts in found.values() for cut in cuts[:1])
        return found

    return of


def ids(cuts: list) -> list[str]:
    return [cut.id for cut in cuts]


def labels(cuts: list) -> list:
    return [cut.custom["label"] for cut in cuts]


def test_voxceleb1(read, tmp_path):
    parts = read("voxceleb1-sid")
    assert ids(parts["train"]) == ["id10001-a-00001", "id10270-a-00001"]
    assert labels(parts["valid"]) == ["id10001"] and labels(parts["test"]) == ["id10002"]
    parts = read("voxceleb1-asv")
    assert ids(parts["train"]) == ["id10001-a-00001", "id10002-a-00001"] and len(parts["valid"]) == 1
    assert ids(parts["test"]) == ["id10270-a-00001", "id10271-x-00002"]  # of the trials
    assert (tmp_path / "out" / "trials.txt").read_text() == "0 id10270-a-00001 id10271-x-00002\n"


def test_speech_commands(read):
    parts = read("speech-commands-v1")
    everything = [*parts["train"], *parts["valid"]]
    words = [cut for cut in everything if cut.custom["label"] != "_silence_"]
    assert set(labels(words)) == {"yes", "_unknown_"} and len(words) < 40  # a tenth belongs to no part
    silence = [cut for cut in everything if cut.custom["label"] == "_silence_"]
    assert ids(silence).count("tap-009") == 1 and len(silence) == 10
    assert "tap-009" in ids(parts["valid"]) and silence[3].duration == 1.0
    assert labels(parts["test"]) == ["_unknown_"]


def test_fluent(read):
    (cut,) = read("fluent")["valid"]
    assert cut.custom["label"] == ["action=activate", "object=none", "location=none"]
    assert cut.supervisions[0].text == "Lights, on" and cut.supervisions[0].speaker == "s1"


def test_iemocap(read):
    parts = read("iemocap", fold=3)
    assert all(cut.id.startswith("Ses03") for cut in parts["test"]) and len(parts["test"]) == 12
    assert set(labels(parts["test"])) == {"hap", "neu", "sad", "ang"}  # frustrated is none of them
    assert len(parts["train"]) + len(parts["valid"]) == 48 and 3 <= len(parts["valid"]) <= 18
    assert not set(ids(parts["train"])) & set(ids(parts["valid"]))
    with pytest.raises(ValueError, match="fold is 6: IEMOCAP has the sessions 1 to 5"):
        read("iemocap", fold=6)


def test_librimix(read, tmp_path):
    (cut,) = read("librimix-ss")["train"]
    assert [Path(one).parts[-3:] for one in cut.custom["sources"]] == [
        ("train-100", "s1", "1_2.wav"),
        ("train-100", "s2", "1_2.wav"),
    ]
    (cut,) = read("librimix-se")["test"]
    assert "mix_single" in cut.recording.sources[0].source and len(cut.custom["sources"]) == 1
    (tmp_path / "corpus/wav16k/min/dev/s1/1_2.wav").unlink()
    with pytest.raises(ValueError, match=r"s1/1_2\.wav is not there, the source of"):
        write_manifests("librimix-se", tmp_path / "corpus", tmp_path / "out")


def test_librimix_diarization(read):
    (cut,) = read("librimix-sd")["valid"]
    assert [(one.speaker, one.start, one.end) for one in cut.supervisions] == [
        ("a", 0.0, 1.2),
        ("b", 1.0, 2.0),
    ]


def test_voicebank_demand(read):
    parts = read("voicebank-demand")
    assert ids(parts["train"]) == ["p227_1"] and ids(parts["valid"]) == ["p226_1"]
    assert parts["test"][0].custom["sources"][0].endswith("clean_testset_wav/p232_1.wav")


def test_snips(read):
    (cut,) = read("snips")["test"]
    assert cut.custom["slots"] == "PLAY B-artist BEYONCE E-artist NOW"
    assert cut.supervisions[0].text == "PLAY BEYONCE NOW" and cut.supervisions[0].speaker == "Emma"
    words, tags = ["A", "B", "C", "D", "E"], ["B-x", "I-x", "B-x", "O", "I-y"]
    assert with_slots(words, tags) == "B-x A B E-x B-x C E-x D B-y E E-y"


def test_quesst14(read, tmp_path):
    parts = read("quesst14")
    assert [ids(parts[part]) for part in ("train", "valid", "test")] == [
        ["utterances_1"],
        ["dev_1"],
        ["eval_1"],
    ]
    lines = (tmp_path / "out" / "relevance.tsv").read_text().splitlines()
    assert lines == ["query\tdocument", "dev_1\tutterances_1", "eval_1\tutterances_1"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_empty_folder_is_refused_in_one_line(tmp_path, name):
    with pytest.raises(ValueError) as error:
        list(CORPORA[name](tmp_path, Read()))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_names_and_missing_parts(tmp_path, capsys):
    with pytest.raises(ValueError, match="no benchmark corpus is called 'timit': there are voxceleb1-sid"):
        write_manifests("timit", tmp_path, tmp_path)
    with pytest.raises(SystemExit):
        prepare_benchmark.main(["--corpus=x", f"--folder={tmp_path}", f"--output_dir={tmp_path}"])
    assert "corpus is 'x': use voxceleb1-sid" in capsys.readouterr().err
    kaldi(tmp_path)
    (tmp_path / "dev" / "wav.scp").write_text("")
    with pytest.raises(ValueError, match="has no valid part: is the corpus complete"):
        write_manifests("librimix-sd", tmp_path, tmp_path / "out")
