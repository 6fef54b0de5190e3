"""Readers of published corpora on folders with one bad item, and text as Windows and macOS leave it."""

import gzip
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_speech_corpora import make_libriheavy, sound

from spear_lib.asr.arpa import load_ngram_model
from spear_lib.bin import train_lm
from spear_lib.corpora.clip_tables import read_class_list
from spear_lib.corpora.cut_subsets import select_ids
from spear_lib.corpora.speech_corpora import read_speech_corpus
from spear_lib.data.manifests import Manifest
from spear_lib.data.problems import Problems

REPOSITORY = Path(__file__).resolve().parents[2]
stage_1 = runpy.run_path(str(REPOSITORY / "egs/librispeech/local/prepare_manifests.py"))["main"]


def read(name: str, folder: Path) -> tuple[list[str], Problems]:
    problems = Problems(1.0, "cuts")
    return [cut.id for cut in read_speech_corpus(name, folder, problems)], problems


# ---- the readers of other corpora


def test_a_malformed_cut_of_libriheavy_is_counted(tmp_path):
    make_libriheavy(tmp_path)
    (manifest,) = tmp_path.rglob("*.jsonl.gz")
    good, _ = read("libriheavy", tmp_path)
    lines = gzip.decompress(manifest.read_bytes()).decode().splitlines()
    elsewhere = json.loads(lines[0])
    elsewhere["recording"]["sources"][0]["source"] = "/home/me/01.flac"
    without = {name: value for name, value in json.loads(lines[0]).items() if name != "recording"}
    content = [json.dumps(elsewhere), json.dumps(without), *lines]
    manifest.write_bytes(gzip.compress("\n".join(content).encode()))
    kept, problems = read("libriheavy", tmp_path)
    assert kept == good
    assert len(problems.names("malformed entry")) == 2 and "line 1 (" in problems.describe()
    manifest.write_bytes(gzip.compress(b"{no json\n"))
    with pytest.raises(ValueError, match=r"libriheavy_cuts_small\.jsonl\.gz, line 1, is not JSON"):
        read("libriheavy", tmp_path)


def test_a_malformed_entry_of_gigaspeech_is_counted(tmp_path):
    sound(tmp_path / "audio" / "a.opus.wav", 4)
    entry = {
        "aid": "A",
        "path": "audio/a.opus.wav",
        "sample_rate": 16000,
        "channels": 1,
        "duration": 4.0,
        "subsets": ["{XL}"],
        "segments": [
            {"sid": "A1", "begin_time": 0.0, "end_time": 2.0, "speaker": "s", "text_tn": "YES", "subsets": []}
        ],
    }
    short = {name: value for name, value in entry.items() if name != "duration"}
    audios = [{**short, "aid": "B"}, {"aid": "C"}, 7, entry]
    text = "\ufeff" + json.dumps({"audios": audios})
    (tmp_path / "GigaSpeech.json").write_text(text, encoding="utf-8")
    kept, problems = read("gigaspeech", tmp_path)
    assert kept == ["A1"] and problems.num_bad == 3
    assert "B (no field 'duration')" in problems.describe()


def make_voxpopuli(folder: Path) -> Path:
    place = folder / "raw_audios" / "en" / "2020"
    for name in ("a_en", "b_en"):
        place.mkdir(parents=True, exist_ok=True)
        soundfile.write(place / f"{name}.ogg", 0.1 * np.random.default_rng(1).standard_normal(64000), 16000)
    rows = ["session_id|id_|start_time|end_time|speaker_id|gender|original_text|normed_text|split"]
    parts = [("a", "train"), ("a", "dev"), ("b", "train"), ("b", "train"), ("b", "test")]
    for number, (session, part) in enumerate(parts):
        begin = number / 2  # some reach behind the end of the recording, 4 s
        rows.append(f"{session}|{number}|{begin}|{begin + 2.75}|s|f|Text {number}.|text {number}|{part}")
    table = folder / "asr_en.tsv.gz"
    table.write_bytes(gzip.compress("\n".join(rows).encode()))
    return place


