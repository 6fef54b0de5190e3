"""Readers of other speech corpora on made-up folders in their published layouts, and stage 1 with them."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment

from spear_lib.corpora.speech_corpora import SPEECH_CORPORA, limit_length, read_speech_corpus
from spear_lib.data.audio import load_audio
from spear_lib.data.manifests import Manifest
from spear_lib.data.problems import Problems

REPOSITORY = Path(__file__).resolve().parents[2]
RATE = 16000


def sound(path: Path, seconds: float, rate: int = RATE) -> Path:
    """A ramp: the value of a sample tells where it lies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0.0, 0.5, round(seconds * rate), dtype=np.float32)
    soundfile.write(path, ramp, rate)
    return path


def make_libriheavy(folder: Path) -> None:
    """As published: cuts of long recordings, whose audio is said to lie in download/librilight."""
    sound(folder / "librilight" / "small" / "100" / "sea_mp3" / "01.flac", 12)
    manifest = folder / "upper_no_punc" / "lhotse" / "libriheavy_cuts_small.jsonl.gz"
    manifest.parent.mkdir(parents=True)
    name = "small/100/sea_mp3/01"
    with gzip.open(manifest, "wt") as file:
        for number, (start, recording) in enumerate(
            [(1.0, name), (6.5, name), (0.0, "small/100/sea_mp3/02")]
        ):
            source = f"download/librilight/{recording}.flac"
            texts = ["Hello.", "HELLO"]
            supervision = {"id": f"{name}_{number}", "recording_id": recording, "start": 0, "duration": 5.0}
            supervision |= {
                "channel": 0,
                "speaker": "100",
                "custom": {"texts": texts, "pre_texts": ["x" * 999]},
            }
            cut = {
                "id": f"{name}_{number}",
                "start": start,
                "duration": 5.0,
                "channel": 0,
                "supervisions": [supervision],
                "recording": {
                    "id": recording,
                    "sources": [{"type": "file", "channels": [0], "source": source}],
                    "sampling_rate": RATE,
                    "num_samples": 12 * RATE,
                    "duration": 12.0,
                    "channel_ids": [0],
                },
                "custom": {"text_path": "download/librilight_text/x.txt"},
                "type": "MonoCut",
            }
            file.write(json.dumps(cut) + "\n")


def make_gigaspeech(folder: Path, cut_off: int | None = None) -> None:
    """GigaSpeech.json with two recordings, one of them not in XL."""
    audios = []
    for name, subsets in (("POD1", ["{XL}", "{L}"]), ("YOU1", ["{TEST}"])):
        sound(folder / "audio" / "podcast" / f"{name}.opus.wav", 10)
        texts = ["HELLO <COMMA> WORLD", "<MUSIC>", "AND MORE"]
        segments = [
            {
                "sid": f"{name}_S{number}",
                "begin_time": 3.0 * number,
                "end_time": 3.0 * number + 2.5,
                "speaker": "N/A",
                "text_tn": text,
                "subsets": subsets,
            }
            for number, text in enumerate(texts)
        ]
        path = f"audio/podcast/{name}.opus.wav"
        entry = {"aid": name, "path": path, "sample_rate": RATE, "channels": 1, "duration": 10.0}
        audios.append({**entry, "subsets": subsets, "segments": segments})
    text = json.dumps({"dataset": "GigaSpeech", "language": "EN", "audios": audios, "version": "1"}, indent=1)
    (folder / "GigaSpeech.json").write_text(text[:cut_off])


def make_voxpopuli(folder: Path) -> None:
    """Sessions of several minutes by year; the table of the transcribed part."""
    sound(folder / "raw_audios" / "en" / "2011" / "20110601-PLENARY-3_en.ogg", 75)
    sound(folder / "raw_audios" / "en" / "2012" / "20120601-PLENARY-1_en.ogg", 20)
    columns = "session_id|id_|original_text|normed_text|speaker_id|split|gender|start_time|end_time"
    rows = [
        columns,
        "20110601-PLENARY-3|a|Hello.|hello|17|train|male|2.0|9.5",
        "20110601-PLENARY-3|b|More.|more|17|train|male|12.0|20.0",
        "20120601-PLENARY-1|c|Test.|test|18|test|female|1.0|5.0",
    ]
    for split in ("dev",):  # lhotse's recipe wants every split
        rows.append(f"20120601-PLENARY-1|d|Dev.|dev|18|{split}|female|6.0|8.0")
    with gzip.open(folder / "asr_en.tsv.gz", "wt") as file:
        file.write("\n".join(rows) + "\n")


