"""The cuts that probes learn from and are tested on, with whatever labels they carry.

What can be asked of a cut follows from its labels: the words of a transcript, the speaker, the sound events
of ``spear_lib.corpora.labelled_clips``. Sets of several corpora may carry different ones.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from lhotse.cut import Cut

from spear_lib.corpora.labelled_clips import labels_of
from spear_lib.data.domains import DOMAINS, domain_of
from spear_lib.data.manifests import Manifest
from spear_lib.data.references import text_outside, transcript
from spear_lib.runtime import keyed_random

logger = logging.getLogger(__name__)

CANDIDATES = 50
"""Times the wanted number of cuts that are looked at in a manifest: of millions, nobody needs to read all."""


@dataclass(frozen=True)
class Labels:
    """What a cut is known to hold; None or empty where nothing is known."""

    words: tuple[str, ...] = ()
    """Different words of the transcript, sorted."""
    speaker: str | None = None
    """None also where several speak."""
    session: str | None = None
    """In which session the speaker was recorded: the custom field ``session`` of the supervision."""
    events: tuple[str, ...] = ()
    """Sound event labels, for AudioSet mids."""

    def __bool__(self) -> bool:
        return bool(self.words or self.speaker or self.events)

    @classmethod
    def of(cls, cut: Cut) -> "Labels":
        spoken = any(supervision.text for supervision in cut.supervisions) and not text_outside(cut)
        speakers = {s.speaker for s in cut.supervisions if s.speaker is not None}
        sessions = {(s.custom or {}).get("session") for s in cut.supervisions}
        return cls(
            words=tuple(sorted(set(transcript(cut).split()))) if spoken else (),
            speaker=speakers.pop() if len(speakers) == 1 else None,
            session=sessions.pop() if len(sessions) == 1 else None,
            events=tuple(sorted(set(labels_of(cut)))),
        )


@dataclass
class LabelledCuts:
    """A set of cuts to probe; the lists belong together."""

    ids: list[str] = field(default_factory=list)
    """Cut ids."""
    labels: list[Labels] = field(default_factory=list)
    """What each of them carries."""
    manifests: list[tuple[Manifest, list[int]]] = field(default_factory=list)
    """Where the audio is: manifest and positions, in the order of ``ids``."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def speakers(self) -> list[str]:
        """Names of the speakers, of the cuts that have one."""
        return [labels.speaker for labels in self.labels if labels.speaker is not None]

    @property
    def sessions(self) -> list[str]:
        """In which session each of them was recorded: where that is not known every cut counts as one."""
        named = zip(self.ids, self.labels)
        return [labels.session or id for id, labels in named if labels.speaker is not None]

    def speakers_recorded_twice(self) -> set[str]:
        """Who was recorded in more than one session."""
        sessions = Counter(who for who, _ in set(zip(self.speakers, self.sessions)))
        return {who for who, count in sessions.items() if count > 1}

    def rows(self, kind: str) -> list[int]:
        """Positions of the cuts with labels of a kind: ``words``, ``speaker`` or ``events``."""
        return [row for row, labels in enumerate(self.labels) if getattr(labels, kind)]

    def describe(self) -> str:
        """``"400 cuts (words 400, speaker 400)"``."""
        counts = {kind: len(self.rows(kind)) for kind in ("words", "speaker", "events")}
        parts = [f"{kind} {count}" for kind, count in counts.items() if count]
        return f"{len(self)} cuts ({', '.join(parts) or 'no labels'})"


class _Candidate(NamedTuple):
    """A cut to choose from; sorts by the key of its id."""

    key: int
    manifest: int
    row: int
    id: str
    labels: Labels


def read_cuts(
    paths: Sequence[str],
    max_cuts: int,
    seed: int,
    per_speaker: int = 1,
    accepts: Callable[[np.ndarray], np.ndarray] | None = None,
) -> LabelledCuts:
    """Labelled cuts of several manifests, chosen by the key of their ids; cuts without labels are left out.

    Args:
      paths: manifests; speech and audio may be mixed.
      max_cuts: most cuts of each domain (0: all). Speakers take turns, so that few do not crowd out the
        others; cuts without a speaker are taken at random.
      seed: of the choice.
      per_speaker: cuts that a speaker gives in a turn.
      accepts: durations in seconds (U,) -> (U,) bool, which of them are fit; all by default.
    """
    manifests = [Manifest(path) for path in paths]
    candidates: dict[str, list[_Candidate]] = {domain: [] for domain in DOMAINS}
    unlabelled = 0
    for number, manifest in enumerate(manifests):
        fit = np.ones(len(manifest), dtype=bool) if accepts is None else accepts(manifest.durations)
        keys = ((keyed_random.key("probe", seed, id), row) for row, id in enumerate(manifest.ids) if fit[row])
        for key, row in sorted(keys)[: CANDIDATES * max_cuts or None]:
            cut = manifest[row]
            if labels := Labels.of(cut):
                candidates[domain_of(cut)].append(_Candidate(key, number, row, cut.id, labels))
            else:
                unlabelled += 1
    if unlabelled:
        logger.info("%d cuts without transcript, speaker or sound events are not probed", unlabelled)
    chosen = [
        item for found in candidates.values() for item in _in_turns(found, per_speaker)[: max_cuts or None]
    ]
    result = LabelledCuts(manifests=[(manifest, []) for manifest in manifests])
    for item in sorted(chosen, key=lambda item: (item.manifest, item.row)):
        result.manifests[item.manifest][1].append(item.row)
        result.ids.append(item.id)
        result.labels.append(item.labels)
    return result


def _in_turns(candidates: list[_Candidate], per_speaker: int) -> list[_Candidate]:
    """In the order of their keys, but ``per_speaker`` cuts of everyone before more of anyone; of a turn those
    first who can fill it."""
    groups: dict[str, list[_Candidate]] = {}
    for item in sorted(candidates):
        groups.setdefault(item.labels.speaker or f"cut {item.id}", []).append(item)
    turns = [
        (start, group[start : start + per_speaker])
        for group in groups.values()
        for start in range(0, len(group), per_speaker)
    ]
    turns.sort(key=lambda turn: (turn[0], -len(turn[1]), turn[1][0]))
    return [item for _, turn in turns for item in turn]