def test_the_transcribed_part_of_voxpopuli_is_as_lhotse_reads_it(tmp_path):
    from lhotse import CutSet
    from lhotse.recipes.voxpopuli import prepare_voxpopuli

    make_voxpopuli(tmp_path)
    problems = Problems(1.0, "cuts")
    ours = list(read_speech_corpus("voxpopuli_asr", tmp_path, problems))
    train = prepare_voxpopuli(tmp_path, tmp_path, task="asr", lang="en")["train"]
    theirs = list(CutSet.from_manifests(**train).trim_to_supervisions(keep_overlapping=False))
    by_id = {cut.supervisions[0].id: cut for cut in theirs}
    assert [cut.id for cut in ours] == ["a-1", "b-1", "b-2"] and by_id.keys() == {cut.id for cut in ours}
    for cut in ours:
        other = by_id[cut.id]
        assert (cut.start, cut.duration, cut.channel) == (other.start, other.duration, other.channel)
        assert cut.supervisions[0].text == other.supervisions[0].text
        assert cut.supervisions[0].start == 0.0 and cut.recording.id == other.recording.id
    assert problems.num_bad == 0


def test_a_broken_recording_of_voxpopuli_is_counted(tmp_path):
    place = make_voxpopuli(tmp_path)
    (place / "b_en.ogg").write_bytes(b"not audio")
    (place / "._a_en.ogg").write_bytes(b"\0\5\26\7")
    kept, problems = read("voxpopuli_asr", tmp_path)
    assert kept == ["a-1"] and problems.num_bad == 1 and "b_en.ogg" in problems.describe()
    assert read("voxpopuli", tmp_path)[0] == ["a"]
    table = tmp_path / "asr_en.tsv.gz"
    text = gzip.decompress(table.read_bytes()).decode()
    table.write_bytes(gzip.compress(text.replace("|0.0|", "|zero|").encode()))
    with pytest.raises(ValueError, match=r"asr_en\.tsv\.gz, line 2 is no row of the table \(could not"):
        read("voxpopuli_asr", tmp_path)
    table.write_bytes(gzip.compress(text.replace("normed_text", "text").encode()))
    with pytest.raises(ValueError, match="has no column normed_text in its first line"):
        read("voxpopuli_asr", tmp_path)


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"audio_filepath": 7, "duration": 1}', "must be texts"),
        ('{"audio_filepath": "a.wav", "duration": 1, "text": NaN}', "must be texts"),
        ('{"audio_filepath": "a.wav"}', "no field 'duration'"),
        ('{"audio_filepath": "a.wav", "duration": "x"}', "could not convert"),
        ("[1]", "holds no JSON object"),
        ("{", "is not JSON"),
    ],
)
def test_lines_of_nemo_manifests_are_named(tmp_path, line, words):
    sound(tmp_path / "a.wav", 2)
    good = '\ufeff{"audio_filepath": "a.wav", "duration": 1.0, "text": "A"}\r\n'
    (tmp_path / "m.jsonl").write_text(good, encoding="utf-8")
    assert read("yodas_granary", tmp_path)[0] == ["a-0"]
    (tmp_path / "m.jsonl").write_text(good + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"m\.jsonl, line 2.*{words}"):
        read("yodas_granary", tmp_path)


def test_a_segment_behind_its_recording_is_counted(tmp_path):
    sound(tmp_path / "a.wav", 2)
    lines = [{"audio_filepath": "a.wav", "duration": 1.0, "offset": offset} for offset in (0, 5, -1)]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    kept, problems = read("yodas_granary", tmp_path)
    assert kept == ["a-0"] and problems.names("outside its recording") == [
        f"{tmp_path / 'm.jsonl'}, line 2",
        f"{tmp_path / 'm.jsonl'}, line 3",
    ]


# ---- LibriSpeech's transcripts


