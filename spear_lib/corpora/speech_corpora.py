"""Cuts of Libriheavy, GigaSpeech, VoxPopuli and Yodas-granary, for pre-training (ours, on lhotse).

lhotse 1.33's reader of GigaSpeech's entries is used; its recipe of VoxPopuli ends at the first file that it
cannot read, so the table is read here, into the same segments. Libriheavy has no recipe there because it is
published as lhotse cuts; Yodas-granary has none and is read from NeMo's manifests. Cuts come one by one, as
the largest of these corpora has twelve million. One bad recording or entry is counted, never the end; a table
that cannot be read is an error that names file and line.
"""

import csv
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lhotse import Recording, SupervisionSegment
from lhotse.cut import Cut
from lhotse.recipes.gigaspeech import parse_utterance
from lhotse.recipes.voxpopuli import RecordingIdFn
from lhotse.serialization import deserialize_item

from spear_lib.data.audio import CORRUPT, cut_of, unreadable
from spear_lib.data.problems import Problems
from spear_lib.data.references import OUTSIDE_TOLERANCE
from spear_lib.runtime.text_files import text_lines
from spear_lib.runtime.walking import files_below

MISSING, UNREADABLE, NO_SPEECH = "missing audio", "unreadable audio", "without speech"
MALFORMED, OUTSIDE = "malformed entry", "outside its recording"
_READ_SIZE = 1 << 20  # characters
_GARBAGE = {"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"}  # GigaSpeech's transcripts of what is no speech


def read_speech_corpus(name: str, folder: str | Path, problems: Problems) -> Iterator[Cut]:
    """The training cuts of a corpus in its published layout, of any length.

    Args:
      name: one of ``SPEECH_CORPORA``.
      problems: counts what is left out.

    Raises:
      ValueError: unknown name, or the folder has another layout; says which is expected.
    """
    if name not in SPEECH_CORPORA:
        raise ValueError(f"no corpus is called {name!r}: there are {', '.join(SPEECH_CORPORA)}")
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder: give the one that holds {name}")
    return SPEECH_CORPORA[name](Path(folder), problems)


def limit_length(cuts: Iterable[Cut], max_seconds: float) -> Iterator[Cut]:
    """The same audio in cuts of at most ``max_seconds``.

    A longer cut with several supervisions is divided between them; what is still too long into equal windows.
    """
    for cut in cuts:
        if cut.duration <= max_seconds:
            yield cut
            continue
        for part in _at_borders(cut, max_seconds):
            yield from _windows(part, max_seconds)


def _at_borders(cut: Cut, max_seconds: float) -> Iterator[Cut]:
    """From the start of one supervision to the end of a later one, as many as fit."""
    supervisions = sorted(cut.supervisions, key=lambda each: each.start)
    if len(supervisions) < 2:
        yield cut
        return
    begin, end = supervisions[0].start, supervisions[0].end
    for supervision in supervisions[1:]:
        if max(end, supervision.end) - begin > max_seconds:
            yield _part(cut, begin, end)
            begin, end = supervision.start, supervision.end
        end = max(end, supervision.end)
    yield _part(cut, begin, end)


