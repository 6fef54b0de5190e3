"""Configuration files that extend others."""

import pytest

from spear_lib.runtime.overlays import read_overlays


def write(folder, **texts):
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_groups_are_merged_lists_replaced_and_the_last_wins(tmp_path):
    write(
        tmp_path,
        base="a: 1\ngroup: {x: 1, y: [1, 2]}\n",
        wide="group: {x: 5}\n",
        large="extends: [base.yaml, wide.yaml]\ngroup: {y: [3]}\nb: 2\n",
    )
    assert read_overlays(tmp_path / "large.yaml") == {"a": 1, "b": 2, "group": {"x": 5, "y": [3]}}


def test_paths_are_relative_to_the_file_that_names_them(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "recipe").mkdir()
    write(tmp_path / "shared", lowest="a: 1\n", low="extends: lowest.yaml\nb: 2\n")
    write(tmp_path / "recipe", size="extends: ../shared/low.yaml\nc: 3\n")
    assert read_overlays(tmp_path / "recipe" / "size.yaml") == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: gone.yaml\n", r"gone.yaml \(extended by .*own.yaml\) does not exist"),
        ("extends: own.yaml\n", "own.yaml .*extends itself"),
        ("- a\n", "must hold 'name: value' lines, got list"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, text, message):
    write(tmp_path, own=text)
    with pytest.raises(ValueError, match=message):
        read_overlays(tmp_path / "own.yaml")


def test_an_empty_file_holds_nothing(tmp_path):
    assert read_overlays(write(tmp_path, own="# nothing\n") / "own.yaml") == {}
