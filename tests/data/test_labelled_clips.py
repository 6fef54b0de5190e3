"""Folders of labelled clips in the layouts of AudioSet, VGGSound, FSD50K, Music4All and MTG-Jamendo."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from clip_fixtures import HEADER, JAMENDO, write

from spear_lib.corpora.clip_tables import Clip, read_clips
from spear_lib.corpora.labelled_clips import (
    ClipChecks,
    ClipFiles,
    ClipProblems,
    clip_cuts,
    labelled_stretch,
    labels_of,
)
from spear_lib.data.audio import load_audio
from spear_lib.data.manifests import Manifest, save_cuts

SEGMENTS = (
    '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
    '-ZhevVpy1s0, 0.000, 10.000, "/m/012xff"\n'
    'aE2O5G5WE-_, 5.500, 12.250, "/m/09x0r"\n'
)
CLASSES = {"/m/09x0r": "Speech", "/t/dd00088": "Gush", "/m/012xff": "Toothbrush"}


def write_audio(path: Path, seconds: float = 1.0, rate: int = 16000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
    soundfile.write(path, 0.05 * noise, rate)
    return path


def cuts_of(corpus: str, folder: Path, **options) -> list:
    problems = options.pop("problems", None) or ClipProblems(0.0, 0.0)
    return list(clip_cuts(read_clips(corpus, folder), ClipFiles(folder), problems, **options))


def clip(name: str, *labels: str, seconds: float | None = None) -> Clip:
    return Clip(name, (name,), labels or ("/m/09x0r",), "train", seconds)


# ---- the layouts


def test_audioset(tmp_path):
    write(tmp_path / "balanced_train_segments.csv", HEADER + SEGMENTS)
    write(tmp_path / "eval_segments.csv", HEADER + '0123456789a, 30.000, 40.000, "/m/012xff"\n')
    # As four different downloaders name them.
    write_audio(tmp_path / "audio" / "train" / "--PJHxphWEs_30000.flac")
    write_audio(tmp_path / "audio" / "train" / "Y-ZhevVpy1s0.wav")
    write_audio(tmp_path / "audio" / "train" / "aE2O5G5WE-__5.500_12.250.wav", 6.75)
    write_audio(tmp_path / "eval" / "0123456789a_30.wav")
    problems = ClipProblems(0.0, 0.0)
    cuts = cuts_of("audioset", tmp_path, problems=problems)
    # eval comes first, so that a clip of both would be a duplicate in training.
    assert [cut.id for cut in cuts] == [
        "0123456789a_30000",
        "--PJHxphWEs_30000",
        "-ZhevVpy1s0_0",
        "aE2O5G5WE-__5500",
    ]
    assert labels_of(cuts[1]) == ["/m/09x0r", "/t/dd00088"]
    assert cuts[1].supervisions[0].audio_event == "/m/09x0r;/t/dd00088"
    assert cuts[1].domain == "audio"
    assert problems.other.notes == {"shorter than the table says": 3}
    assert [item.part for item in read_clips("audioset", tmp_path)] == ["eval"] + 3 * ["balanced_train"]


def test_vggsound(tmp_path):
    lines = [
        ["---g-f_I2yQ", "1", "people marching", "test"],
        ["FwVYUHKoLtQ", "34", "mouse clicking, tapping", "train"],
    ]
    with (tmp_path / "vggsound.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    write_audio(tmp_path / "audio" / "---g-f_I2yQ_000001.wav", rate=44100)
    write_audio(tmp_path / "audio" / "FwVYUHKoLtQ_000034.wav")
    cuts = cuts_of("vggsound", tmp_path)
    assert [cut.id for cut in cuts] == ["---g-f_I2yQ_000001", "FwVYUHKoLtQ_000034"]
    assert [labels_of(cut) for cut in cuts] == [["people marching"], ["mouse clicking, tapping"]]
    assert [item.part for item in read_clips("vggsound", tmp_path)] == ["test", "train"]


def test_freesound(tmp_path):
    truth = tmp_path / "FSD50K.ground_truth"
    write(
        truth / "dev.csv",
        "fname,labels,mids,split\n"
        '64760,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf",train\n'
        "16399,Wind,/m/03m9d0z,val\n",
    )
    write(truth / "eval.csv", 'fname,labels,mids\n37199,"Wind,Rain","/m/03m9d0z,/m/06mb1"\n')
    for folder, name in (("dev_audio", "64760"), ("dev_audio", "16399"), ("eval_audio", "37199")):
        write_audio(tmp_path / f"FSD50K.{folder}" / f"{name}.wav", rate=44100)
    cuts = cuts_of(
        "freesound", tmp_path, known_labels=["/m/02sgy", "/m/0342h", "/m/04rlf", "/m/03m9d0z", "/m/06mb1"]
    )
    assert [cut.id for cut in cuts] == ["64760", "16399", "37199"]
    assert labels_of(cuts[0]) == ["/m/02sgy", "/m/0342h", "/m/04rlf"]
    assert [item.part for item in read_clips("freesound", tmp_path)] == ["train", "val", "eval"]


def test_music4all(tmp_path):
    write(
        tmp_path / "id_genres.csv",
        "id\tgenres\n0009fFIM1eYThaPg\tpop\n0010xmHR6UICBOYT\tpost-punk,new wave\n",
    )
    write_audio(tmp_path / "audios" / "0009fFIM1eYThaPg.mp3", 2.0, rate=44100, channels=2)
    write_audio(tmp_path / "audios" / "0010xmHR6UICBOYT.mp3", 2.0, rate=44100)
    problems = ClipProblems(0.0, 0.0)
    cuts = cuts_of("music4all", tmp_path, problems=problems)
    assert [labels_of(cut) for cut in cuts] == [["pop"], ["post-punk", "new wave"]]
    assert problems.other.notes == {
        "shorter than the table says": 2,
        "resampled from 44100 Hz": 2,
        "mean of 2 channels": 1,
    }
    assert load_audio(cuts[0]).ndim == 1


def test_the_example_of_the_readme_runs(tmp_path):
    write(
        tmp_path / "id_genres.csv",
        "id\tgenres\n0009fFIM1eYThaPg\tpop\nmissing\trock\n0010xmHR6UICBOYT\tfolk\n",
    )
    for name in ("0009fFIM1eYThaPg", "0010xmHR6UICBOYT"):
        write_audio(tmp_path / "audios" / f"{name}.wav")
    readme = Path(__file__).resolve().parents[2] / "egs" / "audioset" / "README.md"
    code = re.search(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL).group(1)
    names: dict = {}
    exec(code.replace("max_missing_fraction=0.3", "max_missing_fraction=0.4"), names)
    names["prepare"]("music4all", str(tmp_path), str(tmp_path / "cuts.jsonl.gz"))
    assert [labels_of(cut) for cut in Manifest(tmp_path / "cuts.jsonl.gz")] == [["pop"], ["folk"]]


@pytest.mark.parametrize("ending", ["", ".low"])
def test_mtg_jamendo_tracks_become_windows(tmp_path, ending):
    write(tmp_path / "data" / "autotagging.tsv", JAMENDO)
    write_audio(tmp_path / "audio" / "14" / f"214{ending}.mp3", 4.6)
    write_audio(tmp_path / "audio" / "82" / f"382{ending}.mp3", 2.0)
    cuts = cuts_of("mtg_jamendo", tmp_path, checks=ClipChecks(window_seconds=2.0))
    # 4.6 s are two windows of 2 s; the rest is shorter than a second.
    assert [(cut.id, cut.start, cut.duration) for cut in cuts] == [
        ("track_0000214-000", 0.0, 2.0),
        ("track_0000214-001", 2.0, 2.0),
        ("track_0000382", 0.0, 2.0),
    ]
    assert labels_of(cuts[1]) == ["genre---punkrock"]
    assert labels_of(cuts[2]) == ["genre---classical", "instrument---voice"]
    assert {item.part for item in read_clips("mtg_jamendo", tmp_path)} == {"all"}


def test_mtg_jamendo_parts(tmp_path):
    for part, line in zip(("train", "validation", "test"), (1, 2, 1)):
        rows = JAMENDO.splitlines(keepends=True)
        text = rows[0] + rows[line].replace("track_", f"track_{part}_")
        write(tmp_path / "data" / "splits" / "split-0" / f"autotagging-{part}.tsv", text)
    assert [(item.id, item.part) for item in read_clips("mtg_jamendo", tmp_path)] == [
        ("track_train_0000214", "train"),
        ("track_validation_0000382", "validation"),
        ("track_test_0000214", "test"),
    ]


def test_a_long_rest_is_a_window_of_its_own(tmp_path):
    write_audio(tmp_path / "song.wav", 7.5)
    options = {"checks": ClipChecks(window_seconds=3.0)}
    cuts = list(clip_cuts([clip("song")], ClipFiles(tmp_path), ClipProblems(), **options))
    assert [(cut.start, cut.duration) for cut in cuts] == [(0.0, 3.0), (3.0, 3.0), (6.0, 1.5)]
    assert [len(load_audio(cut)) for cut in cuts] == [48000, 48000, 24000]


# ---- what is wrong with clips


AT_30 = Clip("yt_30000", ("yt_30000", "yt_30.000", "yt", "Yyt"), ("x",), "train", 10.0, 30.0, ("yt", "Yyt"))


@pytest.mark.parametrize(
    "name, seconds, stretch",
    [
        ("yt_30000", 10.0, (0.0, 10.0)),
        ("yt", 10.0, (0.0, 10.0)),
        ("yt", 7.0, (0.0, 7.0)),  # a short video: noted elsewhere
        ("yt", 10.9, (0.0, 10.9)),  # cut at key frames
        ("yt", 95.0, (30.0, 10.0)),  # the whole video
        ("Yyt", 40.0, (30.0, 10.0)),
        ("yt", 39.95, (30.0, 9.95)),
        ("yt", 25.0, None),  # neither the clip nor a video that reaches it
        ("yt_30000", 15.0, (0.0, 10.0)),  # its name says that it begins there
        ("yt_30.000", 65.0, (0.0, 10.0)),
    ],
)
def test_the_labelled_stretch_of_a_file(name, seconds, stretch):
    found = labelled_stretch(AT_30, Path(f"{name}.wav"), seconds)
    assert found == (pytest.approx(stretch) if stretch else None)


def test_a_longer_file_without_a_start_in_its_table_cannot_be_used():
    thirty = Clip("m", ("m",), ("pop",), "all", 30.0)
    assert labelled_stretch(thirty, Path("m.mp3"), 30.5) == (0.0, 30.5)
    assert labelled_stretch(thirty, Path("m.mp3"), 200.0) is None
    unknown = Clip("f", ("f",), ("x",), "dev")
    assert labelled_stretch(unknown, Path("f.wav"), 200.0) == (0.0, 200.0)


@pytest.mark.parametrize("corpus", ["audioset", "vggsound", "music4all", "mtg_jamendo"])
def test_files_longer_than_their_table_never_get_its_labels_as_a_whole(tmp_path, corpus):
    """The sound of each second is its number: what was cut can be read off."""
    name = {"audioset": "yt_id_000000", "vggsound": "yt_id_000000"}.get(corpus, "214")
    ramp = np.repeat(np.arange(95) / 100, 8000)  # 8 kHz
    soundfile.write(tmp_path / f"{name}.wav", ramp, 8000, subtype="FLOAT")
    if corpus == "audioset":
        write(tmp_path / "eval_segments.csv", HEADER + f'{name}, 30.000, 40.000, "/m/09x0r"\n')
    elif corpus == "vggsound":
        write(tmp_path / "vggsound.csv", f"{name},30,dog barking,train\n")
    elif corpus == "music4all":
        write(tmp_path / "id_genres.csv", f"id\tgenres\n{name}\tpop\n")
    else:
        header = JAMENDO.splitlines()[0]
        row = f"track_214\ta\tb\t14/{name}.mp3\t30.0\tgenre---pop"
        write(tmp_path / "autotagging.tsv", f"{header}\n{row}\n")
    problems = ClipProblems(0.0, 1.0)
    cuts = cuts_of(corpus, tmp_path, problems=problems)
    if corpus in ("audioset", "vggsound"):
        (cut,) = cuts
        assert (cut.start, cut.duration) == (30.0, 10.0)
        samples = load_audio(cut)
        assert samples[[800, -800]] == pytest.approx([0.30, 0.39], abs=0.01)
        assert "longer than the table says: the labelled stretch was cut out" in problems.other.notes
    else:
        assert cuts == [] and len(problems.other.names("longer than the table says")) == 1


def test_missing_files_are_counted_up_to_their_own_limit(tmp_path):
    write_audio(tmp_path / "a.wav")
    clips, files = [clip("a"), clip("b"), clip("c")], ClipFiles(tmp_path)
    problems = ClipProblems(max_missing_fraction=0.7, max_bad_fraction=0.0)
    assert [cut.id for cut in clip_cuts(clips, files, problems)] == ["a"]
    assert problems.missing.names("missing file") == ["b", "c"]
    with pytest.raises(
        ValueError, match=r"2 of 3 clips cannot be used, the limit is 30 %: 2 missing file \(b, c\)"
    ):
        list(clip_cuts(clips, files, ClipProblems()))


def test_missing_files_in_a_row_count_as_a_share_of_the_whole_table(tmp_path):
    for number in range(700, 1000):
        (tmp_path / f"{number}.wav").touch()
    write_audio(tmp_path / "1000.wav")
    clips, files = [clip(str(number)) for number in range(1001)], ClipFiles(tmp_path)
    limits = (0.7, 0.3)
    assert len(list(clip_cuts(clips, files, ClipProblems(*limits, total=1001)))) == 1
    with pytest.raises(ValueError, match="cannot be used, the limit is 70 %: 2.. missing file"):
        list(clip_cuts(clips, files, ClipProblems(*limits)))


def test_duplicates_are_counted_within_and_across_tables(tmp_path):
    write_audio(tmp_path / "a.wav")
    files, seen = ClipFiles(tmp_path), set()
    first = ClipProblems(0.0, 0.5)
    assert len(list(clip_cuts([clip("a"), clip("a")], files, first, seen=seen))) == 1
    assert first.other.names("duplicate id") == ["a"]
    second = ClipProblems(0.0, 1.0)
    assert list(clip_cuts([clip("a")], files, second, seen=seen)) == []
    assert second.other.names("duplicate id") == ["a"]
    with pytest.raises(ValueError, match=r"the limit is 1 %: 1 duplicate id \(a\)"):
        list(clip_cuts([clip("a"), clip("a")], files, ClipProblems()))


def test_unknown_labels_are_dropped_and_noted(tmp_path):
    for name in "ab":
        write_audio(tmp_path / f"{name}.wav")
    problems = ClipProblems(0.0, 0.5)
    clips = [clip("a", "/m/09x0r", "/m/new"), clip("b", "/m/new")]
    cuts = list(clip_cuts(clips, ClipFiles(tmp_path), problems, known_labels=CLASSES))
    assert [labels_of(cut) for cut in cuts] == [["/m/09x0r"]]
    assert problems.other.notes == {"unknown label /m/new": 2}
    assert problems.other.names("without a known label") == ["b"]
    with pytest.raises(ValueError, match=r"1 without a known label \(b\)"):
        list(clip_cuts(clips, ClipFiles(tmp_path), ClipProblems(), known_labels=CLASSES))


def test_clips_that_cannot_be_read_are_counted_by_kind(tmp_path):
    write_audio(tmp_path / "good.wav")
    write_audio(tmp_path / "blip.wav", 0.05)
    write(tmp_path / "empty.wav", "")
    write(tmp_path / "header.wav", "no audio at all, but long enough to look at")
    (tmp_path / "samples.flac").write_bytes(write_audio(tmp_path / "whole.flac", 4.0).read_bytes()[:20000])
    soundfile.write(tmp_path / "silent.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    names = ["good", "blip", "empty", "header", "samples", "silent", "nan"]
    problems = ClipProblems(0.0, 0.9)
    cuts = list(clip_cuts([clip(name) for name in names], ClipFiles(tmp_path), problems, num_jobs=2))
    assert [cut.id for cut in cuts] == ["good"]
    assert problems.to_dict()["other"]["examples"] == {
        "corrupt audio": ["header", "samples", "nan"],
        "too short": ["blip"],
        "zero-length audio": ["empty", "silent"],
    }
    # Headers alone do not show what is wrong with samples.
    headers = ClipChecks(decode=False)
    kept = clip_cuts(
        [clip(name) for name in names], ClipFiles(tmp_path), ClipProblems(0.0, 0.9), checks=headers
    )
    assert [cut.id for cut in kept] == ["good", "samples", "nan"]


def test_a_label_with_the_separator_is_refused(tmp_path):
    write_audio(tmp_path / "a.wav")
    with pytest.raises(
        ValueError, match="a label of clip a holds a ';', which separates labels in the field audio_event"
    ):
        list(clip_cuts([clip("a", "rain; wind")], ClipFiles(tmp_path), ClipProblems()))


def test_clips_stream_and_survive_a_manifest(tmp_path):
    for name in "abc":
        write_audio(tmp_path / f"{name}.wav")
    asked = []

    def clips():
        for number, name in enumerate(3000 * "abc"):
            asked.append(number)
            yield clip(f"{name}{number}" if number > 2 else name)

    stream = clip_cuts(clips(), ClipFiles(tmp_path), ClipProblems(1.0, 1.0))
    first = [next(stream) for _ in range(3)]
    assert len(asked) < 2000, "a table of millions of lines must not be read before the first cut"
    save_cuts(first, tmp_path / "cuts.jsonl.gz")
    manifest = Manifest(tmp_path / "cuts.jsonl.gz")
    assert [labels_of(cut) for cut in manifest] == 3 * [["/m/09x0r"]]
    assert {cut.custom["domain"] for cut in manifest} == {"audio"}


def test_files_are_found_through_links_and_without_doubt(tmp_path):
    write_audio(tmp_path / "disk" / "a.wav")
    write_audio(tmp_path / "corpus" / "b.wav")
    write_audio(tmp_path / "corpus" / "b.flac")
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "round").symlink_to(tmp_path / "corpus")
    files = ClipFiles(tmp_path / "corpus")
    assert len(files) == 2
    assert files.find(clip("a")).name == "a.wav"
    assert files.find(clip("b")).name == "b.flac"
    with pytest.raises(ValueError, match="holds no audio .*download the clips"):
        (tmp_path / "nothing").mkdir()
        ClipFiles(tmp_path / "nothing")


@pytest.mark.parametrize("options", [{"min_seconds": 0.0}, {"window_seconds": 0.05}])
def test_checks_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="expected 0 < min_seconds < window_seconds"):
        ClipChecks(**options)