def make_yodas(folder: Path) -> None:
    """A manifest of NeMo's kind: segments of a long file by offset, and a file of its own."""
    sound(folder / "en" / "audio" / "long.wav", 50)
    sound(folder / "en" / "audio" / "short.wav", 4, 22050)
    entries = [
        {"audio_filepath": "audio/long.wav", "offset": 2.0, "duration": 8.0, "text": "one"},
        {"audio_filepath": "audio/long.wav", "offset": 10.0, "duration": 38.0, "text": "two"},
        {"audio_filepath": "audio/short.wav", "duration": 4.0, "text": "three", "lang": "en"},
    ]
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / "en" / "en_asr.jsonl").write_text(lines)


MAKERS = {
    "libriheavy": make_libriheavy,
    "gigaspeech": make_gigaspeech,
    "voxpopuli": make_voxpopuli,
    "voxpopuli_asr": make_voxpopuli,
    "yodas_granary": make_yodas,
}
# Of cuts of at most 30 s: (id, start in the recording, duration).
EXPECTED = {
    "libriheavy": [("small/100/sea_mp3/01_0", 1.0, 5.0), ("small/100/sea_mp3/01_1", 6.5, 5.0)],
    "gigaspeech": [("POD1_S0", 0.0, 2.5), ("POD1_S2", 6.0, 2.5)],
    "voxpopuli": [
        ("20110601-PLENARY-3-0", 0.0, 25.0),
        ("20110601-PLENARY-3-25000", 25.0, 25.0),
        ("20110601-PLENARY-3-50000", 50.0, 25.0),
        ("20120601-PLENARY-1", 0.0, 20.0),
    ],
    "voxpopuli_asr": [("20110601-PLENARY-3-1", 2.0, 7.5), ("20110601-PLENARY-3-2", 12.0, 8.0)],
    "yodas_granary": [
        ("audio/long-2000", 2.0, 8.0),
        ("audio/long-10000-0", 10.0, 19.0),
        ("audio/long-10000-19000", 29.0, 19.0),
        ("audio/short-0", 0.0, 4.0),
    ],
}


