"""Tables whose first line names the columns, as people have them (.csv, .tsv): the one reader (ours).

Text as in ``text_files``: UTF-8 with or without a byte order mark, LF or CRLF, perhaps gzip.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from spear_lib.runtime.text_files import decoded, raw_lines


def csv_lines(
    path: str | Path, delimiter: str = "", comments: bool = False, **options
) -> Iterator[tuple[int, list[str]]]:
    """(line number, columns) of every line that is not empty (nor begins with #, if ``comments``).

    Args:
      delimiter: between columns; by default a tab in a file that ends in .tsv, else a comma.
      options: of ``csv.reader``.

    Raises:
      ValueError: the file is missing, or no table; names file and line.
    """
    if not delimiter:
        delimiter = "\t" if str(path).lower().removesuffix(".gz").endswith(".tsv") else ","
    # With the ending back: a quoted text may go over several lines.
    content = (decoded(line, path, number) + "\n" for number, line in raw_lines(path))
    lines = csv.reader(content, strict=True, delimiter=delimiter, **options)
    try:
        for row in lines:
            # An id of AudioSet may begin with anything but #.
            if row and not (comments and row[0].startswith("#")):
                yield lines.line_num, [column.strip() for column in row]
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {lines.line_num}, is no csv ({error}): is a quote missing?"
        ) from error


def column_names(path: str | Path, delimiter: str = "", **options) -> list[str]:
    """The first line of a table; arguments and errors as for ``csv_lines``."""
    return next(csv_lines(path, delimiter, **options), (0, []))[1]


def read_table(
    path: str | Path, columns: Iterable[str], delimiter: str = "", **options
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a table whose first line names at least ``columns``.

    Raises:
      ValueError: as ``csv_lines``; a column is missing, or a line has more or fewer than the first.
    """
    columns = list(columns)
    lines = csv_lines(path, delimiter, **options)
    header = next(lines, (0, []))[1]
    missing = [name for name in columns if name not in header]
    if missing:
        raise ValueError(
            f"{path} has no column {', '.join(missing)}: expected the columns {', '.join(columns)} in its "
            f"first line, found {', '.join(header) or 'none'}"
        )
    for number, row in lines:
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {number} has {len(row)} columns, its first line {len(header)}: {row}. Is a "
                "text with a comma not quoted?"
            )
        yield number, dict(zip(header, row))
