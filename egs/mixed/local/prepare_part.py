#!/usr/bin/env python3
"""Stage 1 of a part without a recipe of its own: cuts of a published corpus, sets train and dev.

The corpora are those of the paper's Table 1. Official test sets are left out, dev is the --dev-cuts cuts of
train (at most 1 % of them) whose ids draw the lowest keys.
"""

import argparse
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from heapq import nsmallest
from pathlib import Path

from lhotse.cut import Cut

from spear_lib.bin.common import run
from spear_lib.corpora.clip_tables import LAYOUTS, read_clips
from spear_lib.corpora.labelled_clips import ClipFiles, ClipProblems, clip_cuts
from spear_lib.corpora.speech_corpora import SPEECH_CORPORA, limit_length, read_speech_corpus
from spear_lib.corpora.validation import usable_cuts
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.problems import Problems
from spear_lib.runtime.files import atomic_file
from spear_lib.runtime.keyed_random import key

logger = logging.getLogger("prepare_part")

CORPORA = sorted({*SPEECH_CORPORA, *LAYOUTS} - {"audioset"})
TEST_PARTS = {"test", "eval"}


def read_cuts(arguments: argparse.Namespace, facts: dict[str, object]) -> Iterator[Cut]:
    """The usable cuts of at most --max-seconds; what was left out goes to ``facts``."""
    name, folder = arguments.corpus, arguments.corpus_dir
    if name in SPEECH_CORPORA:
        problems = Problems(arguments.max_bad_fraction, f"cuts of {name}")
        cuts = limit_length(read_speech_corpus(name, folder, problems), arguments.max_seconds)
        yield from usable_cuts(
            cuts,
            problems,
            need_text=False,
            check_audio=False,  # stage 5 reads every sample, and counts what it cannot read
            max_seconds=arguments.max_seconds + 0.01,
            description=f"cuts of {name}",
        )
        facts["problems"] = problems.to_dict()
    else:
        clips = (clip for clip in read_clips(name, folder) if clip.part not in TEST_PARTS)
        limits = ClipProblems(arguments.max_missing_fraction, arguments.max_bad_fraction)
        yield from clip_cuts(clips, ClipFiles(folder), limits, num_jobs=arguments.num_jobs)
        facts["problems"] = limits.to_dict()


def noting(cuts: Iterable[Cut], ids: list[str], facts: dict[str, object]) -> Iterator[Cut]:
    """The same cuts; their ids and hours are noted."""
    seconds = 0.0
    for cut in cuts:
        ids.append(cut.id)
        seconds += cut.duration
        yield cut
    facts["hours"] = round(seconds / 3600, 3)


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--corpus", required=True, choices=CORPORA, help="which corpus")
    parser.add_argument("--corpus-dir", type=Path, required=True, help="its folder, as published")
    parser.add_argument("--output", type=Path, required=True, help="folder for the manifests")
    parser.add_argument("--num-jobs", type=int, default=2, help="files read at the same time")
    parser.add_argument(
        "--dev-cuts", type=int, default=500, help="cuts of dev, at most 1 %% (and at least 1)"
    )
    parser.add_argument("--max-seconds", type=float, default=30.0, help="longer recordings are divided")
    parser.add_argument(
        "--max-bad-fraction", type=float, default=0.01, help="of the cuts that may be skipped"
    )
    parser.add_argument(
        "--max-missing-fraction", type=float, default=0.3, help="of a table's clips that may be missing"
    )
    arguments = parser.parse_args(argv)
    name = arguments.corpus
    facts: dict[str, object] = {}
    ids: list[str] = []
    scratch = arguments.output / f".{name}"
    scratch.mkdir(parents=True, exist_ok=True)
    everything = scratch / "all.jsonl"
    save_cuts(noting(read_cuts(arguments, facts), ids, facts), everything)
    if len(ids) < 2:
        raise ValueError(f"{arguments.corpus_dir} holds {len(ids)} usable cuts of {name}: two are needed")
    number = max(1, min(arguments.dev_cuts, len(ids) // 100))
    dev = set(nsmallest(number, ids, key=lambda cut_id: key("dev", cut_id)))
    manifest = Manifest(everything)
    for chosen, is_dev in (("train", False), ("dev", True)):
        target = arguments.output / f"{name}_cuts_{chosen}.jsonl.gz"
        facts[chosen] = save_cuts((cut for cut in manifest if (cut.id in dev) == is_dev), target)
    shutil.rmtree(scratch)
    with atomic_file(arguments.output / f"{name}_statistics.json") as file:
        file.write(json.dumps(facts, indent=2, ensure_ascii=False).encode() + b"\n")
    logger.info("%s: %s h, %s cuts of train, %s of dev", name, facts["hours"], facts["train"], facts["dev"])


if __name__ == "__main__":
    run(main)
