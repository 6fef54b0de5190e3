#!/usr/bin/env python3
"""Stage 1: lhotse cuts of every set with their labels, and statistics about them.

Sets: eval; balanced (balanced_train, what fine-tuning reads the labels of); dev (some clips of
unbalanced_train, or of balanced_train where there is no other); train (all of both that is not in dev).
A clip of eval is in no other set.

Of several channels the mean is read, everywhere (docs/troubleshooting.md). A file that is longer than its
line says gives the stretch that the line labels.
"""

import argparse
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from heapq import nsmallest
from itertools import chain
from pathlib import Path

from lhotse.cut import Cut

from spear_lib.bin.common import run
from spear_lib.corpora.clip_tables import AUDIOSET_PARTS, Clip, read_audioset_segments, read_class_list
from spear_lib.corpora.labelled_clips import ClipChecks, ClipFiles, ClipProblems, clip_cuts, labels_of
from spear_lib.data.manifests import save_cuts
from spear_lib.runtime.files import atomic_file
from spear_lib.runtime.keyed_random import key
from spear_lib.runtime.progress import progress

logger = logging.getLogger("prepare_manifests")

CORPUS = "audioset"
CLASS_LIST = "class_labels_indices.csv"
NEEDED = ("eval", "balanced_train")
DEV_SHARE = 0.15


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--corpus-dir", type=Path, required=True, help="folder that holds AudioSet (stage 0)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the manifests")
    parser.add_argument("--num-jobs", type=int, default=2, help="files read at the same time")
    parser.add_argument(
        "--dev-clips", type=int, default=2000, help="clips of dev, at most 15 %% of those it is chosen from"
    )
    parser.add_argument(
        "--max-missing-fraction",
        type=float,
        default=0.3,
        help="of a table's clips that may be missing on disk",
    )
    parser.add_argument(
        "--max-bad-fraction", type=float, default=0.01, help="of a table's clips that may be bad otherwise"
    )
    parser.add_argument(
        "--decode",
        choices=("true", "false"),
        default="true",
        help="decode every sample, not the headers alone",
    )
    return parser.parse_args(argv)


def read_classes(corpus: Path) -> dict[str, str]:
    """{mid: name}: the corpus' own list of classes, or the copy of AudioSet's beside this script."""
    path = corpus / CLASS_LIST
    return read_class_list(path if path.is_file() else Path(__file__).with_name(CLASS_LIST))


def choose_dev(clips: Iterable[Clip], count: int) -> set[str]:
    """Ids of ``count`` clips, at most 15 % of all: the same ones whatever else is in the table."""
    names = [clip.id for clip in clips]
    return set(nsmallest(min(count, int(DEV_SHARE * len(names))), names, key=lambda name: key("dev", name)))


class Statistics:
    """Counts what passes by on its way into each set."""

    def __init__(self) -> None:
        self.cuts: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.labels: dict[str, Counter[str]] = {}

    def count(self, name: str, cuts: Iterable[Cut]) -> Iterator[Cut]:
        """Passes the cuts of the set ``name`` on."""
        labels = self.labels.setdefault(name, Counter())
        for cut in cuts:
            self.cuts[name] += 1
            self.seconds[name] += cut.duration
            labels.update(labels_of(cut))
            yield cut

    def to_dict(self, classes: dict[str, str]) -> dict:
        """Numbers about each set; the labels by name, the most frequent first."""
        return {
            name: {
                "cuts": self.cuts[name],
                "hours": round(self.seconds[name] / 3600, 4),
                "mean_seconds": round(self.seconds[name] / self.cuts[name], 3),
                "labels_per_cut": round(labels.total() / self.cuts[name], 3),
                "classes": len(labels),
                "labels": {classes[mid]: count for mid, count in labels.most_common()},
            }
            for name, labels in self.labels.items()
        }


class Tables:
    """The cuts of AudioSet's tables. A clip of two tables is a duplicate in the one that is read later."""

    def __init__(self, corpus: Path, classes: dict[str, str], arguments: argparse.Namespace):
        self.paths = {
            part: corpus / name for part, name in AUDIOSET_PARTS.items() if (corpus / name).is_file()
        }
        for part in NEEDED:
            if part not in self.paths:
                raise ValueError(f"{corpus} has no {AUDIOSET_PARTS[part]}: copy AudioSet's table there")
        self.limits = arguments.max_missing_fraction, arguments.max_bad_fraction
        self.problems: dict[str, ClipProblems] = {}
        self.files = ClipFiles(corpus)
        self.options = {
            "known_labels": classes,
            "seen": set(),
            "checks": ClipChecks(decode=arguments.decode == "true"),
            "num_jobs": arguments.num_jobs,
        }

    def clips(self, part: str) -> Iterator[Clip]:
        """The lines of a table; none of a table that is not there."""
        return read_audioset_segments(self.paths[part], part) if part in self.paths else iter(())

    def cuts(self, part: str) -> Iterator[Cut]:
        """The usable clips of a table."""
        # Downloads may be missing in a row: what counts is the share of the whole table.
        total = sum(1 for _ in self.clips(part))
        problems = self.problems[part] = ClipProblems(*self.limits, f"clips of {part}", total)
        cuts = clip_cuts(self.clips(part), self.files, problems, **self.options)
        yield from progress(cuts, total, f"checking audio of {part}", "clips")
        problems.log()


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = parse_arguments(argv)
    corpus = arguments.corpus_dir / "AudioSet"
    if not corpus.is_dir():
        raise ValueError(f"{corpus} does not exist: run stage 0 first")
    classes, statistics = read_classes(corpus), Statistics()
    tables = Tables(corpus, classes, arguments)
    source = "unbalanced_train" if "unbalanced_train" in tables.paths else "balanced_train"
    chosen = choose_dev(tables.clips(source), arguments.dev_clips)
    dev: list[Cut] = []

    def without_dev(cuts: Iterable[Cut]) -> Iterator[Cut]:
        for cut in cuts:
            if cut.recording_id in chosen:
                dev.append(cut)
            else:
                yield cut

    def save(name: str, cuts: Iterable[Cut]) -> None:
        if not save_cuts(statistics.count(name, cuts), arguments.output / f"{CORPUS}_cuts_{name}.jsonl.gz"):
            raise ValueError(f"the set {name} has no cuts: are its clips below {corpus}?")
        logger.info("%-8s %8d cuts %9.2f h", name, statistics.cuts[name], statistics.seconds[name] / 3600)

    save("eval", tables.cuts("eval"))
    balanced = list(without_dev(tables.cuts("balanced_train")))
    save("balanced", balanced)
    save("train", chain(balanced, without_dev(tables.cuts("unbalanced_train"))))
    save("dev", dev)
    results = {
        "sets": statistics.to_dict(classes),
        "tables": {part: problems.to_dict() for part, problems in tables.problems.items()},
    }
    with atomic_file(arguments.output / f"{CORPUS}_statistics.json") as file:
        file.write((json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    run(main)
