"""Speech or general audio: which of the two a cut is (the paper's two domains)."""

from lhotse.cut import Cut

SPEECH, AUDIO = "speech", "audio"
DOMAINS = (SPEECH, AUDIO)


def domain_of(cut: Cut) -> str:
    """``audio`` where the cut's custom field ``domain`` says so (egs/audioset writes it), else ``speech``."""
    return AUDIO if (getattr(cut, "custom", None) or {}).get("domain") == AUDIO else SPEECH
