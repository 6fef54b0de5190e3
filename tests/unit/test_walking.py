"""The walk of folders that all readers share: every file once, whatever links lead to it."""

import os
from pathlib import Path

import pytest

from spear_lib.data.audio_files import find_audio
from spear_lib.runtime.walking import files_below


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(folder: Path, *endings: str) -> list[str]:
    return [os.path.relpath(path, folder) for path in files_below(folder, *endings)]


def test_order_endings_and_companions(tmp_path):
    touch(
        tmp_path / "b.wav", tmp_path / "a" / "z.WAV", tmp_path / "a" / "deep" / "y.flac", tmp_path / "a.wav"
    )
    touch(tmp_path / "notes.txt", tmp_path / "a" / "._z.WAV", tmp_path / "a-b" / "x.wav")
    assert names(tmp_path, ".wav", ".flac") == ["a.wav", "b.wav", "a/z.WAV", "a/deep/y.flac", "a-b/x.wav"]
    assert names(tmp_path, ".txt") == ["notes.txt"] and len(names(tmp_path)) == 6
    assert files_below(tmp_path / "a" / "deep", ".wav") == []


def test_linked_folders_are_entered(tmp_path):
    touch(tmp_path / "corpus" / "100" / "a.flac", tmp_path / "disk2" / "101" / "b.flac")
    (tmp_path / "corpus" / "101").symlink_to(tmp_path / "disk2" / "101")
    assert names(tmp_path / "corpus") == ["100/a.flac", "101/b.flac"]
    # The folder itself may be a link, and links may lead to links.
    (tmp_path / "again").symlink_to(tmp_path / "corpus")
    assert names(tmp_path / "again") == ["100/a.flac", "101/b.flac"]


@pytest.mark.timeout(20)
def test_loops_end_and_every_file_is_there_once(tmp_path):
    touch(tmp_path / "one" / "a.wav", tmp_path / "two" / "b.wav")
    (tmp_path / "one" / "again").symlink_to(".")
    (tmp_path / "one" / "back").symlink_to("..")
    (tmp_path / "two" / "other").symlink_to("../one")
    (tmp_path / "same").symlink_to("one")
    assert names(tmp_path) == ["one/a.wav", "two/b.wav"]
    assert len(names(tmp_path / "one")) == 2  # through "back" the other one is reached too
    both = find_audio([tmp_path / "one", tmp_path / "two", tmp_path / "same", tmp_path / "one" / "a.wav"])
    assert sorted(path.name for path in both) == ["a.wav", "b.wav"]


def test_a_folder_is_called_by_its_own_name_rather_than_a_link_before_it(tmp_path):
    touch(tmp_path / "z" / "a.wav")
    (tmp_path / "a_link").symlink_to("z")
    assert names(tmp_path) == ["z/a.wav"]


def test_links_to_files_are_names_of_their_own(tmp_path):
    touch(tmp_path / "real.wav")
    (tmp_path / "other.wav").symlink_to("real.wav")
    assert names(tmp_path) == ["other.wav", "real.wav"]


def test_a_link_to_nothing_is_said(tmp_path, caplog):
    touch(tmp_path / "a.wav")
    (tmp_path / "101").symlink_to("/disk3/not/mounted")
    assert names(tmp_path, ".wav") == ["a.wav"]
    assert f"{tmp_path / '101'} is a link to nothing" in caplog.text


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        files_below(tmp_path / "nowhere")
