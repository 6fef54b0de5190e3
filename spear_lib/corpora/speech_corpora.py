"""Cuts of Libriheavy, GigaSpeech, VoxPopuli and Yodas-granary, for pre-training (ours, on lhotse).

What lhotse 1.33 has is used: its readers of GigaSpeech's entries and of VoxPopuli. Libriheavy has no recipe
there because it is published as lhotse cuts; Yodas-granary has none and is read from NeMo's manifests. Cuts
come one by one, as the largest of these corpora has twelve million.
"""

import gzip
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lhotse import CutSet, Recording, SupervisionSegment
from lhotse.cut import Cut, MonoCut
from lhotse.recipes.gigaspeech import parse_utterance
from lhotse.recipes.voxpopuli import RecordingIdFn, prepare_voxpopuli

from spear_lib.data.problems import Problems

MISSING, UNREADABLE, NO_SPEECH = "missing audio", "unreadable audio", "without speech"
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


def _whole(recording: Recording) -> MonoCut:
    return MonoCut(recording.id, 0.0, recording.duration, recording.channel_ids[0], recording=recording)


def _read_libriheavy(folder: Path, problems: Problems) -> Iterator[Cut]:
    """FOLDER/**/libriheavy_cuts_{small,medium,large}.jsonl.gz, audio in FOLDER/[download/]librilight."""
    audio = next((base for base in (folder / "download", folder) if (base / "librilight").is_dir()), None)
    found = [
        sorted(folder.rglob(f"libriheavy_cuts_{part}.jsonl.gz")) for part in ("small", "medium", "large")
    ]
    if audio is None or not any(found):
        raise ValueError(
            f"{folder} is not laid out as Libriheavy: expected libriheavy_cuts_small.jsonl.gz (medium, "
            "large) in it or in a folder below, and the audio of Libri-Light in librilight or "
            "download/librilight"
        )
    for paths in found:
        # The corpus may lie there in several forms of its transcripts: any of them will do.
        for cut in CutSet.from_jsonl_lazy(paths[0]) if paths else ():
            source = Path(cut.recording.sources[0].source)
            inside = Path(*source.parts[source.parts.index("librilight") :])
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
        if "{XL}" not in entry["subsets"]:
            continue
        recording, segments = parse_utterance(entry, folder)
        if not Path(recording.sources[0].source).is_file():
            problems.bad(MISSING, recording.id)
            continue
        for segment in segments:
            if not set((segment.text or "").split()) - _GARBAGE:
                problems.note(NO_SPEECH)
                continue
            inside = segment.with_offset(-segment.start)
            yield MonoCut(segment.id, segment.start, segment.duration, 0, [inside], recording=recording)


def _entries(path: Path, key: str) -> Iterator[dict[str, Any]]:
    """The objects of the list ``key`` in a JSON file that is too large to be read at once."""
    decoder, text = json.JSONDecoder(), ""
    with path.open(encoding="utf-8") as file:
        while f'"{key}"' not in text or "[" not in text[text.index(f'"{key}"') :]:
            more = file.read(_READ_SIZE)
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
                more = file.read(_READ_SIZE)
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
            yield _whole(recording)


def _voxpopuli_files(folder: Path) -> list[Path]:
    paths = sorted((folder / "raw_audios" / "en").rglob("*.ogg"))
    if not paths:
        raise ValueError(
            f"{folder} is not laid out as VoxPopuli: expected raw_audios/en/YEAR/*.ogg in it (what "
            "`lhotse download voxpopuli --subset en` leaves)"
        )
    return paths


def _read_voxpopuli_asr(folder: Path, problems: Problems) -> Iterator[Cut]:
    """The transcribed part by lhotse's recipe: FOLDER/asr_en.tsv.gz beside raw_audios; segments of train."""
    _voxpopuli_files(folder)
    table = folder / "asr_en.tsv.gz"
    if not table.is_file():
        raise ValueError(f"{table} is missing: put VoxPopuli's annotations/asr/asr_en.tsv.gz there")
    with tempfile.TemporaryDirectory() as aside:
        (Path(aside) / table.name).symlink_to(table.resolve())
        train = prepare_voxpopuli(folder, aside, task="asr", lang="en")["train"]
    for cut in CutSet.from_manifests(**train).trim_to_supervisions(keep_overlapping=False):
        yield cut.with_id(cut.supervisions[0].id)


def _read_nemo(folder: Path, problems: Problems) -> Iterator[Cut]:
    """FOLDER/**/*.jsonl (or .json, .gz): lines with audio_filepath, duration, and perhaps offset and text.

    A path is relative to the manifest's folder, or to FOLDER.
    """
    manifests = sorted(
        path for ending in ("jsonl", "json", "jsonl.gz", "json.gz") for path in folder.rglob(f"*.{ending}")
    )
    if not manifests:
        raise ValueError(
            f"{folder} holds no NeMo manifest: expected *.jsonl whose lines have audio_filepath and duration"
        )
    recording: Recording | None = None
    for manifest in manifests:
        for number, line in _lines(manifest):
            try:
                entry = json.loads(line)
                name, duration = entry["audio_filepath"], float(entry["duration"])
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{manifest}, line {number} is no line of a NeMo manifest ({error}): expected JSON with "
                    "audio_filepath and duration"
                ) from error
            path = next((base / name for base in (manifest.parent, folder) if (base / name).is_file()), None)
            if path is None:
                problems.bad(MISSING, name)
                continue
            if recording is None or recording.id != name:
                recording = _recording(path, name, problems)
            if recording is None:
                continue
            offset = float(entry.get("offset") or 0.0)
            duration = min(duration, recording.duration - offset)
            identity = f"{Path(name).with_suffix('')}-{round(1000 * offset)}"
            segment = SupervisionSegment(identity, recording.id, 0.0, duration, text=entry.get("text"))
            yield MonoCut(
                identity, offset, duration, recording.channel_ids[0], [segment], recording=recording
            )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open() as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _recording(path: Path, identity: str, problems: Problems) -> Recording | None:
    try:
        return Recording.from_file(path, recording_id=identity)
    except Exception as error:  # the audio libraries have no common base class
        problems.bad(UNREADABLE, f"{path} ({error})")
        return None


SPEECH_CORPORA: dict[str, Callable[[Path, Problems], Iterator[Cut]]] = {
    "libriheavy": _read_libriheavy,
    "gigaspeech": _read_gigaspeech,
    "voxpopuli": _read_voxpopuli,
    "voxpopuli_asr": _read_voxpopuli_asr,
    "yodas_granary": _read_nemo,
}
"""Name -> reader of its published layout."""
