"""A corpus of synthetic sound clips in the layout of AudioSet (ours; layout of research.google.com/audioset).

``OUTPUT/AudioSet`` holds the three segment tables, ``class_labels_indices.csv``, ``ontology.json`` (only the
classes that occur, without their parents), tables of strong labels, and
``audio/<part>/YTID_<start in ms>.flac``.
"""

import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile

from spear_lib.corpora.clip_tables import AUDIOSET_PARTS, read_class_list
from spear_lib.runtime.keyed_random import generator
from tools.synthesis.events import EVENTS
from tools.synthesis.layout import FACTS_FILE, FORMAT_VERSION
from tools.synthesis.rooms import NOISE_COLOURS, SAMPLE_RATE, coloured_noise, rms, to_int16
from tools.synthesis.workers import run_fresh

CLASS_LIST = Path(__file__).resolve().parents[2] / "egs" / "audioset" / "local" / "class_labels_indices.csv"
CLIP_SECONDS = 10.0
SHORTEST_SECONDS = 2.0
MAX_LABELS = 3
CLIPS_PER_JOB = 20
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@dataclass(frozen=True)
class ClipOptions:
    """What decides every byte of the corpus."""

    seed: int = 0
    balanced_minutes: float = 20.0
    """Of balanced_train: every class about as often."""
    unbalanced_minutes: float = 40.0
    """Of unbalanced_train: some classes are much more frequent than others."""
    eval_minutes: float = 30.0
    num_classes: int = len(EVENTS)
    """Classes that occur."""
    short_share: float = 0.1
    """Share of the clips that are shorter than 10 s."""
    missing_share: float = 0.02
    """Share of the clips that are in the tables but not on disk, as with the real corpus."""

    def __post_init__(self):
        for name in ("balanced_minutes", "unbalanced_minutes", "eval_minutes"):
            if getattr(self, name) * 60 < CLIP_SECONDS:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, at least one clip (0.17 minutes) is needed"
                )
        if not MAX_LABELS <= self.num_classes <= len(EVENTS):
            raise ValueError(
                f"num_classes is {self.num_classes}, it must be between {MAX_LABELS} and {len(EVENTS)}"
            )
        for name in ("short_share", "missing_share"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 0 and below 1")


@dataclass(frozen=True)
class Event:
    """One sound in a clip."""

    name: str
    """AudioSet's display name."""
    start: float
    """s from the start of the clip."""
    seconds: float
    level: float
    """RMS in dB relative to full scale."""


@dataclass(frozen=True)
class PlannedClip:
    """What is to be heard in a clip, and how the tables call it."""

    ytid: str
    start: int
    """Where in the (imagined) video the clip starts, s."""
    table_seconds: float
    """end - start in the table."""
    seconds: float
    events: tuple[Event, ...]
    missing: bool

    @property
    def segment(self) -> str:
        """AudioSet's id of a segment."""
        return f"{self.ytid}_{1000 * self.start}"

    @property
    def names(self) -> list[str]:
        """The classes of the clip, each once."""
        return list(dict.fromkeys(event.name for event in self.events))


@dataclass(frozen=True)
class ClipsJob:
    """Some clips of one part; made in one fresh process."""

    seed: int
    clips: tuple[PlannedClip, ...]
    folder: str


def plan_part(part: str, options: ClipOptions) -> list[PlannedClip]:
    """The clips of one part."""
    random = generator(options.seed, "clips", part)
    minutes = {
        "eval": options.eval_minutes,
        "balanced_train": options.balanced_minutes,
        "unbalanced_train": options.unbalanced_minutes,
    }[part]
    names = list(EVENTS)
    names = [names[index] for index in _spread(len(names), options.num_classes)]
    supply = _frequent(names, options.seed, random) if part == "unbalanced_train" else _in_turn(names, random)
    clips: list[PlannedClip] = []
    total = 0.0
    while total < minutes * 60:
        clips.append(_plan_clip(part, len(clips), supply, options, random))
        total += clips[-1].seconds
    return clips


def _spread(count: int, wanted: int) -> list[int]:
    """``wanted`` of the positions 0..count-1, evenly spread, so that few classes are not all alike."""
    return [position * count // wanted for position in range(wanted)]


def _in_turn(names: list[str], random: np.random.Generator):
    """Every class once before any comes again."""
    while True:
        yield from (names[index] for index in random.permutation(len(names)))


def _frequent(names: list[str], seed: int, random: np.random.Generator):
    """Classes by a law of few frequent and many rare ones."""
    ranks = generator(seed, "class frequencies").permutation(len(names))
    weights = 1.0 / (ranks + 4.0)
    while True:
        yield names[int(random.choice(len(names), p=weights / weights.sum()))]


def _plan_clip(
    part: str, index: int, supply, options: ClipOptions, random: np.random.Generator
) -> PlannedClip:
    # Real ids are 11 such letters; the first of them may well be a dash.
    name = generator(options.seed, "ytid", part, index)
    ytid = "".join(_LETTERS[int(letter)] for letter in name.integers(len(_LETTERS), size=11))
    clip_seconds, table_seconds = CLIP_SECONDS, CLIP_SECONDS
    if random.random() < options.short_share:
        clip_seconds = round(float(random.uniform(SHORTEST_SECONDS, CLIP_SECONDS - 1.0)), 2)
        # Either the video ended there, or the table does not know that the file is short.
        table_seconds = clip_seconds if random.random() < 0.5 else CLIP_SECONDS
    events = []
    for class_name in _distinct(supply, int(random.choice(MAX_LABELS, p=(0.4, 0.4, 0.2))) + 1):
        length = clip_seconds * float(random.uniform(0.4, 1.0))
        start = float(random.uniform(0.0, clip_seconds - length))
        events.append(
            Event(class_name, round(start, 3), round(length, 3), round(float(random.uniform(-34, -20)), 1))
        )
    missing = bool(random.random() < options.missing_share)
    return PlannedClip(
        ytid, 10 * int(random.integers(30)), table_seconds, clip_seconds, tuple(events), missing
    )


def _distinct(supply, count: int) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        name = next(supply)
        if name not in names:
            names.append(name)
    return names


def make_clip(clip: PlannedClip, seed: int) -> np.ndarray:
    """The samples of a clip, (N,) int16: its events over soft background noise."""
    random = generator(seed, "clip", clip.ytid)
    num_samples = round(clip.seconds * SAMPLE_RATE)
    colour = NOISE_COLOURS[str(random.choice(list(NOISE_COLOURS)))]
    mixture = coloured_noise(num_samples, colour, random) * 10.0 ** (random.uniform(-62, -45) / 20.0)
    for event in clip.events:
        length = min(round(event.seconds * SAMPLE_RATE), num_samples)
        begin = min(round(event.start * SAMPLE_RATE), num_samples - length)
        sound = EVENTS[event.name](length, random)
        fade = np.minimum(1.0, np.arange(1, length + 1) / (0.03 * SAMPLE_RATE))
        sound = sound * fade * fade[::-1]
        mixture[begin : begin + length] += sound * (10.0 ** (event.level / 20.0) / max(rms(sound), 1e-9))
    return to_int16(mixture)


def make_clips(job: ClipsJob) -> None:
    """Writes the files of one job."""
    for clip in job.clips:
        path = Path(job.folder) / f"{clip.segment}.flac"
        soundfile.write(path, make_clip(clip, job.seed), SAMPLE_RATE, subtype="PCM_16")


def make_clip_corpus(output: Path, options: ClipOptions, num_processes: int = 2) -> dict:
    """Synthesises ``output``/AudioSet; returns the facts that it also writes to ``output``/corpus.json.

    Everything is made in ``output``.tmp and renamed at the end, so ``output`` is complete where it exists.
    """
    unfinished = output.with_name(output.name + ".tmp")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    corpus = unfinished / "AudioSet"
    corpus.mkdir(parents=True)
    mids = {name: mid for mid, name in read_class_list(CLASS_LIST).items()}
    parts = {part: plan_part(part, options) for part in AUDIOSET_PARTS}
    jobs = []
    for part, clips in parts.items():
        folder = corpus / "audio" / part
        folder.mkdir(parents=True)
        (corpus / AUDIOSET_PARTS[part]).write_text(_segments_table(clips, mids))
        present = [clip for clip in clips if not clip.missing]
        for begin in range(0, len(present), CLIPS_PER_JOB):
            jobs.append(ClipsJob(options.seed, tuple(present[begin : begin + CLIPS_PER_JOB]), str(folder)))
    shutil.copyfile(CLASS_LIST, corpus / "class_labels_indices.csv")
    used = sorted({name for clips in parts.values() for clip in clips for name in clip.names})
    (corpus / "ontology.json").write_text(_ontology(used, mids))
    train = parts["balanced_train"] + parts["unbalanced_train"]
    (corpus / "audioset_train_strong.tsv").write_text(_strong_table(train, mids))
    (corpus / "audioset_eval_strong.tsv").write_text(_strong_table(parts["eval"], mids))
    errors = unfinished / "errors"
    errors.mkdir()
    run_fresh(make_clips, jobs, num_processes, errors, "synthesising sound clips", "jobs")
    shutil.rmtree(errors)
    facts = {
        "kind": "events",
        "format_version": FORMAT_VERSION,
        "options": asdict(options),
        "minutes": {
            part: round(sum(clip.seconds for clip in clips) / 60, 2) for part, clips in parts.items()
        },
        "clips": {part: len(clips) for part, clips in parts.items()},
        "missing": {part: sum(clip.missing for clip in clips) for part, clips in parts.items()},
        "classes": used,
    }
    (unfinished / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n")
    unfinished.rename(output)
    return facts


def _segments_table(clips: list[PlannedClip], mids: dict[str, str]) -> str:
    counts = Counter(name for clip in clips for name in clip.names)
    lines = [
        "# Segments csv created by tools/synthesize_corpus.py: these videos do not exist\n",
        f"# num_ytids={len(clips)}, num_segs={len(clips)}, num_unique_labels={len(counts)}, "
        f"num_positive_labels={counts.total()}\n",
        "# YTID, start_seconds, end_seconds, positive_labels\n",
    ]
    for clip in sorted(clips, key=lambda clip: clip.ytid):
        labels = ",".join(sorted(mids[name] for name in clip.names))
        lines.append(f'{clip.ytid}, {clip.start:.3f}, {clip.start + clip.table_seconds:.3f}, "{labels}"\n')
    return "".join(lines)


def _strong_table(clips: list[PlannedClip], mids: dict[str, str]) -> str:
    lines = ["segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"]
    for clip in sorted(clips, key=lambda clip: clip.ytid):
        for event in sorted(clip.events, key=lambda event: event.start):
            end = event.start + event.seconds
            lines.append(f"{clip.segment}\t{event.start:.3f}\t{end:.3f}\t{mids[event.name]}\n")
    return "".join(lines)


def _ontology(names: list[str], mids: dict[str, str]) -> str:
    entries = [
        {
            "id": mids[name],
            "name": name,
            "description": "Synthesised by tools/synthesize_corpus.py",
            "citation_uri": "",
            "positive_examples": [],
            "child_ids": [],
            "restrictions": [],
        }
        for name in names
    ]
    return json.dumps(entries, indent=1) + "\n"
