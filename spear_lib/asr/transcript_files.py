"""Transcripts in the forms that other programs read: text, JSON, subtitles (SubRip, WebVTT), CTM of sclite.

A word's times are those at which its units were emitted (``words.Unit``), which is when it was recognised
and not always when it sounds; captions are therefore held until the next one, for at most ``HOLD_SECONDS``.
"""

import json
from collections.abc import Callable
from typing import Any

from spear_lib.asr.transcription import Transcript
from spear_lib.asr.words import Word

LINE_CHARACTERS = 42
"""Longest line of a caption (broadcasters' usual limit); a caption has two of them."""
CAPTION_SECONDS = 6.0
"""A caption that lasts so long takes no further word."""
PAUSE_SECONDS = 1.0
"""A longer pause begins a new caption."""
HOLD_SECONDS = 1.0
"""How long a caption stays after its last word."""


def captions(transcript: Transcript) -> list[tuple[float, float, list[str]]]:
    """(start, end, lines) of each caption in s; they follow each other and do not overlap."""
    groups: list[list[Word]] = []
    for word in transcript.words:
        last = groups[-1] if groups else []
        fits = bool(last) and len(_lines([*last, word])) <= 2
        if (
            fits
            and word.start - last[-1].end <= PAUSE_SECONDS
            and word.end - last[0].start <= CAPTION_SECONDS
        ):
            last.append(word)
        else:
            groups.append([word])
    result = []
    for number, group in enumerate(groups):
        following = groups[number + 1][0].start if number + 1 < len(groups) else float("inf")
        start = group[0].start
        end = min(group[-1].end + HOLD_SECONDS, following, max(transcript.seconds, group[-1].end))
        result.append((start, max(end, start + 0.001), _lines(group)))
    return result


def _lines(words: list[Word]) -> list[str]:
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word.text) <= LINE_CHARACTERS:
            lines[-1] += f" {word.text}"
        else:
            lines.append(word.text)
    return lines


def _clock(seconds: float, mark: str) -> str:
    """hh:mm:ss and ms after ``mark``."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"


def _text(transcript: Transcript, facts: dict[str, Any]) -> str:
    return transcript.text + "\n"


def _json(transcript: Transcript, facts: dict[str, Any]) -> str:
    return json.dumps({**transcript.to_dict(), **facts}, indent=2, ensure_ascii=False) + "\n"


def _srt(transcript: Transcript, facts: dict[str, Any]) -> str:
    blocks = [
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n" + "\n".join(lines) + "\n"
        for number, (start, end, lines) in enumerate(captions(transcript), start=1)
    ]
    return "\n".join(blocks)


def _vtt(transcript: Transcript, facts: dict[str, Any]) -> str:
    blocks = ["WEBVTT\n"]
    for start, end, lines in captions(transcript):
        text = "\n".join(lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_clock(start, '.')} --> {_clock(end, '.')}\n{text}\n")
    return "\n".join(blocks)


def _ctm(transcript: Transcript, facts: dict[str, Any]) -> str:
    """Lines "recording channel start duration word confidence"; the channel is 1, the mean of all."""
    name = "_".join(transcript.path.stem.split()) or "audio"
    return "".join(
        f"{name} 1 {word.start:.3f} {word.end - word.start:.3f} {word.text} {word.confidence:.3f}\n"
        for word in transcript.words
    )


FORMATS: dict[str, Callable[[Transcript, dict[str, Any]], str]] = {
    "txt": _text,
    "json": _json,
    "srt": _srt,
    "vtt": _vtt,
    "ctm": _ctm,
}
"""Ending of a file -> its content, of a transcript and where its model comes from."""
