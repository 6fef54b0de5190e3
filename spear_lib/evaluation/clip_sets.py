"""Labelled clips in parts: manifests of cuts or tables of files, with folds or train, valid and test."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lhotse.cut import Cut

from spear_lib.corpora.labelled_clips import labels_of
from spear_lib.data.audio_files import open_audio
from spear_lib.data.manifests import Manifest
from spear_lib.runtime import keyed_random
from spear_lib.runtime.tables import read_table

TRAIN, VALID, TEST = "train", "valid", "test"
_VALID_NAMES = ("valid", "dev", "validation")
SEPARATOR = ";"
VALID_SHARE = 0.1


@dataclass(frozen=True)
class Clip:
    """One clip, its labels and the part of the data it belongs to."""

    source: Cut | Path
    labels: tuple[str, ...]
    part: str

    def cut(self) -> Cut:
        """Its audio."""
        return open_audio(self.source) if isinstance(self.source, Path) else self.source

    @property
    def name(self) -> str:
        return str(self.source) if isinstance(self.source, Path) else self.source.id


def read_clips(paths: Iterable[str], label: str, split: str, part: str | None = None) -> list[Clip]:
    """Clips of manifests and tables.

    Args:
      paths: manifests (.jsonl, .jsonl.gz) or tables (.tsv, .csv) with a column "path" of audio, relative to
        the table.
      label: column of the label, several separated by ";". Of cuts: "speaker", "events" (the labels of
        labelled clips), "text" (the transcript), or a custom field of the cut or its supervision.
      split: column or custom field that holds the part (a fold, or train, valid or test).
      part: the part of all of them instead.

    Raises:
      ValueError: a clip without label or part, a missing column, or nothing at all.
    """
    clips: list[Clip] = []
    for path in map(Path, paths):
        if path.suffix in (".tsv", ".csv"):
            clips += _read_table(path, label, split, part)
            continue
        for cut in Manifest(path):
            labels = _labels_of_cut(cut, label)
            of_cut = part or str((cut.custom or {}).get(split, ""))
            if not labels or not of_cut:
                lacks = label if not labels else split
                raise ValueError(f"cut {cut.id} of {path} has no {lacks!r}: name another field, or add it")
            clips.append(Clip(cut, labels, of_cut))
    if not clips:
        raise ValueError(f"no clips in {', '.join(map(str, paths))}")
    return clips


def _labels_of_cut(cut: Cut, label: str) -> tuple[str, ...]:
    if label == "events":
        return tuple(labels_of(cut))
    if label == "text":
        return tuple(s.text for s in cut.supervisions if s.text)
    if label == "speaker":
        return tuple(sorted({s.speaker for s in cut.supervisions if s.speaker is not None}))
    found = [(cut.custom or {}).get(label), *((s.custom or {}).get(label) for s in cut.supervisions)]
    values = [
        one for value in found if value is not None for one in (value if isinstance(value, list) else [value])
    ]
    return tuple(dict.fromkeys(map(str, values)))


def _read_table(path: Path, label: str, split: str, part: str | None) -> list[Clip]:
    return [
        Clip(path.parent / row["path"], tuple(row[label].split(SEPARATOR)), part or row[split])
        for _, row in read_table(path, ("path", label, *(() if part else (split,))))
    ]


def rounds(clips: list[Clip], seed: int = 0) -> list[tuple[str, list[Clip], list[Clip], list[Clip]]]:
    """(name, train, valid, test) of every round.

    Parts train, (valid, dev) and test make one round; without a validation part a tenth of the training clips
    is taken. Other parts are folds: each is tested once, the one after it validates, the rest trains.

    Raises:
      ValueError: train without test, or fewer than three folds.
    """
    parts: dict[str, list[Clip]] = {}
    for clip in clips:
        parts.setdefault(VALID if clip.part in _VALID_NAMES else clip.part, []).append(clip)
    if TRAIN in parts or TEST in parts:
        if set(parts) - {TRAIN, VALID, TEST} or not {TRAIN, TEST} <= set(parts):
            raise ValueError(
                f"the parts are {', '.join(sorted(parts))}: train and test are needed, valid may be"
            )
        train, valid = parts[TRAIN], parts.get(VALID)
        if valid is None:
            ordered = sorted(train, key=lambda clip: keyed_random.key("valid clips", seed, clip.name))
            count = max(1, round(VALID_SHARE * len(train)))
            valid, train = ordered[:count], ordered[count:]
        return [(TEST, train, valid, parts[TEST])]
    names = sorted(parts)
    if len(names) < 3:
        raise ValueError(f"the parts are {', '.join(names)}: use train and test, or three folds or more")
    found = []
    for index, name in enumerate(names):
        valid = names[(index + 1) % len(names)]
        train = [clip for other in names if other not in (name, valid) for clip in parts[other]]
        found.append((name, train, parts[valid], parts[name]))
    return found
