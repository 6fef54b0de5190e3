"""Phones with their times: ABX item files, tables, Praat's TextGrid, ctm.

Times are exact fractions of a second: borders of phones lie on borders of frames, and a float would put them
on either side.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from spear_lib.runtime.tables import column_names, read_table

ITEM, TEXTGRID, CTM = ".item", ".textgrid", ".ctm"
TABLES = (".tsv", ".csv")
ENDINGS = (ITEM, TEXTGRID, CTM, *TABLES)
SILENCES = ("", "sil", "sp", "spn", "pau", "epi", "h#", "#", "<eps>", "<sil>")
"""Labels that are no phones, in lower case."""
EDGE = "#"
"""The neighbour of the first and the last phone of a file."""
_COLUMNS = {
    "file": ("file", "utt", "utterance", "id"),
    "start": ("start", "onset", "start_sample"),
    "end": ("end", "offset", "end_sample"),
    "phone": ("phone", "label"),
}


@dataclass(frozen=True)
class Phone:
    """One phone of a file, in seconds."""

    file: str
    start: Fraction
    end: Fraction
    label: str
    previous: str = EDGE
    next: str = EDGE
    speaker: str = ""


def is_silence(label: str) -> bool:
    """Whether a label is none of a phone."""
    return label.lower() in SILENCES


def read_phones(paths: Iterable[str | Path], sample_rate: int = 16000) -> list[Phone]:
    """All phones, silences included, with their neighbours, in order of files and times.

    Args:
      paths: files, or folders of files, that end in one of ENDINGS. Item files hold neighbours and speakers
        themselves; tables have the columns file (utt, id), start (onset), end (offset), phone (label), in
        seconds, or start_sample and end_sample, and may have one of speakers.
      sample_rate: of times that tables give in samples.

    Raises:
      ValueError: a file that cannot be understood; names it and its line.
    """
    phones: list[Phone] = []
    for path in _files(paths):
        ending = path.suffix.lower()
        if ending == ITEM:
            phones += _read_items(path)
            continue
        if ending == TEXTGRID:
            found = list(_read_textgrid(path))
        else:
            found = list(_read_ctm(path) if ending == CTM else _read_table(path, sample_rate))
        by_file: dict[str, list[Phone]] = {}
        for phone in found:
            by_file.setdefault(phone.file, []).append(phone)
        for own in by_file.values():
            own.sort(key=lambda phone: phone.start)
            labels = [EDGE, *(EDGE if is_silence(phone.label) else phone.label for phone in own), EDGE]
            phones += [
                replace(phone, previous=before, next=after)
                for phone, before, after in zip(own, labels, labels[2:])
            ]
    if not phones:
        raise ValueError(f"no phones in {', '.join(map(str, paths))}")
    return phones


def read_speakers(path: str | Path) -> dict[str, str]:
    """File -> speaker, of a table with the columns file (utt, id) and speaker."""
    names = column_names(path)
    name = next((name for name in _COLUMNS["file"] if name in names), None)
    if name is None or "speaker" not in names:
        raise ValueError(f"{path} has the columns {', '.join(names)}: it needs utt and speaker")
    return {row[name]: row["speaker"] for _, row in read_table(path, (name, "speaker"))}


def with_speakers(phones: list[Phone], speakers: dict[str, str] | None) -> list[Phone]:
    """Phones with their speakers: as they are, else of the table, else what the file's name begins with, up
    to the first "-" (LibriSpeech).

    Raises:
      ValueError: a file that the table has not.
    """
    if speakers is None:
        return [
            phone if phone.speaker else replace(phone, speaker=phone.file.split("-")[0]) for phone in phones
        ]
    missing = sorted({phone.file for phone in phones} - set(speakers))
    if missing:
        raise ValueError(f"the table of speakers lacks {len(missing)} files, for example {missing[0]}")
    return [replace(phone, speaker=speakers[phone.file]) for phone in phones]


def _files(paths: Iterable[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        known = [each for each in inside if each.suffix.lower() in ENDINGS]
        if not path.exists():
            raise ValueError(f"{path} does not exist: give files or folders of alignments")
        if not known:
            raise ValueError(
                f"{path} is no alignment and holds none: the endings {', '.join(ENDINGS)} are known"
            )
        files += known
    return files


def _wrong(path: Path, line: int, text: str, expected: str) -> ValueError:
    return ValueError(f"{path} line {line}: {text.strip()[:80]!r} is not {expected}")


def _read_items(path: Path) -> Iterator[Phone]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.startswith("#file") or not line.strip():
                continue
            try:
                name, start, end, label, before, after, speaker = line.split()
                yield Phone(name, Fraction(start), Fraction(end), label, before, after, speaker)
            except ValueError as error:
                raise _wrong(path, number, line, "file onset offset phone previous next speaker") from error


def _read_ctm(path: Path) -> Iterator[Phone]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip() or line.startswith(";;"):
                continue
            try:
                name, _, start, duration, label = line.split()[:5]
                yield Phone(name, Fraction(start), Fraction(start) + Fraction(duration), label)
            except ValueError as error:
                raise _wrong(path, number, line, "file channel start duration phone") from error


def _read_table(path: Path, sample_rate: int) -> Iterator[Phone]:
    names = column_names(path)
    columns = {key: next((one for one in known if one in names), None) for key, known in _COLUMNS.items()}
    missing = [key for key, name in columns.items() if name is None]
    if missing:
        raise ValueError(
            f"{path} has the columns {', '.join(names)}: it lacks {', '.join(missing)} "
            f"({' or '.join(_COLUMNS[missing[0]])})"
        )
    for number, row in read_table(path, columns.values()):
        try:
            times = [
                Fraction(row[columns[key]]) / (sample_rate if columns[key].endswith("_sample") else 1)
                for key in ("start", "end")
            ]
        except (ValueError, ZeroDivisionError) as error:
            raise _wrong(path, number, str(row), "a row with two times") from error
        yield Phone(row[columns["file"]], *times, row[columns["phone"]], speaker=row.get("speaker") or "")


def _read_textgrid(path: Path) -> Iterator[Phone]:
    """Intervals of the tier "phones" (or "phone"), of both of Praat's text formats."""
    content = path.read_bytes()
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = content.decode("utf-16" if wide else "utf-8-sig")
    # Without the indices in brackets both formats are the same values in the same order.
    values = re.findall(r'"(?:[^"]|"")*"|[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?', re.sub(r"\[\d*\]", "", text))
    tiers: dict[str, list[Phone]] = {}
    try:
        rest = iter(values[values.index('"TextGrid"') + 1 :])
        for _ in range(2):
            next(rest)
        for _ in range(int(next(rest))):
            kind, name = next(rest), next(rest).strip('"')
            next(rest), next(rest)
            own = tiers.setdefault(name.lower(), [])
            for _ in range(int(next(rest))):
                start = Fraction(next(rest))
                end = Fraction(next(rest)) if kind == '"IntervalTier"' else start
                own.append(Phone(path.stem, start, end, next(rest)[1:-1].replace('""', '"').strip()))
    except (ValueError, StopIteration) as error:
        raise ValueError(f"{path} is no TextGrid as Praat writes it, in text form") from error
    for name in ("phones", "phone"):
        if name in tiers:
            return iter(tiers[name])
    raise ValueError(f"{path} has the tiers {', '.join(tiers) or 'none'}: one named phones is needed")
