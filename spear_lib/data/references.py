"""Transcripts and speakers of cuts: what is trained on, scored and probed."""

from lhotse.cut import Cut

from spear_lib.data.manifests import Manifest

OUTSIDE_TOLERANCE = 0.05
"""Seconds by which a supervision may begin before its cut or end after it: tables round times (ours)."""


def transcript(cut: Cut) -> str:
    """The text of a cut with single spaces; several supervisions are joined in the order of their start.

    The one function for it: text units, training, scoring and probing read the same words.

    Raises:
      ValueError: the cut has no transcript, or one that is not of its audio (``text_outside``).
    """
    texts = [s.text for s in sorted(cut.supervisions, key=lambda s: s.start) if s.text is not None]
    if not texts:
        raise ValueError(f"cut {cut.id} has no transcript; use a transcribed set of cuts")
    if outside := text_outside(cut):
        raise ValueError(outside)
    return " ".join(" ".join(texts).split())


def text_outside(cut: Cut) -> str:
    """What is wrong where a supervision with text lies outside the cut's audio by more than
    ``OUTSIDE_TOLERANCE``; empty where nothing is."""
    for each in cut.supervisions:
        if each.text and not (
            each.start >= -OUTSIDE_TOLERANCE and each.end <= cut.duration + OUTSIDE_TOLERANCE
        ):
            return (
                f"cut {cut.id} lasts {cut.duration:.2f} s and its supervision {each.id} goes from "
                f"{each.start:.2f} to {each.end:.2f} s (0 is the cut's begin): text and audio do not belong "
                "together. Correct the times, or cut at supervisions (lhotse cut trim-to-supervisions)"
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
