"""Small real corpora in tables: AN4, the TIMIT sample of NLTK, excerpts of AMI (for stage 15).

utterances.tsv   utt, speaker, path, text and, of AN4, split
recordings.tsv, segments.tsv   recording, split, path; recording, start, duration, speaker
"""

import re
from pathlib import Path

from lhotse import SupervisionSegment

from spear_lib.corpora.benchmarks.common import (
    TEST,
    TRAIN,
    VALID,
    Labelled,
    Read,
    clip_cut,
    recording_of,
    rows_of,
    share,
)
from spear_lib.data.audio import cut_of

# Lee & Hon 1989: 61 phones as 39; what is no phone is left out.
FOLDED = {
    "ao": "aa",
    "ax": "ah",
    "ax-h": "ah",
    "axr": "er",
    "hv": "hh",
    "ix": "ih",
    "el": "l",
    "em": "m",
    "en": "n",
    "nx": "n",
    "eng": "ng",
    "zh": "sh",
    "ux": "uw",
}
NO_PHONES = {"h#", "pau", "epi", "q", "bcl", "dcl", "gcl", "pcl", "tcl", "kcl"}


def an4_asr(folder: Path, read: Read) -> Labelled:
    """Transcripts; the original test set, and one in ten training speakers for validation."""
    for row in _utterances(folder, "split"):
        valid = share(row["speaker"], "AN4 validation speakers") < 0.1
        part = TEST if row["split"] == "test" else (VALID if valid else TRAIN)
        yield part, clip_cut(folder / row["path"], row["utt"], row["speaker"], row["text"], _label(row))


def an4_sid(folder: Path, read: Read) -> Labelled:
    """The training speakers: of each one in ten utterances validates, one in five is tested."""
    for row in _utterances(folder, "split"):
        if row["split"] == "train":
            place = share(row["utt"], "AN4 identification")
            part = TEST if place < 0.2 else (VALID if place < 0.3 else TRAIN)
            yield part, clip_cut(folder / row["path"], row["utt"], row["speaker"], row["text"], _label(row))


def an4_asv(folder: Path, read: Read) -> Labelled:
    """Speakers of the original test set are compared; one in five training speakers validates."""
    for row in _utterances(folder, "split"):
        valid = share(row["speaker"], "AN4 verification") < 0.2
        part = TEST if row["split"] == "test" else (VALID if valid else TRAIN)
        yield part, clip_cut(folder / row["path"], row["utt"], row["speaker"], row["text"])


def timit_qbe(folder: Path, read: Read) -> Labelled:
    """Words of four letters or more out of the two sentences that all speakers say are queries, those of
    regions 1 and 2 for development, of 3 and 4 for evaluation; documents are the sentences of regions 5 to
    8."""
    words: dict[str, list[tuple[str, float, float]]] = {}
    for row in rows_of(folder / "words.tsv", ("utt", "word", "start_sample", "end_sample")):
        times = (int(row[name]) / 16000 for name in ("start_sample", "end_sample"))
        words.setdefault(row["utt"], []).append((row["word"], *times))
    for row in _utterances(folder, "dialect", "sentence_type"):
        path, region = folder / row["path"], int(row["dialect"][2:])
        if region > 4:
            text = re.sub(r"[^a-z' ]", " ", row["text"].lower())
            yield TRAIN, clip_cut(path, row["utt"], row["speaker"], " ".join(text.split()))
        elif row["sentence_type"] == "sa":
            for number, (word, start, end) in enumerate(words[row["utt"]]):
                if len(word) >= 4:
                    cut = clip_cut(
                        path, f"{row['utt']}-{number}", row["speaker"], word, None, start, end - start
                    )
                    yield VALID if region < 3 else TEST, cut


def timit_pr(folder: Path, read: Read) -> Labelled:
    """39 phones; regions 7 and 8 are tested, 6 validates; sa sentences, the same for all, are left out."""
    phones: dict[str, list[str]] = {}
    for row in rows_of(folder / "phones.tsv", ("utt", "phone")):
        if row["phone"] not in NO_PHONES:
            phones.setdefault(row["utt"], []).append(FOLDED.get(row["phone"], row["phone"]))
    for row in _utterances(folder, "dialect", "sentence_type"):
        if row["sentence_type"] != "sa":
            part = {"dr6": VALID, "dr7": TEST, "dr8": TEST}.get(row["dialect"], TRAIN)
            text = " ".join(phones[row["utt"]])
            yield part, clip_cut(folder / row["path"], row["utt"], row["speaker"], text)


def ami_excerpts(folder: Path, read: Read) -> Labelled:
    """Who speaks when, in excerpts of 30 s of meetings."""
    segments: dict[str, list[SupervisionSegment]] = {}
    for row in rows_of(folder / "segments.tsv", ("recording", "start", "duration", "speaker")):
        own = segments.setdefault(row["recording"], [])
        times = float(row["start"]), float(row["duration"])
        own.append(
            SupervisionSegment(
                f"{row['recording']}-{len(own)}", row["recording"], *times, speaker=row["speaker"]
            )
        )
    for row in rows_of(folder / "recordings.tsv", ("recording", "split", "path")):
        part = VALID if row["split"] == "dev" else row["split"]
        cut = cut_of(recording_of(folder / row["path"]), row["recording"])
        cut.supervisions = segments.get(row["recording"], [])
        yield part, cut


def _utterances(folder: Path, *columns: str) -> list[dict[str, str]]:
    return rows_of(folder / "utterances.tsv", ("utt", "speaker", "path", "text", *columns))


def _label(row: dict[str, str]) -> dict[str, str]:
    return {"label": row["speaker"]}
