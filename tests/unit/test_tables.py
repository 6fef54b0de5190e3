"""The one reader of tables: what people's spreadsheets write, and one line for what is no table."""

import gzip

import pytest

from spear_lib.runtime.tables import column_names, read_table


def rows(path, *columns):
    return [row for _, row in read_table(path, columns)]


def test_what_spreadsheets_write(tmp_path):
    """A byte order mark, CRLF, quotes with commas and line ends in them, blank lines, gzip; tabs by name."""
    table = tmp_path / "a.csv"
    table.write_bytes(b'\xef\xbb\xbfid,text\r\n1,"ONE, TWO"\r\n\r\n2,"of\r\ntwo lines"\r\n')
    assert rows(table, "id") == [{"id": "1", "text": "ONE, TWO"}, {"id": "2", "text": "of\ntwo lines"}]
    assert [number for number, _ in read_table(table, ("id",))] == [2, 5]
    tabs = tmp_path / "A.TSV"
    tabs.write_text("id\ttext\n1\tONE, TWO\n", encoding="utf-8")
    assert rows(tabs, "id", "text") == [{"id": "1", "text": "ONE, TWO"}]
    packed = tmp_path / "a.tsv.gz"
    packed.write_bytes(gzip.compress(tabs.read_bytes()))
    assert rows(packed, "text") == rows(tabs, "text") and column_names(packed) == ["id", "text"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.csv has no column id: expected the columns id in its first line, found none"),
        (b"name,text\n", "has no column id: expected the columns id in its first line, found name, text"),
        (b"id,text\n1\n", "line 2 has 1 columns, its first line 2"),
        (b"id,text\n1,a,b\n", "line 2 has 3 columns, its first line 2: .*not quoted"),
        (b'id,text\n1,"a\n2,b\n', "line 3, is no csv .*is a quote missing"),
        (b"id,text\n1,\r ONE\n", "line 2, is no csv"),
        (b"id,text\n1,caf\xe9\n", "line 2, is not UTF-8"),
        ("id,text\n1,a\n".encode("utf-16"), "holds zero bytes"),
    ],
)
def test_what_is_no_table(tmp_path, content, message):
    table = tmp_path / "a.csv"
    table.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rows(table, "id")


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(ValueError, match="no.csv does not exist"):
        rows(tmp_path / "no.csv", "id")
    with pytest.raises(ValueError, match="is a folder, expected a text file"):
        column_names(tmp_path)