@pytest.fixture
def librispeech(tmp_path):
    for part, speaker in (("train-clean-100", "100"), ("dev-clean", "200")):
        folder = tmp_path / "LibriSpeech" / part / speaker / "1"
        names = [f"{speaker}-1-{number:04d}" for number in range(3)]
        for name in names:
            sound(folder / f"{name}.flac", 0.3)
        (folder / f"{speaker}-1.trans.txt").write_text("".join(f"{name} ONE TWO\n" for name in names))
    return tmp_path / "LibriSpeech" / "train-clean-100" / "100" / "1" / "100-1.trans.txt"


def texts_of(transcript: Path) -> list[str]:
    folder = transcript.parents[4]
    stage_1(["--corpus-dir", str(folder), "--output", str(folder / "out"), "--num-jobs", "1"])
    cuts = Manifest(folder / "out" / "librispeech_cuts_train.jsonl.gz")
    return [cut.supervisions[0].text for cut in cuts]


@pytest.mark.parametrize("change", ["mark", "crlf", "companion", "tab"])
def test_transcripts_as_people_have_them(librispeech, change):
    content = librispeech.read_bytes()
    if change == "mark":
        librispeech.write_bytes(b"\xef\xbb\xbf" + content)
    elif change == "crlf":
        librispeech.write_bytes(content.replace(b"\n", b"\r\n"))
    elif change == "tab":
        librispeech.write_bytes(content.replace(b"0 ", b"0\t"))
    else:
        librispeech.with_name("._100-1.trans.txt").write_bytes(b"\0\5\26\7\xff")
        librispeech.with_name("._100-1-0000.flac").write_bytes(b"\0\5\26\7\xff")
    assert texts_of(librispeech) == ["ONE TWO"] * 3


@pytest.mark.parametrize("character", ["\u2028", "\u0085", "\x0c"])
def test_a_transcript_with_another_kind_of_line_break_is_whole(librispeech, character):
    text = librispeech.read_text().replace("ONE TWO", f"ONE{character}TWO", 1)
    librispeech.write_text(text, encoding="utf-8")
    assert [" ".join(text.split()) for text in texts_of(librispeech)] == ["ONE TWO"] * 3


def test_latin_1_is_named_with_file_and_line(librispeech):
    librispeech.write_bytes(librispeech.read_bytes().replace(b"ONE", b"CAF\xc9", 1))
    with pytest.raises(ValueError, match=r"100-1\.trans\.txt, line 1, is not UTF-8 \(byte 0xc9"):
        texts_of(librispeech)


# ---- lists, tables, language models

ARPA = "\\data\\\nngram 1=3\n\n\\1-grams:\n-1\t<s>\n-1\t</s>\n-1\tCAFÉ\n\n\\end\\\n"


def test_language_models_lists_and_tables_with_mark_and_crlf(tmp_path, librispeech):
    def leave(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
        return path

    assert "CAFÉ" in load_ngram_model(leave("lm.arpa", ARPA)).words
    assert read_class_list(leave("c.csv", 'index,mid,display_name\n0,/m/a,"A, b"\n')) == {"/m/a": "A, b"}
    texts_of(librispeech)
    manifest = Manifest(tmp_path / "out" / "librispeech_cuts_train.jsonl.gz")
    listed = leave("ids.txt", "100-1-0002 x\n\n100-1-0000\n")
    assert [cut.id for cut in select_ids(manifest, str(listed))] == ["100-1-0000", "100-1-0002"]
    text = str(leave("text.txt", "ONE TWO\nTWO THREE\n"))
    assert list(train_lm.sentences_of([], [text])) == [["ONE", "TWO"], ["TWO", "THREE"]]


def test_language_models_lists_and_tables_in_latin_1_are_named(tmp_path, librispeech):
    latin = tmp_path / "latin"
    latin.write_bytes(ARPA.encode("latin-1"))
    with pytest.raises(ValueError, match="latin, line 7, is not UTF-8"):
        load_ngram_model(latin)
    latin.write_bytes("index,mid,display_name\n0,/m/a,Café\n".encode("latin-1"))
    with pytest.raises(ValueError, match="latin, line 2, is not UTF-8"):
        read_class_list(latin)
    with pytest.raises(ValueError, match="latin, line 2, is not UTF-8"):
        list(train_lm.sentences_of([], [str(latin)]))
