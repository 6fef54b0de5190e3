"""Text files as people have them: the one reader of transcripts, lists, tables, ARPA files, manifests (ours).

UTF-8 with or without a byte order mark, plain or gzip, lines that end in LF or CRLF. Lines end there and
nowhere else: U+2028, U+0085 or a form feed inside a transcript is a character of it, unlike for
``str.splitlines``. What is not UTF-8 is an error that names the file and the line.
"""

import codecs
import gzip
import os
import zlib
from collections.abc import Iterator

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LONGEST_LINE = 1 << 26
"""Bytes; a longer line is no text of ours, and one file of zeros must not fill the memory."""


def is_companion(path: str | os.PathLike) -> bool:
    """Whether this is the ``._NAME`` that macOS leaves beside NAME on other file systems: never content."""
    return os.path.basename(path).startswith("._")


def raw_lines(path: str | os.PathLike) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes with their line ending) of every line of a file; ``.gz`` is unpacked.

    Raises:
      ValueError: the file cannot be read to its end, or a line is longer than 64 MB; names file and line.
    """
    number = 0
    try:
        with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as file:
            while line := file.readline(_LONGEST_LINE + 1):
                number += 1
                if len(line) > _LONGEST_LINE:
                    raise ValueError(f"{path}, line {number}, is longer than 64 MB: it is no text file")
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path} is truncated or not gzip, or damaged after line {number} ({error}): make it again, or "
            "fetch it again"
        ) from error
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist: see the name, and the folder it counts from") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder, expected a text file") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error


def decoded(line: bytes, path: str | os.PathLike, number: int) -> str:
    """The text of a line (``number`` from 1), without byte order mark and line ending.

    Raises:
      ValueError: not UTF-8; names file, line, the byte and its place.
    """
    if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
    if (number == 1 and line.startswith(_UTF_16)) or b"\0" in line:
        raise ValueError(f"{path}, line {number}, holds zero bytes (UTF-16, or no text): save it as UTF-8")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, line {number}, is not UTF-8 (byte 0x{line[error.start]:02x} at column "
            f"{error.start + 1}): save it as UTF-8, for example with iconv -f latin1 -t utf-8"
        ) from error
    return text.removesuffix("\n").removesuffix("\r")


def text_lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its ending) of every line that is not blank.

    Raises:
      ValueError: as ``raw_lines`` and ``decoded``.
    """
    for number, line in raw_lines(path):
        text = decoded(line, path, number)
        if text.strip():
            yield number, text


def read_text(path: str | os.PathLike) -> str:
    """The whole text of a (small) file, lines separated by LF; errors as ``text_lines``."""
    return "\n".join(decoded(line, path, number) for number, line in raw_lines(path))


def transcripts(path: str | os.PathLike) -> Iterator[tuple[int, str, str]]:
    """(line number, utterance id, text) of a file of ``ID words ...`` lines, as LibriSpeech and Kaldi have
    them; the text is empty where a line holds the id alone."""
    for number, line in text_lines(path):
        name, *words = line.split(maxsplit=1)
        yield number, name, words[0].strip() if words else ""
