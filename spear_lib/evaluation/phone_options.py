"""What evaluate_abx and evaluate_units share: alignments, their audio, and what is measured on them."""

from dataclasses import dataclass, field

from spear_lib.evaluation.alignments import Phone, read_phones, read_speakers, with_speakers
from spear_lib.evaluation.audio_by_name import NamedAudio
from spear_lib.evaluation.measured import MeasureOptions, by_name, fingerprint


@dataclass(frozen=True, kw_only=True)
class PhoneOptions(MeasureOptions):
    """Encoders and token stores, and phones with times."""

    alignments: list[str]
    """Phones with their times: item files, tables (.tsv, .csv), .TextGrid, .ctm, or folders of them."""
    audio: list[str]
    """Audio of the files that the alignments name: folders of audio, files, or manifests of cuts; for token
    stores a manifest of the cuts that they were made for."""
    stores: list[str] = field(default_factory=list)
    """Token stores to measure, each ``PATH`` or ``NAME=PATH``."""
    speakers: str | None = None
    """Table (.tsv, .csv) with the columns utt and speaker; by default the alignments' own speakers, else what
    a file's name begins with, up to the first "-"."""
    sample_rate: int = 16000
    """Of times that tables give in samples."""

    def named_stores(self) -> dict[str, str]:
        """Name -> token store."""
        return by_name(self.stores, "stores")

    def read(self) -> tuple[list[Phone], NamedAudio, list[str]]:
        """Phones with speakers, audio, and the names of the files that both have."""
        speakers = read_speakers(self.speakers) if self.speakers else None
        phones = with_speakers(read_phones(self.alignments, self.sample_rate), speakers)
        audio = NamedAudio(self.audio)
        names = sorted({phone.file for phone in phones})
        audio.check(names)
        return phones, audio, names


def phones_fingerprint(phones: list[Phone]) -> str:
    """Of labels, times, neighbours and speakers."""
    rows = [
        [one.file, str(one.start), str(one.end), one.label, one.previous, one.next, one.speaker]
        for one in phones
    ]
    return fingerprint(rows)
