"""The synthetic AudioSet: sounds, labels, layout, bytes."""

import csv
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from spear_lib.corpora.clip_tables import read_class_list, read_clips  # noqa: E402
from spear_lib.runtime.keyed_random import generator  # noqa: E402
from tools import synthesize_corpus  # noqa: E402
from tools.synthesis import clips  # noqa: E402
from tools.synthesis.events import EVENTS  # noqa: E402

TINY = clips.ClipOptions(
    balanced_minutes=0.8,
    unbalanced_minutes=0.8,
    eval_minutes=0.4,
    num_classes=6,
    short_share=0.4,
    missing_share=0.2,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    output = tmp_path_factory.mktemp("events") / "corpus"
    clips.make_clip_corpus(output, TINY, num_processes=2)
    return output


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_classes_are_audiosets():
    classes = read_class_list(clips.CLASS_LIST)
    assert len(classes) == 527
    assert list(classes)[:2] == ["/m/09x0r", "/m/05zppz"] and classes["/m/07hvw1"] == "Field recording"
    assert len(EVENTS) >= 20 and set(EVENTS) <= set(classes.values())
    text = clips.CLASS_LIST.read_text(encoding="utf-8")
    assert text.startswith(
        'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n'
    )


@pytest.mark.parametrize("name", EVENTS)
def test_a_sound_is_there_and_differs_each_time(name):
    first, again, other = (EVENTS[name](16000, generator("sound", seed)) for seed in (0, 0, 1))
    assert first.shape == (16000,) and np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert clips.rms(first) > 1e-3
    # A short one works as well, and a long one is not louder somewhere by orders of magnitude.
    assert EVENTS[name](8000, generator("sound", 2)).shape == (8000,)


def test_same_options_same_bytes_whatever_the_number_of_processes(corpus, tmp_path):
    clips.make_clip_corpus(tmp_path / "again", TINY, num_processes=1)
    first = files_of(corpus)
    assert first == files_of(tmp_path / "again") and len(first) > 10


def test_another_seed_is_another_corpus(corpus):
    plans = [
        clips.plan_part("balanced_train", clips.ClipOptions(**{**TINY.__dict__, "seed": seed}))
        for seed in (0, 1)
    ]
    assert not {clip.ytid for clip in plans[0]} & {clip.ytid for clip in plans[1]}
    assert [clip.names for clip in plans[0]] != [clip.names for clip in plans[1]]


def test_layout_is_audiosets(corpus):
    folder = corpus / "AudioSet"
    facts = json.loads((corpus / "corpus.json").read_text())
    mids = {name: mid for mid, name in read_class_list(folder / "class_labels_indices.csv").items()}
    for part in ("balanced_train", "unbalanced_train", "eval"):
        lines = (folder / f"{part}_segments.csv").read_text().splitlines()
        assert [line[0] for line in lines[:3]] == ["#", "#", "#"]
        assert lines[2] == "# YTID, start_seconds, end_seconds, positive_labels"
        count, labels = len(lines) - 3, sum(line.count("/m/") for line in lines[3:])
        assert lines[1].startswith(f"# num_ytids={count}, num_segs={count}, num_unique_labels=")
        assert lines[1].endswith(f"num_positive_labels={labels}")
        for line in lines[3:]:
            assert re.fullmatch(r'[\w-]{11}, \d+\.000, \d+\.\d{3}, "/m/\w+(,/m/\w+)*"', line), line
        assert count == facts["clips"][part]
        found = list((folder / "audio" / part).glob("*.flac"))
        assert len(found) == count - facts["missing"][part]
    assert sum(facts["missing"].values()) > 0
    ontology = json.loads((folder / "ontology.json").read_text())
    assert [entry["name"] for entry in ontology] == facts["classes"]
    assert all(entry["id"] == mids[entry["name"]] for entry in ontology)
    assert len(facts["classes"]) == 6


def test_clips_hold_one_to_three_classes_and_some_are_short(corpus):
    found = list(read_clips("audioset", corpus / "AudioSet"))
    assert {len(clip.labels) for clip in found} == {1, 2, 3}
    promised = {clip.id: clip.seconds for clip in found}
    lengths = []
    for path in (corpus / "AudioSet" / "audio").rglob("*.flac"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        lengths.append(info.duration)
        assert info.duration <= promised[path.stem] + 1e-6
    assert max(lengths) == 10.0 and 2.0 <= min(lengths) < 9.0
    short = [
        clip for clip in clips.plan_part("eval", clips.ClipOptions(eval_minutes=30)) if clip.seconds < 10
    ]
    # Of some of them the table knows how short they are.
    assert {clip.table_seconds == clip.seconds for clip in short} == {True, False}


def test_strong_labels_lie_inside_their_clips_and_agree_with_the_weak_ones(corpus):
    folder = corpus / "AudioSet"
    weak = {clip.id: set(clip.labels) for clip in read_clips("audioset", folder)}
    seconds = {path.stem: soundfile.info(path).duration for path in folder.rglob("*.flac")}
    strong: dict[str, set[str]] = {}
    for name in ("train", "eval"):
        with (folder / f"audioset_{name}_strong.tsv").open(newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                start, end = float(row["start_time_seconds"]), float(row["end_time_seconds"])
                assert 0 <= start < end <= seconds.get(row["segment_id"], 10.0) + 0.002
                strong.setdefault(row["segment_id"], set()).add(row["label"])
    assert strong == weak


def test_an_event_is_where_the_strong_label_says():
    event = clips.Event("White noise", start=4.0, seconds=3.0, level=-20.0)
    samples = (
        clips.make_clip(clips.PlannedClip("abcdefghijk", 0, 10.0, 10.0, (event,), False), seed=0) / 32768
    )
    inside, before = samples[4 * 16000 + 1000 : 7 * 16000 - 1000], samples[: 4 * 16000]
    assert -21 < 20 * np.log10(clips.rms(inside)) < -19
    assert 20 * np.log10(clips.rms(before)) < -40


def test_balanced_parts_are_balanced_and_the_other_is_not():
    options = clips.ClipOptions(balanced_minutes=30, unbalanced_minutes=60)
    counts = {
        part: Counter(name for clip in clips.plan_part(part, options) for name in clip.names)
        for part in ("balanced_train", "unbalanced_train", "eval")
    }
    assert set(counts["balanced_train"]) == set(counts["eval"]) == set(EVENTS)
    # In turn, but for classes that would come twice in one clip.
    assert max(counts["balanced_train"].values()) <= 2 * min(counts["balanced_train"].values())
    assert max(counts["unbalanced_train"].values()) > 5 * min(counts["unbalanced_train"].values())
    assert min(counts["eval"].values()) >= 2


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="eval_minutes is 0.01, at least one clip"):
        clips.ClipOptions(eval_minutes=0.01)
    with pytest.raises(ValueError, match="num_classes is 2, it must be between 3 and"):
        clips.ClipOptions(num_classes=2)
    with pytest.raises(ValueError, match="missing_share is 1.0, it must be at least 0 and below 1"):
        clips.ClipOptions(missing_share=1.0)


def test_the_command_makes_finds_and_refuses(corpus, capsys):
    tool = [
        sys.executable,
        str(REPOSITORY / "tools" / "synthesize_corpus.py"),
        "events",
        "--output",
        str(corpus),
    ]
    values = synthesize_corpus.asdict(TINY)
    options = [item for name, value in values.items() for item in (f"--{name.replace('_', '-')}", str(value))]
    again = subprocess.run([*tool, *options], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and "nothing to do" in again.stderr
    other = subprocess.run([*tool, *options[:-1], "0.3"], capture_output=True, text=True, timeout=120)
    assert other.returncode == 1
    assert "was made with other options: missing_share is 0.2 there, 0.3 is wanted" in other.stderr
