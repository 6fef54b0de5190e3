"""Who speaks in the mini corpus: varied, natural-sounding voices, no two of them alike (ours)."""

from dataclasses import dataclass

import numpy as np

from spear_lib.runtime.keyed_random import generator

ACCENTS = {"us": "en-us", "gb": "en", "rp": "en-gb-x-rp", "scotland": "en-gb-scotland"}
"""Our name -> espeak-ng's voice name."""

# espeak-ng's voice variants without the whispering, croaking, echoing and robot ones.
MALE_VARIANTS = (
    *("m1", "m2", "m3", "m4", "m6", "m7", "m8", "Alex", "Andy", "Gene"),
    *("Mike", "Michael", "max", "pedro", "rob", "robert", "paul", "antonio", "Mario", "victor"),
)
FEMALE_VARIANTS = ("f1", "f2", "f3", "f4", "f5", "Annie", "Andrea", "linda", "steph", "steph3")


@dataclass(frozen=True)
class Voice:
    """One speaker. Disjoint sets of speakers never share the pair (accent, variant)."""

    speaker: int
    """Number in the corpus."""
    gender: str
    """"F" or "M"."""
    accent: str
    """A key of ACCENTS."""
    variant: str
    """espeak-ng's voice variant."""
    pitch: int
    """0 to 100; 50 is the variant's own."""
    pitch_range: int
    """0 (monotone) to 100; 50 is the variant's own."""
    rate: float
    """Words per minute."""
    tract: float
    """Factor on all frequencies: above 1 is a shorter vocal tract."""
    tilt: float
    """Spectral tilt, dB between 250 Hz and 4 kHz."""

    @property
    def espeak_name(self) -> str:
        """What espeak-ng calls the voice."""
        return f"{ACCENTS[self.accent]}+{self.variant}"

    @property
    def name(self) -> str:
        """A readable name for SPEAKERS.TXT."""
        return f"{self.variant} {self.accent}"


def choose_voices(
    seed: int, counts: list[int], first_speakers: list[int], accents: list[str], spread: float
) -> list[list[Voice]]:
    """Draws disjoint groups of voices, each half female and half male (as far as numbers are even).

    Args:
      counts: voices per group.
      first_speakers: the number of the first speaker of each group; the others count on from it.
      accents: keys of ACCENTS to draw from.
      spread: 0 gives every voice the same pitch, rate, tract and tilt; 1 is the default variety.
    """
    unknown = [accent for accent in accents if accent not in ACCENTS]
    if unknown or not accents:
        raise ValueError(f"unknown accents {unknown}: choose from {', '.join(ACCENTS)}")
    decks = {}
    for gender, variants in (("F", FEMALE_VARIANTS), ("M", MALE_VARIANTS)):
        # Accents take turns, and neighbours differ in variant too: every group, and the few labelled speakers
        # in it, is as varied as it can be.
        random = generator(seed, "voices", gender)
        shuffled = [variants[int(position)] for position in random.permutation(len(variants))]
        accent_order = [accents[int(position)] for position in random.permutation(len(accents))]
        shift = max(1, len(variants) // len(accents))
        decks[gender] = [
            (accent, shuffled[(row + column * shift) % len(variants)])
            for row in range(len(variants))
            for column, accent in enumerate(accent_order)
        ]
    groups = []
    for count, first in zip(counts, first_speakers):
        group = []
        for index in range(count):
            # When the female voices are used up, the (more numerous) male ones go on.
            gender = "FM"[index % 2] if decks["FM"[index % 2]] else "MF"[index % 2]
            if not decks[gender]:
                available = len(accents) * (len(FEMALE_VARIANTS) + len(MALE_VARIANTS))
                raise ValueError(
                    f"{sum(counts)} different voices are wanted, {available} exist for the accents "
                    f"{', '.join(accents)}: lower --num-train-voices or add accents"
                )
            accent, variant = decks[gender].pop(0)
            group.append(_draw(seed, first + index, gender, accent, variant, spread))
        groups.append(group)
    return groups


def _draw(seed: int, speaker: int, gender: str, accent: str, variant: str, spread: float) -> Voice:
    random = generator(seed, "voice", speaker)

    def around(centre: float, width: float) -> float:
        return float(np.round(centre + spread * width * random.uniform(-1.0, 1.0), 3))

    return Voice(
        speaker=speaker,
        gender=gender,
        accent=accent,
        variant=variant,
        pitch=int(np.clip(around(48, 18), 5, 95)),
        pitch_range=int(np.clip(around(50, 20), 5, 95)),
        rate=float(np.clip(around(160, 20), 90, 260)),
        tract=float(np.clip(around(1.0, 0.05), 0.8, 1.2)),
        tilt=around(0.0, 2.0),
    )
