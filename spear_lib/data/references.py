"""Transcripts and speakers of cuts: what is trained on, scored and probed."""

from typing import Any, NamedTuple

from lhotse.cut import Cut

from spear_lib.data.manifests import Manifest

OUTSIDE_TOLERANCE = 0.05
"""Seconds by which a supervision may begin before its cut or end after it: tables round times (ours)."""


class _Said(NamedTuple):
    """A supervision with text: times in s from the begin of its cut."""

    start: float
    end: float
    text: str


def transcript(cut: Cut) -> str:
    """The text of a cut with single spaces; several supervisions are joined in the order of their start.

    The one function for it: text units, training, scoring and probing read the same words.

    Raises:
      ValueError: the cut has no transcript, or one that is not of its audio (``text_outside``).
    """
    return _joined(cut.id, cut.duration, _said(cut))


def transcript_in(fields: dict[str, Any]) -> str:
    """``transcript`` for the JSON fields of a cut."""
    said = [
        _Said(each["start"], each["start"] + each["duration"], each["text"])
        for each in fields.get("supervisions") or ()
        if each.get("text") is not None
    ]
    return _joined(fields["id"], fields["duration"], said)


def text_outside(cut: Cut) -> str:
    """What is wrong where a supervision with text lies outside the cut's audio by more than
    ``OUTSIDE_TOLERANCE``; empty where nothing is."""
    return _outside(cut.id, cut.duration, _said(cut))


def _said(cut: Cut) -> list[_Said]:
    return [_Said(each.start, each.end, each.text) for each in cut.supervisions if each.text is not None]


def _joined(cut: str, seconds: float, said: list[_Said]) -> str:
    if not said:
        raise ValueError(f"cut {cut} has no transcript; use a transcribed set of cuts")
    if outside := _outside(cut, seconds, said):
        raise ValueError(outside)
    return " ".join(" ".join(each.text for each in sorted(said, key=lambda each: each.start)).split())


def _outside(cut: str, seconds: float, said: list[_Said]) -> str:
    for start, end, text in said:
        inside = start >= -OUTSIDE_TOLERANCE and end <= seconds + OUTSIDE_TOLERANCE
        if text and not inside:
            return (
                f"cut {cut} lasts {seconds:.2f} s and its supervision {text[:30]!r} goes from {start:.2f} to "
                f"{end:.2f} s, counted from the cut's begin: text and audio do not belong together. Correct "
                "the times, or cut at the supervisions (lhotse cut trim-to-supervisions)"
            )
    return ""


def references(manifest: Manifest) -> dict[str, str]:
    """Cut id -> transcript of every cut."""
    return {cut.id: transcript(cut) for cut in (manifest[index] for index in range(len(manifest)))}


def speaker(cut: Cut) -> str:
    """The speaker of a cut.

    Raises:
      ValueError: the cut has none, or several.
    """
    speakers = {s.speaker for s in cut.supervisions if s.speaker is not None}
    if len(speakers) != 1:
        raise ValueError(f"cut {cut.id} has {len(speakers)} speakers; exactly one is needed")
    return speakers.pop()