@pytest.mark.parametrize("name", SPEECH_CORPORA)
def test_cuts_of_a_corpus_are_where_its_tables_say(tmp_path, name):
    MAKERS[name](tmp_path)
    problems = Problems(1.0, "cuts")
    cuts = list(limit_length(read_speech_corpus(name, tmp_path, problems), 30.0))
    found = [(cut.id, round(cut.start, 3), round(cut.duration, 3)) for cut in cuts]
    assert found == EXPECTED[name]
    assert problems.num_bad == (name == "libriheavy")  # its third cut lies in a file that is not there
    for cut, (_, start, duration) in zip(cuts, EXPECTED[name]):
        samples = load_audio(cut)
        assert len(samples) == round(duration * RATE)
        length = cut.recording.duration
        middle = 0.5 * (start + duration / 2) / length
        assert samples[len(samples) // 2] == pytest.approx(middle, abs=0.01)


def test_texts_and_notes(tmp_path):
    for name in ("libriheavy", "gigaspeech"):
        MAKERS[name](tmp_path / name)
    problems = Problems(1.0, "cuts")
    heavy = next(read_speech_corpus("libriheavy", tmp_path / "libriheavy", problems))
    # The transcript stays, the page of the book around it does not.
    assert heavy.supervisions[0].text == "Hello." and heavy.supervisions[0].custom is None
    giga = list(read_speech_corpus("gigaspeech", tmp_path / "gigaspeech", problems))
    assert giga[1].supervisions[0].text == "AND MORE" and giga[1].supervisions[0].start == 0.0
    assert problems.notes == {"without speech": 1}


@pytest.mark.parametrize("name", SPEECH_CORPORA)
def test_another_layout_is_named(tmp_path, name):
    with pytest.raises(ValueError, match="expected"):
        list(read_speech_corpus(name, tmp_path, Problems(1.0, "cuts")))
    with pytest.raises(ValueError, match=f"is no folder: give the one that holds {name}"):
        read_speech_corpus(name, tmp_path / "nothing", Problems(1.0, "cuts"))


def test_errors_of_tables(tmp_path):
    problems = Problems(1.0, "cuts")
    with pytest.raises(ValueError, match="no corpus is called 'wenetspeech': there are libriheavy"):
        read_speech_corpus("wenetspeech", tmp_path, problems)
    (tmp_path / "giga").mkdir()
    make_gigaspeech(tmp_path / "giga", cut_off=900)
    with pytest.raises(ValueError, match=r"GigaSpeech.json ends within its list 'audios': fetch it again"):
        list(read_speech_corpus("gigaspeech", tmp_path / "giga", problems))
    (tmp_path / "yodas").mkdir()
    (tmp_path / "yodas" / "a.jsonl").write_text('{"audio_filepath": "x.wav", "duration": 3}\n{"path": "y"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl, line 2 is no line of a NeMo manifest"):
        list(read_speech_corpus("yodas_granary", tmp_path / "yodas", problems))
    assert problems.names("missing audio") == ["x.wav"]
    make_voxpopuli(tmp_path / "vox")
    (tmp_path / "vox" / "asr_en.tsv.gz").unlink()
    with pytest.raises(ValueError, match=r"asr_en.tsv.gz is missing: put VoxPopuli's annotations"):
        list(read_speech_corpus("voxpopuli_asr", tmp_path / "vox", problems))


def test_segments_that_their_file_does_not_hold_are_counted(tmp_path):
    """A file that was cut short would otherwise be trained on with the whole text."""
    make_yodas(tmp_path)
    sound(tmp_path / "en" / "audio" / "long.wav", 20)  # of the 50 s that the table knows
    problems = Problems(1.0, "cuts")
    cuts = list(read_speech_corpus("yodas_granary", tmp_path, problems))
    assert [cut.id for cut in cuts] == ["audio/long-2000", "audio/short-0"]
    assert len(problems.names("outside its recording")) == 1


def test_unreadable_files_are_counted(tmp_path):
    make_voxpopuli(tmp_path)
    (tmp_path / "raw_audios" / "en" / "2012" / "broken_en.ogg").write_bytes(b"no audio")
    problems = Problems(1.0, "cuts")
    assert len(list(read_speech_corpus("voxpopuli", tmp_path, problems))) == 2
    assert len(problems.names("unreadable audio")) == 1


def test_long_cuts_are_divided_between_supervisions(tmp_path):
    recording = Recording.from_file(sound(tmp_path / "a.wav", 60), recording_id="a")
    spans = [(1.0, 9.0), (10.5, 9.0), (21.0, 8.0), (40.0, 15.0)]
    segments = [SupervisionSegment(str(n), "a", start, length) for n, (start, length) in enumerate(spans)]
    cut = MonoCut("a", 0.0, 60.0, 0, segments, recording=recording)
    parts = list(limit_length([cut], 20.0))
    # The first two fit together (1 to 19.5), the third and the fourth do not.
    assert [(part.start, part.duration) for part in parts] == [(1.0, 18.5), (21.0, 8.0), (40.0, 15.0)]
    assert [[each.id for each in part.supervisions] for part in parts] == [["0", "1"], ["2"], ["3"]]
    # A supervision that is too long itself is cut into windows.
    parts = list(limit_length([cut], 8.0))
    assert max(part.duration for part in parts) <= 8.0
    assert sum(part.duration for part in parts) == pytest.approx(9 + 9 + 8 + 15)
    assert list(limit_length([cut], 60.0)) == [cut]


def stage_1(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    corpus = tmp_path / "corpus" / "LibriSpeech"
    for part in ("train-clean-100", "dev-clean", "test-clean"):
        folder = corpus / part / "1" / "2"
        if not folder.exists():
            sound(folder / f"1-2-{part}.flac", 2.0)
            sound(folder / "1-2-0000.flac", 2.0)
            name = {"train-clean-100": "0001", "dev-clean": "0002", "test-clean": "0003"}[part]
            (folder / f"1-2-{part}.flac").rename(folder / f"1-2-{name}.flac")
            (folder / "1-2-0000.flac").unlink()
            (folder / "1-2.trans.txt").write_text(f"1-2-{name} HELLO\n")
    script = REPOSITORY / "egs" / "librispeech" / "local" / "prepare_manifests.py"
    command = [sys.executable, str(script), "--corpus-dir", str(tmp_path / "corpus")]
    command += ["--output", str(tmp_path / "manifests"), *arguments]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_stage_1_adds_other_corpora_to_train(tmp_path):
    for name in ("libriheavy", "gigaspeech", "yodas_granary"):
        MAKERS[name](tmp_path / name)
    others = [f"--other={name}={tmp_path / name}" for name in ("gigaspeech", "yodas_granary")]
    done = stage_1(tmp_path, *others, "--check-other-audio", "true")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "manifests"
    train = Manifest(folder / "librispeech_cuts_train.jsonl.gz")
    ids = ["1-2-0001", "POD1_S0", "POD1_S2", "audio/long-2000", "audio/long-10000-0"]
    assert list(train.ids) == [*ids, "audio/long-10000-19000", "audio/short-0"]
    assert list(Manifest(folder / "librispeech_cuts_labelled.jsonl.gz").ids) == ["1-2-0001"]
    numbers = json.loads((folder / "librispeech_statistics.json").read_text())["train"]
    assert numbers["cuts"] == 1 and numbers["others"]["yodas_granary"]["cuts"] == 4
    assert numbers["others"]["gigaspeech"]["hours"] == pytest.approx(5 / 3600, abs=1e-4)
    # A third of Libriheavy's cuts has no audio: more than 1 %.
    done = stage_1(tmp_path, f"--other=libriheavy={tmp_path / 'libriheavy'}")
    assert done.returncode == 1 and "missing audio" in done.stderr
    done = stage_1(tmp_path, "--other", "libriheavy")
    assert done.returncode == 1 and "--other libriheavy: give NAME=FOLDER" in done.stderr
