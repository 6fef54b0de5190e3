#!/usr/bin/env python3
"""Stage 1 of a part: cuts of its recordings (local/recordings.py), sets train and dev.

Cuts are at most 10 s long. Half of the training speech, by the key of its id, is heard in a room: lhotse
convolves it with an impulse response whenever it is read, so that the teacher hears the room, too.
"""

import argparse
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from lhotse import Recording, SupervisionSegment
from lhotse.cut import Cut
from recordings import READERS, ROOM_SHARE, ROOMS, TRAIN, Item
from scipy.signal import resample_poly

from spear_lib.bin.common import run
from spear_lib.corpora.speech_corpora import limit_length
from spear_lib.corpora.validation import validate_cuts
from spear_lib.data.audio import check_rate, cut_of
from spear_lib.data.manifests import save_cuts
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.runtime.files import atomic_file
from spear_lib.runtime.keyed_random import generator

logger = logging.getLogger("prepare_part")

MAX_SECONDS = 10.0
PAUSE_SECONDS = 0.15
JOINED_LEVEL = 0.05  # root mean square of a joined recording


def joined(paths: tuple[Path, ...], target: Path) -> Path:
    """One file at 16 kHz of several, with pauses between them, all at one level."""
    pieces = []
    for path in paths:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        check_rate(rate, str(path))
        piece = resample_poly(samples.mean(1), SAMPLE_RATE, rate)
        pieces += [piece, np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE), np.float32)]
    whole = np.concatenate(pieces[:-1])
    whole *= JOINED_LEVEL / max(float(np.sqrt(np.mean(whole**2))), 1e-6)
    target.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(target, np.clip(whole, -1.0, 1.0), SAMPLE_RATE, subtype="PCM_16")
    return target


def cut_from(item: Item, domain: str, strings: Path) -> Cut:
    """The cut of one item."""
    single = len(item.paths) == 1
    path = item.paths[0] if single else joined(item.paths, strings / f"{item.id}.flac")
    recording = Recording.from_file(path.resolve(), recording_id=item.id)
    who = None
    if item.speaker:
        who = SupervisionSegment(item.id, item.id, 0.0, recording.duration, speaker=item.speaker)
    return cut_of(
        recording, item.id, supervision=who, custom={"domain": "audio"} if domain == "audio" else None
    )


def first_of_each(items: Iterable[Item], count: int) -> Iterator[Item]:
    """The first ``count`` of each set (0: all)."""
    seen: Counter[str] = Counter()
    for item in items:
        seen[item.set] += 1
        if not count or seen[item.set] <= count:
            yield item


def in_a_room(cut: Cut, rooms: list[Recording]) -> Cut:
    """The cut itself, or as it sounds in one of the rooms; which, its id decides."""
    random = generator("room", cut.id)
    if not rooms or float(random.random()) >= ROOM_SHARE or cut.sampling_rate != SAMPLE_RATE:
        return cut
    room = rooms[int(random.integers(len(rooms)))]
    cut.recording = cut.recording.reverb_rir(room, affix_id=False)
    return cut


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--corpus", required=True, choices=sorted(READERS), help="which part")
    parser.add_argument("--corpus-dir", type=Path, required=True, help="folder that holds its corpora")
    parser.add_argument("--output", type=Path, required=True, help="folder for the manifests")
    parser.add_argument("--num-jobs", type=int, default=2, help="files read at the same time")
    parser.add_argument("--max-recordings", type=int, default=0, help="of each corpus and set (0: all)")
    arguments = parser.parse_args(argv)
    part, folder = arguments.corpus, arguments.corpus_dir.resolve()
    missing = [name for name in READERS[part] if not (folder / name).is_dir()]
    if missing:
        raise ValueError(
            f"{folder} has no folder {', '.join(missing)}, which the part {part} is made of: complete it, or "
            "change READERS in local/recordings.py"
        )
    strings = arguments.output.resolve().parent / "strings"
    rooms = [Recording.from_file(path) for path in sorted((folder / ROOMS).glob("*.flac"))]
    items = [
        item
        for name, read in READERS[part].items()
        for item in first_of_each(read(folder / name), arguments.max_recordings)
    ]
    facts: dict[str, object] = {}
    for name in (TRAIN, "dev"):
        cuts = [cut_from(item, part, strings) for item in items if item.set == name]
        if name == TRAIN and part == "speech":
            cuts = [in_a_room(cut, rooms) for cut in cuts]
        cuts, problems = validate_cuts(
            limit_length(cuts, MAX_SECONDS),
            need_text=False,
            num_jobs=arguments.num_jobs,
            description=f"checking {part}, {name}",
        )
        problems.log()
        save_cuts(cuts, arguments.output / f"{part}_cuts_{name}.jsonl.gz")
        seconds = sum(cut.duration for cut in cuts)
        in_rooms = sum(bool(cut.recording.transforms) for cut in cuts)
        facts[name] = {"cuts": len(cuts), "hours": round(seconds / 3600, 4), "in rooms": in_rooms}
        logger.info(
            "%s, %-5s %5d cuts %5.1f minutes, %d in rooms", part, name, len(cuts), seconds / 60, in_rooms
        )
    with atomic_file(arguments.output / f"{part}_statistics.json") as file:
        file.write((json.dumps(facts, indent=1) + "\n").encode())


if __name__ == "__main__":
    run(main)
