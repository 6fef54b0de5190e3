"""Speech or general audio: which of the two a cut is (the paper's two domains)."""

from typing import Any

from lhotse.cut import Cut

SPEECH, AUDIO = "speech", "audio"
DOMAINS = (SPEECH, AUDIO)


def is_audio(custom: dict[str, Any] | None) -> bool:
    """Whether these custom fields of a cut make it audio (egs/audioset writes ``domain: audio``)."""
    return (custom or {}).get("domain") == AUDIO


def domain_of(cut: Cut) -> str:
    """``audio`` where the cut's custom field ``domain`` says so, else ``speech``."""
    return AUDIO if is_audio(getattr(cut, "custom", None)) else SPEECH
