"""Transcripts for other programs, read back by small readers of their forms; where transcribe finds audio."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from spear_lib.asr.transcript_files import FORMATS, captions
from spear_lib.asr.transcription import Transcript
from spear_lib.asr.words import Unit, Word
from spear_lib.bin import transcribe
from spear_lib.data.audio_files import find_audio, result_names


def word(text, start, end, confidence=0.9):
    return Word(text, (Unit(text, start, end, confidence),))


def talk(words, seconds=4000.0):
    return Transcript(Path("my talk.wav"), seconds, 16000, 1, 1, words)


TALK = talk([word("A<B&C", 0.0, 0.1), word("D", 0.5, 0.62), word("E", 3661.25, 3661.5)])


def test_subtitles_by_hand():
    assert FORMATS["srt"](TALK, {}) == (
        "1\n00:00:00,000 --> 00:00:01,620\nA<B&C D\n\n2\n01:01:01,250 --> 01:01:02,500\nE\n"
    )
    assert FORMATS["vtt"](TALK, {}) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.620\nA&lt;B&amp;C D\n\n01:01:01.250 --> 01:01:02.500\nE\n"
    )
    assert FORMATS["ctm"](TALK, {}) == (
        "my_talk 1 0.000 0.100 A<B&C 0.900\nmy_talk 1 0.500 0.120 D 0.900\nmy_talk 1 3661.250 0.250 E 0.900\n"
    )
    assert FORMATS["txt"](TALK, {}) == "A<B&C D E\n"


def test_captions_are_short_and_never_overlap():
    words = [word("W" * (1 + n % 11), 0.3 * n, 0.3 * n + 0.04) for n in range(300)]
    found = captions(talk(words, seconds=89.8))
    assert " ".join(" ".join(lines) for _, _, lines in found).split() == [each.text for each in words]
    for (start, end, lines), (following, _, _) in zip(found, [*found[1:], (90.0, 0, 0)]):
        assert start < end <= following and end - start <= 7.0
        assert len(lines) <= 2 and all(len(line) <= 42 for line in lines)


def test_nothing_said_is_an_empty_file():
    contents = {name: FORMATS[name](talk([]), {}) for name in ("txt", "srt", "vtt", "ctm")}
    assert contents == {"txt": "\n", "srt": "", "vtt": "WEBVTT\n", "ctm": ""}


def test_a_word_longer_than_a_line_and_time_that_rounds_up():
    found = FORMATS["srt"](talk([word("W" * 60, 59.9996, 59.9999)]), {})
    assert "00:01:00,000 --> 00:01:01,000" in found and "W" * 60 in found


def test_formats_of_the_command(trained_toy, capsys, tmp_path):
    arguments = ["--experiment_dir", str(trained_toy["experiment"]), "--average", "0"]
    every = ["--format", "txt,json,srt,vtt,ctm", "--output_dir", str(tmp_path)]
    transcribe.main([str(trained_toy["cuts"]), *arguments, *every])
    printed = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert sorted(printed) == [f"dev-{number:03d}" for number in range(12)]  # ids of the manifest's cuts
    for name, text in printed.items():
        assert (tmp_path / f"{name}.txt").read_text() == f"{text}\n"
        ctm = [line.split() for line in (tmp_path / f"{name}.ctm").read_text().splitlines()]
        assert " ".join(fields[4] for fields in ctm) == text and all(len(fields) == 6 for fields in ctm)
        assert [float(f[2]) for f in ctm] == sorted(float(f[2]) for f in ctm) and ctm[0][:2] == [name, "1"]
        srt = (tmp_path / f"{name}.srt").read_text()
        time = r"\d\d:\d\d:\d\d,\d\d\d"
        assert re.fullmatch(rf"(\d+\n{time} --> {time}\n(.+\n){{1,2}}\n?)+", srt)
    # Patterns and folders are the same files; one format alone goes to standard output.
    pattern = str(trained_toy["folder"] / "dev-00*.wav")
    transcribe.main([pattern, *arguments])
    again = {
        Path(line.split("\t")[0]).stem: line.split("\t")[1] for line in capsys.readouterr().out.splitlines()
    }
    assert again == {name: text for name, text in printed.items() if name < "dev-010"}
    transcribe.main([str(trained_toy["folder"] / "dev-003.wav"), *arguments, "--format", "srt"])
    assert capsys.readouterr().out == (tmp_path / "dev-003.srt").read_text()
    with pytest.raises(ValueError, match="10 recordings as vtt on standard output: give output_dir"):
        transcribe.main([pattern, *arguments, "--format", "vtt"])


def test_wrong_formats_and_patterns(trained_toy, tmp_path):
    command = [sys.executable, "-m", "spear_lib.bin.transcribe", "x.wav", "--experiment_dir", "x"]
    done = subprocess.run([*command, "--format", "srt,doc"], capture_output=True, text=True)
    assert done.returncode != 0 and "txt, json, srt, vtt, ctm" in done.stderr and "Trace" not in done.stderr
    with pytest.raises(ValueError, match=r"no file fits the pattern .*\*\.wav"):
        find_audio([tmp_path / "*.wav"])
    (tmp_path / "a[1].wav").touch()  # a file that is called like a pattern
    assert find_audio([tmp_path / "a[1].wav"]) == [tmp_path / "a[1].wav"]
    cuts = find_audio([trained_toy["cuts"], trained_toy["cuts"]])
    assert len(cuts) == 12 and result_names(cuts, [str(trained_toy["cuts"])])[0] == "dev-000"
