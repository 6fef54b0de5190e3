"""Configurations that extend others: what lies on top of what, and what is refused."""

import re

import pytest

from spear_lib.runtime import overlays
from spear_lib.runtime.overlays import layers, read_overlays


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_later_values_replace_earlier_ones_group_by_group(write):
    write("shared/low.yaml", "a: 1\ngroup: {x: 1, y: 1, list: [1, 2, 3]}\n")
    write("middle.yaml", "extends: shared/low.yaml\ngroup: {y: 2}\n")
    write("beside.yaml", "group: {x: 3}\nb: 3\n")
    top = write("top.yaml", "extends: [middle.yaml, beside.yaml]\na: 4\ngroup: {list: [9]}\n")
    assert read_overlays(top) == {"a": 4, "b": 3, "group": {"x": 3, "y": 2, "list": [9]}}
    assert [file.rsplit("/", 1)[1] for file, _ in layers(top)] == [
        "low.yaml",
        "middle.yaml",
        "beside.yaml",
        "top.yaml",
    ]


def test_a_file_is_looked_for_beside_the_one_that_names_it(write, tmp_path, monkeypatch):
    write("egs/common/conf/low.yaml", "a: 1\n")
    write("egs/mine/conf/top.yaml", "extends: ../../common/conf/low.yaml\n")
    monkeypatch.chdir(tmp_path / "egs" / "mine")
    assert [file for file, _ in layers("conf/top.yaml")] == ["../common/conf/low.yaml", "conf/top.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: none.yaml\n", r"none.yaml does not exist"),
        ("extends: 3\n", r"extends of .*top.yaml must be a file name or a list of them, got 3"),
        ("extends: [{a: 1}]\n", r"must be a file name or a list"),
        ("extends: back.yaml\n", r"circle: .*top.yaml -> .*back.yaml -> .*top.yaml"),
        ("- 1\n", r"must hold 'name: value' lines, got list"),
        ("a: [1\n", r"is not valid YAML"),
    ],
)
def test_what_is_refused(write, text, message):
    write("back.yaml", "extends: top.yaml\n")
    with pytest.raises(ValueError, match=message):
        read_overlays(write("top.yaml", text))


def test_every_value_is_shown_with_its_file(write, capsys):
    write("low.yaml", "a: 1\ngroup: {x: 1}\n")
    top = write("top.yaml", "extends: low.yaml\ngroup: {x: 2}\n")
    assert overlays.main([top]) == 0
    shown = dict(re.findall(r"^(\S+: \S+) +.*/(\w+\.yaml)$", capsys.readouterr().out, re.MULTILINE))
    assert shown == {"a: 1": "low.yaml", "group.x: 2": "top.yaml"}
    assert overlays.main(["nowhere.yaml"]) == 1
    assert "nowhere.yaml does not exist" in capsys.readouterr().err
