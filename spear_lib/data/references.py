"""Transcripts and speakers of cuts, for scoring and probing."""

from lhotse.cut import Cut

from spear_lib.data.manifests import Manifest


def transcript(cut: Cut) -> str:
    """The text of a cut with single spaces; several supervisions are joined in the order of their start.

    Raises:
      ValueError: the cut has no transcript.
    """
    texts = [s.text for s in sorted(cut.supervisions, key=lambda s: s.start) if s.text is not None]
    if not texts:
        raise ValueError(f"cut {cut.id} has no transcript; use a transcribed set of cuts")
    return " ".join(" ".join(texts).split())


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
