"""Text files as Windows, macOS and spreadsheets leave them: read alike, or refused with file and line."""

import gzip
from pathlib import Path

import pytest

from spear_lib.runtime.files import read_json
from spear_lib.runtime.overlays import read_yaml
from spear_lib.runtime.text_files import is_companion, read_text, text_lines, transcripts
from spear_lib.runtime.walking import files_below


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("last", ["", "\n"])
def test_marks_and_endings_do_not_matter(tmp_path, ending, encoding, last):
    path = tmp_path / "a.txt"
    path.write_bytes((ending.join(["é 1", "", "  ", "x\ty "]) + last).encode(encoding))
    assert list(text_lines(path)) == [(1, "é 1"), (4, "x\ty ")]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert list(text_lines(tmp_path / "a.txt.gz")) == [(1, "é 1"), (4, "x\ty ")]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\r"])
def test_lines_end_at_line_feeds_alone(tmp_path, character):
    (tmp_path / "t.txt").write_bytes(f"a-1 ONE{character}TWO\na-2 THREE\n".encode())
    assert list(transcripts(tmp_path / "t.txt")) == [(1, "a-1", f"ONE{character}TWO"), (2, "a-2", "THREE")]


def test_a_line_that_is_no_utf8_is_named_with_its_byte(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"a-1 ONE\na-2 CAF\xc9\n")
    with pytest.raises(
        ValueError, match=r"latin\.txt, line 2, is not UTF-8 \(byte 0xc9 at column 8\): .*iconv"
    ):
        list(text_lines(path))
    path.write_bytes("a-1 ONE\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"latin\.txt, line 1, holds zero bytes.*save it as UTF-8"):
        list(text_lines(path))


def test_files_that_cannot_be_read_are_named(tmp_path):
    packed = gzip.compress(b"ONE\n" * 1000)
    (tmp_path / "a.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.gz").write_bytes(b"no gzip")
    for name, words in (
        ("a.gz", "truncated or not gzip"),
        ("b.gz", "truncated or not gzip"),
        ("gone", "does not exist"),
        ("", "is a folder"),
    ):
        with pytest.raises(ValueError, match=words):
            list(text_lines(tmp_path / name))


def test_companions_of_macos_are_no_content(tmp_path):
    for name in ("a.txt", "._a.txt", "b/._c.txt", "b/d.txt", "b/._/e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = sorted(str(Path(path).relative_to(tmp_path)) for path in files_below(tmp_path, ".txt"))
    assert names == ["a.txt", "b/._/e.txt", "b/d.txt"]
    assert is_companion("x/._a.wav") and not is_companion("._x/a.wav") and not is_companion("a._b")


def test_configurations_and_json_may_begin_with_a_mark(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfname: x\r\n")
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"name": "x"}')
    assert read_yaml(tmp_path / "a.yaml") == read_json(tmp_path / "a.json") == {"name": "x"}
    assert read_text(tmp_path / "a.yaml") == "name: x"
    (tmp_path / "a.yaml").write_bytes(b"ok: 1\nname: \xff\n")
    with pytest.raises(ValueError, match=r"a\.yaml, line 2, is not UTF-8"):
        read_yaml(tmp_path / "a.yaml")