def _windows(cut: Cut, max_seconds: float) -> Iterator[Cut]:
    """Equal parts, whole samples each."""
    number = math.ceil(cut.duration / max_seconds - 1e-6)
    if number <= 1:
        yield cut
        return
    samples = round(cut.duration * cut.sampling_rate)
    edges = [samples * index // number / cut.sampling_rate for index in range(number + 1)]
    for begin, end in zip(edges, edges[1:]):
        yield _part(cut, begin, end)


def _part(cut: Cut, begin: float, end: float) -> Cut:
    begin, end = max(0.0, begin), min(end, cut.duration)
    part = cut.truncate(offset=begin, duration=end - begin, keep_excessive_supervisions=False)
    return part.with_id(f"{cut.id}-{round(1000 * begin)}")


def _outside(recording: Recording, start: float, seconds: float) -> bool:
    """Whether a table's stretch is not in the file: the text would be that of audio which is not there. Up to
    a tenth of it may lie behind the end and is trimmed, as lhotse's recipe of VoxPopuli does (ours)."""
    missing = start + seconds - recording.duration
    inside = start >= 0.0 and seconds > 0.0 and start < recording.duration
    return not inside or missing > max(OUTSIDE_TOLERANCE, seconds / 10)


def _read_libriheavy(folder: Path, problems: Problems) -> Iterator[Cut]:
    """FOLDER/**/libriheavy_cuts_{small,medium,large}.jsonl.gz, audio in FOLDER/[download/]librilight."""
    audio = next((base for base in (folder / "download", folder) if (base / "librilight").is_dir()), None)
    manifests = sorted(map(Path, files_below(folder, ".jsonl.gz")))
    found = [
        [path for path in manifests if path.name == f"libriheavy_cuts_{part}.jsonl.gz"]
        for part in ("small", "medium", "large")
    ]
    if audio is None or not any(found):
        raise ValueError(
            f"{folder} is not laid out as Libriheavy: expected libriheavy_cuts_small.jsonl.gz (medium, "
            "large) in it or in a folder below, and the audio of Libri-Light in librilight or "
            "download/librilight"
        )
    for paths in found:
        # The corpus may lie there in several forms of its transcripts: any of them will do.
        for number, fields in _json_lines(paths[0]) if paths else ():
            try:
                cut = deserialize_item(fields)
                source = Path(cut.recording.sources[0].source)
                inside = Path(*source.parts[source.parts.index("librilight") :])
            except Exception as error:  # whatever lhotse makes of fields that are not a cut's
                problems.bad(MALFORMED, f"{paths[0]}, line {number} ({_reason(error)})")
                continue
            cut.recording.sources[0].source = str(audio / inside)
            if not (audio / inside).is_file():
                problems.bad(MISSING, cut.id)
                continue
            for supervision in cut.supervisions:
                texts = (supervision.custom or {}).get("texts") or [supervision.text]
                supervision.text, supervision.custom = texts[0], None
            cut.custom = None
            yield cut


def _read_gigaspeech(folder: Path, problems: Problems) -> Iterator[Cut]:
    """FOLDER/GigaSpeech.json and the audio it names; one cut for each segment of the subset XL."""
    path = folder / "GigaSpeech.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not laid out as GigaSpeech: expected GigaSpeech.json and audio/ in it")
    for entry in _entries(path, "audios"):
        try:
            if "{XL}" not in entry["subsets"]:
                continue
            recording, segments = parse_utterance(entry, folder)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            name = entry.get("aid", "?") if isinstance(entry, dict) else entry
            problems.bad(MALFORMED, f"{name} ({_reason(error)})")
            continue
        if not Path(recording.sources[0].source).is_file():
            problems.bad(MISSING, recording.id)
            continue
        for segment in segments:
            if not set((segment.text or "").split()) - _GARBAGE:
                problems.note(NO_SPEECH)
                continue
            if _outside(recording, segment.start, segment.duration):
                problems.bad(OUTSIDE, segment.id)
                continue
            inside = segment.with_offset(-segment.start)
            yield cut_of(recording, segment.id, segment.start, segment.duration, inside)


def _entries(path: Path, key: str) -> Iterator[dict[str, Any]]:
    """The objects of the list ``key`` in a JSON file that is too large to be read at once."""
    decoder, text = json.JSONDecoder(), ""
    with path.open(encoding="utf-8-sig") as file:

        def read() -> str:
            try:
                return file.read(_READ_SIZE)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8 ({error}): fetch it again") from error

        while f'"{key}"' not in text or "[" not in text[text.index(f'"{key}"') :]:
            more = read()
            if not more:
                raise ValueError(f"{path} has no list {key!r}: is it complete?")
            text += more
        text = text[text.index("[", text.index(f'"{key}"')) + 1 :]
        while True:
            text = text.lstrip(" \t\r\n,")
            if text.startswith("]"):
                return
            try:
                entry, end = decoder.raw_decode(text)
            except json.JSONDecodeError:
                more = read()
                if not more:
                    raise ValueError(f"{path} ends within its list {key!r}: fetch it again") from None
                text += more
                continue
            yield entry
            text = text[end:]


def _read_voxpopuli(folder: Path, problems: Problems) -> Iterator[Cut]:
    """FOLDER/raw_audios/en/YEAR/*.ogg, transcribed or not: whole recordings of sessions."""
    paths = _voxpopuli_files(folder)
    for path in paths:
        recording = _recording(path, RecordingIdFn("en")(path), problems)
        if recording is not None:
            yield cut_of(recording)


def _voxpopuli_files(folder: Path) -> list[Path]:
    audio = folder / "raw_audios" / "en"
    paths = sorted(map(Path, files_below(audio, ".ogg"))) if audio.is_dir() else []
    if not paths:
        raise ValueError(
            f"{folder} is not laid out as VoxPopuli: expected raw_audios/en/YEAR/*.ogg in it (what "
            "`lhotse download voxpopuli --subset en` leaves)"
        )
    return paths


def _read_voxpopuli_asr(folder: Path, problems: Problems) -> Iterator[Cut]:
    """The transcribed part as lhotse's recipe has it: FOLDER/asr_en.tsv.gz beside raw_audios; segments of
    train."""
    paths = _voxpopuli_files(folder)
    table = folder / "asr_en.tsv.gz"
    if not table.is_file():
        raise ValueError(f"{table} is missing: put VoxPopuli's annotations/asr/asr_en.tsv.gz there")
    segments = _voxpopuli_segments(table)
    for path in paths:
        identity = RecordingIdFn("en")(path)
        here = segments.pop(identity, [])
        recording = _recording(path, identity, problems) if here else None
        for segment in here if recording is not None else ():
            if _outside(recording, segment.start, segment.duration):
                problems.bad(OUTSIDE, segment.id)
                continue
            duration = min(segment.duration, recording.duration - segment.start)
            inside = segment.trim(segment.start + duration).with_offset(-segment.start)
            yield cut_of(recording, segment.id, segment.start, duration, inside)
    for identity, left in segments.items():
        for _ in left:
            problems.bad(MISSING, identity)


