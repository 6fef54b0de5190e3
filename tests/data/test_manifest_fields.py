"""Manifests made by hand or by pandas: a field of another type is named with file and line."""

import json

import pytest
from test_manifests import make_cuts

from spear_lib.data.manifest_fields import parse_cut
from spear_lib.data.manifests import Manifest, save_cuts

NAN = float("nan")


@pytest.fixture
def lines(tmp_path) -> list[dict]:
    save_cuts(make_cuts(3), tmp_path / "cuts.jsonl")
    return [json.loads(line) for line in (tmp_path / "cuts.jsonl").read_text().splitlines()]


def write(tmp_path, lines) -> str:
    path = tmp_path / "cuts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize(
    "where, value, words",
    [
        ("id", 7, r"the field id is 7, expected a text in quotes"),
        ("duration", "2.0", r'the field duration is "2.0", expected a number of seconds'),
        ("duration", NAN, r"the field duration is NaN"),
        ("duration", -1.0, r"the field duration is -1.0, .* 0 or more"),
        ("duration", True, r"the field duration is true"),
        ("start", None, r"the field start is null"),
        ("channel", 0.0, r"the field channel is 0.0, expected a whole number"),
        ("supervisions", "x", r'the field supervisions is "x", expected a list'),
        ("supervisions.0", [], r"supervisions\[0\] is \[\], expected an object"),
        ("supervisions.0.text", NAN, r"the field supervisions\[0\]\.text is NaN, expected a text .* or null"),
        ("supervisions.0.text", 12, r"the field supervisions\[0\]\.text is 12"),
        ("supervisions.0.speaker", 12, r"the field supervisions\[0\]\.speaker is 12"),
        ("supervisions.0.start", "0", r"the field supervisions\[0\]\.start"),
        ("recording", "a.wav", r'the field recording is "a.wav", expected an object'),
        ("recording.sampling_rate", 16000.0, r"the field recording\.sampling_rate is 16000.0"),
        ("recording.num_samples", "x", r"the field recording\.num_samples"),
        ("recording.sources.0", "a.wav", r'recording\.sources\[0\] is "a.wav"'),
        ("recording.sources.0.source", None, r"the field recording\.sources\[0\]\.source is null"),
        ("Unnamed: 0", 1, r"the field Unnamed: 0 is unknown; expected id, type, "),
    ],
)
def test_the_field_is_named(tmp_path, lines, where, value, words):
    *path, last = where.split(".")
    place = lines[1]
    for name in path:
        place = place[int(name) if name.isdigit() else name]
    place[int(last) if last.isdigit() else last] = value
    with pytest.raises(
        ValueError, match=r"cuts\.jsonl, line 2: (the field )?" + words.removeprefix("the field ")
    ):
        Manifest(write(tmp_path, lines))


def test_a_missing_field_is_named(tmp_path, lines):
    del lines[2]["recording"]["sampling_rate"]
    with pytest.raises(ValueError, match=r"line 3: the field recording\.sampling_rate is missing"):
        Manifest(write(tmp_path, lines))


def test_what_may_be_null_or_absent(tmp_path, lines):
    for line in lines:
        line["supervisions"][0] |= {"text": None, "speaker": None, "custom": None}
        del line["start"]
    lines[0]["start"] = lines[1]["start"] = lines[2]["start"] = 0
    del lines[1]["supervisions"], lines[2]["recording"]
    assert len(list(Manifest(write(tmp_path, lines)))) == 3


def test_numbers_of_lines_count_blank_ones(tmp_path, lines):
    good, bad = json.dumps(lines[0]), json.dumps({**lines[1], "id": 5})
    (tmp_path / "cuts.jsonl").write_text(f"\n{good}\n\n{bad}\n")
    with pytest.raises(ValueError, match=r"cuts\.jsonl, line 4: the field id"):
        Manifest(tmp_path / "cuts.jsonl")


def test_what_lhotse_cannot_make_is_named(tmp_path, lines):
    lines[1]["type"] = "PaddingCutOfTheFuture"
    with pytest.raises(
        ValueError, match=r"cuts\.jsonl: cut cut-001 cannot be made of its fields .*mend its line"
    ):
        list(Manifest(write(tmp_path, lines)))


def test_bytes_that_are_no_utf8_are_named(tmp_path, lines):
    content = json.dumps(lines[0]).replace("cut-000", "cut-\xe9").encode("latin-1")
    with pytest.raises(ValueError, match=r"x\.jsonl, line 9, is not UTF-8"):
        parse_cut(tmp_path / "x.jsonl", 9, content)


def test_names_of_files_that_are_no_utf8_come_back(tmp_path):
    cuts = make_cuts(1)
    cuts[0].recording.sources[0].source = "a\udcff.wav"
    save_cuts(cuts, tmp_path / "cuts.jsonl")
    assert Manifest(tmp_path / "cuts.jsonl")[0].recording.sources[0].source == "a\udcff.wav"