def _voxpopuli_segments(table: Path) -> dict[str, list[SupervisionSegment]]:
    """Session -> its segments of train, numbered over all parts as in lhotse's recipe."""
    found: dict[str, list[SupervisionSegment]] = defaultdict(list)
    numbers: Counter[str] = Counter()
    lines = text_lines(table)
    header = next(lines, (0, ""))[1].split("|")
    columns = ("session_id", "start_time", "end_time", "speaker_id", "gender", "normed_text", "split")
    missing = [name for name in columns if name not in header]
    if missing:
        raise ValueError(
            f"{table} has no column {missing[0]} in its first line: expected {'|'.join(columns)}"
        )
    for number, line in lines:
        try:
            row = dict(zip(header, next(csv.reader([line], delimiter="|"))))
            session, start = row["session_id"], round(float(row["start_time"]), 8)
            duration = round(float(row["end_time"]) - float(row["start_time"]), 8)
            speaker, gender, text, part = (row[name] for name in columns[3:])
        except (KeyError, ValueError, csv.Error) as error:
            raise ValueError(f"{table}, line {number} is no row of the table ({_reason(error)})") from error
        if part not in ("train", "dev", "test"):
            continue
        numbers[session] += 1
        if part != "train":
            continue
        found[session].append(
            SupervisionSegment(
                id=f"{session}-{numbers[session]}",
                recording_id=session,
                start=start,
                duration=duration,
                language="en",
                speaker=speaker,
                gender=gender,
                text=text,
                custom={"orig_text": row.get("original_text")},
            )
        )
    return found


def _read_nemo(folder: Path, problems: Problems) -> Iterator[Cut]:
    """FOLDER/**/*.jsonl (or .json, .gz): lines with audio_filepath, duration, and perhaps offset and text.

    A path is relative to the manifest's folder, or to FOLDER.
    """
    manifests = sorted(map(Path, files_below(folder, ".jsonl", ".json", ".jsonl.gz", ".json.gz")))
    if not manifests:
        raise ValueError(
            f"{folder} holds no NeMo manifest: expected *.jsonl whose lines have audio_filepath and duration"
        )
    recording: Recording | None = None
    for manifest in manifests:
        for number, entry in _json_lines(manifest):
            try:
                name, duration = entry["audio_filepath"], float(entry["duration"])
                offset, text = float(entry.get("offset") or 0.0), entry.get("text")
                if not isinstance(name, str) or not isinstance(text, str | None):
                    raise TypeError("audio_filepath and text must be texts")
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{manifest}, line {number} is no line of a NeMo manifest ({_reason(error)}): expected "
                    "JSON with audio_filepath and duration"
                ) from error
            path = next((base / name for base in (manifest.parent, folder) if (base / name).is_file()), None)
            if path is None:
                problems.bad(MISSING, name)
                continue
            if recording is None or recording.id != name:
                recording = _recording(path, name, problems)
            if recording is None:
                continue
            if _outside(recording, offset, duration):
                problems.bad(OUTSIDE, f"{manifest}, line {number}")
                continue
            duration = min(duration, recording.duration - offset)
            identity = f"{Path(name).with_suffix('')}-{round(1000 * offset)}"
            segment = SupervisionSegment(identity, recording.id, 0.0, duration, text=text)
            yield cut_of(recording, identity, offset, duration, segment)


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line of a .jsonl or .jsonl.gz file."""
    for number, line in text_lines(path):
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, is not JSON ({error.msg}): fetch it again") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{path}, line {number}, holds no JSON object: expected one entry on each line")
        yield number, fields


def _reason(error: Exception) -> str:
    """One line; a KeyError says nothing but the name."""
    text = f"no field {error}" if isinstance(error, KeyError) else str(error)
    return (text.splitlines() or [type(error).__name__])[0][:200]


def _recording(path: Path, identity: str, problems: Problems) -> Recording | None:
    try:
        return Recording.from_file(path, recording_id=identity)
    except Exception as error:  # the audio libraries have no common base class
        found = unreadable(path, error)
        problems.bad(UNREADABLE if found.kind == CORRUPT else found.kind, str(found))
        return None


SPEECH_CORPORA: dict[str, Callable[[Path, Problems], Iterator[Cut]]] = {
    "libriheavy": _read_libriheavy,
    "gigaspeech": _read_gigaspeech,
    "voxpopuli": _read_voxpopuli,
    "voxpopuli_asr": _read_voxpopuli_asr,
    "yodas_granary": _read_nemo,
}
"""Name -> reader of its published layout."""
