#!/usr/bin/env python3
"""Stage 1: lhotse cuts of every set, validated, and statistics about them.

Sets: train (all train-* parts), labelled (what fine-tuning may read the transcripts of: a few speakers of
train-clean-100, or all of it), dev (dev-clean and dev-other), and every test-* part by its own name.

--other NAME=FOLDER adds another corpus to train (manifest_options in local/corpus.sh): libriheavy,
gigaspeech, voxpopuli, voxpopuli_asr or yodas_granary, in cuts of at most --max-seconds.

Of several channels the mean is read, everywhere (docs/troubleshooting.md); utterances without any sound are
left out and counted.
"""

import argparse
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from lhotse.cut import Cut
from lhotse.recipes.librispeech import parse_utterance

from spear_lib.bin.common import run
from spear_lib.corpora.speech_corpora import SPEECH_CORPORA, limit_length, read_speech_corpus
from spear_lib.corpora.validation import NO_TRANSCRIPT, usable_cuts, validate_cuts
from spear_lib.data.audio import CORRUPT, EMPTY, cut_of
from spear_lib.data.manifests import save_cuts
from spear_lib.data.problems import Problems
from spear_lib.runtime.files import atomic_file, read_json
from spear_lib.runtime.text_files import transcripts
from spear_lib.runtime.walking import files_below

logger = logging.getLogger("prepare_manifests")

CORPUS = "librispeech"
LABELLED_PART = "train-clean-100"
TRANSCRIPT_ONLY, AUDIO_ONLY = "transcript without audio", "audio without transcript"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--corpus-dir", type=Path, required=True, help="folder that holds LibriSpeech (stage 0)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the manifests")
    parser.add_argument("--num-jobs", type=int, default=2, help="files read at the same time")
    parser.add_argument(
        "--labelled-speakers",
        default="auto",
        help="who is in the labelled set: all, a number (those who speak longest), ids as 100,101, or auto "
        "(those that the synthesised corpus names, else all)",
    )
    parser.add_argument(
        "--max-bad-fraction", type=float, default=0.01, help="of a set's utterances that may be skipped"
    )
    parser.add_argument(
        "--other",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help=f"one more corpus for train, may be repeated: {', '.join(SPEECH_CORPORA)}",
    )
    parser.add_argument(
        "--max-seconds", type=float, default=30.0, help="longer cuts of other corpora are divided"
    )
    parser.add_argument(
        "--check-other-audio",
        choices=("true", "false"),
        default="false",
        help="read every sample of the other corpora now (stage 5 does, and counts what it cannot read)",
    )
    return parser.parse_args(argv)


def other_cuts(arguments: argparse.Namespace, results: dict[str, dict]) -> Iterator[Cut]:
    """The cuts of all --other corpora, one by one; their statistics go to ``results``."""
    for choice in arguments.other:
        name, _, folder = choice.partition("=")
        if not folder:
            raise ValueError(
                f"--other {choice}: give NAME=FOLDER, for example libriheavy=/corpora/libriheavy"
            )
        problems = Problems(arguments.max_bad_fraction, f"cuts of {name}")
        cuts = limit_length(read_speech_corpus(name, folder, problems), arguments.max_seconds)
        usable = usable_cuts(
            cuts,
            problems,
            need_text=False,
            check_audio=arguments.check_other_audio == "true",
            max_seconds=arguments.max_seconds + 0.01,
            num_jobs=arguments.num_jobs,
            description=f"cuts of {name}",
        )
        number, seconds = 0, 0.0
        for cut in usable:
            number, seconds = number + 1, seconds + cut.duration
            yield cut
        if not number:
            raise ValueError(f"--other {choice}: no usable cut is left: {problems.describe()}")
        problems.log()
        results[name] = {
            "cuts": number,
            "hours": round(seconds / 3600, 4),
            "skipped": problems.num_bad,
            "problems": problems.to_dict(),
        }


def scan_part(part: Path, problems: Problems, num_jobs: int) -> Iterator[Cut]:
    """The utterances of one part in the order of their names, read as lhotse's recipe for LibriSpeech does.

    That recipe itself stops at the first file it cannot read; here such files are counted.
    """
    texts = [(name, text) for path in files_below(part, ".trans.txt") for _, name, text in transcripts(path)]
    with ThreadPoolExecutor(max(1, num_jobs)) as pool:
        read = pool.map(lambda pair: _read_utterance(part, *pair), texts)
        for (name, _), result in zip(texts, read):
            if isinstance(result, str):
                problems.bad(result, name)
            else:
                yield result
    transcribed = {name for name, _ in texts}
    for path in map(Path, files_below(part, ".flac")):
        if path.stem not in transcribed:
            problems.bad(AUDIO_ONLY, path.stem)


def _read_utterance(part: Path, name: str, text: str) -> Cut | str:
    """A cut, or the kind of problem."""
    speaker, *folders, _ = name.split("-") if "-" in name else (name, "")
    path = part.joinpath(speaker, *folders, f"{name}.flac")
    if not path.is_file():
        return TRANSCRIPT_ONLY
    if not text:
        return NO_TRANSCRIPT
    if path.stat().st_size == 0:
        return EMPTY
    try:
        recording, segment = parse_utterance(part, f"{name} {text}", {})
    except Exception as error:
        logger.debug("%s: %s", path, error)
        return CORRUPT
    if recording.num_samples == 0:
        return EMPTY
    segment.custom = {"session": "-".join([speaker, *folders])}  # a chapter is read in one room
    return cut_of(recording, segment.id, supervision=segment)


def sets_of(corpus: Path) -> dict[str, list[Path]]:
    """Set -> its parts, in a fixed order."""
    parts = sorted(path for path in corpus.iterdir() if path.is_dir())
    sets = {
        "train": [part for part in parts if part.name.startswith("train-")],
        "dev": [part for part in parts if part.name.startswith("dev-")],
    }
    for name, members in sets.items():
        if not members:
            raise ValueError(f"{corpus} has no {name}-* folder: run stage 0 again, or complete the corpus")
    return {**sets, **{part.name: [part] for part in parts if part.name.startswith("test-")}}


def choose_labelled(train: list[Cut], choice: str, corpus: Path) -> list[Cut]:
    """The cuts whose transcripts fine-tuning may use: all of some speakers, of train-clean-100 if possible.

    Args:
      choice: the option --labelled-speakers.
    """
    pool = [cut for cut in train if LABELLED_PART in Path(cut.recording.sources[0].source).parts] or train
    if choice == "auto":
        facts = corpus.resolve().parent / "corpus.json"
        if not facts.is_file():
            return pool
        choice = ",".join(str(speaker) for speaker in read_json(facts)["labelled_speakers"])
    if choice == "all":
        return pool
    seconds: dict[str, float] = {}
    for cut in pool:
        seconds[_speaker(cut)] = seconds.get(_speaker(cut), 0.0) + cut.duration
    if choice.isdecimal() and choice not in seconds:
        longest = sorted(seconds, key=lambda speaker: (-seconds[speaker], speaker))
        if not 0 < int(choice) <= len(longest):
            raise ValueError(
                f"--labelled-speakers {choice}: there are {len(longest)} speakers, choose 1 to {len(longest)}"
            )
        chosen = set(longest[: int(choice)])
    else:
        chosen = set(choice.split(","))
    unknown = sorted(chosen - seconds.keys())
    if unknown:
        raise ValueError(
            f"--labelled-speakers: {', '.join(unknown)} is not in the training set; its speakers are "
            f"{', '.join(sorted(seconds)[:10])} ..."
        )
    return [cut for cut in pool if _speaker(cut) in chosen]


def _speaker(cut: Cut) -> str:
    return cut.supervisions[0].speaker


def statistics(cuts: list[Cut], parts: list[str], problems: Problems | None) -> dict:
    """Numbers about one set."""
    seconds = [cut.duration for cut in cuts]
    result = {
        "cuts": len(cuts),
        "hours": round(sum(seconds) / 3600, 4),
        "speakers": len({_speaker(cut) for cut in cuts}),
        "words": sum(len(cut.supervisions[0].text.split()) for cut in cuts),
        "mean_seconds": round(sum(seconds) / len(seconds), 3),
        "max_seconds": round(max(seconds), 3),
        "parts": parts,
    }
    if problems is not None:
        result |= {"skipped": problems.num_bad, "problems": problems.to_dict()}
    return result


def prepare_set(name: str, parts: list[Path], arguments: argparse.Namespace) -> tuple[list[Cut], dict]:
    """Writes the manifest of one set; returns its cuts of LibriSpeech and the statistics."""
    problems = Problems(arguments.max_bad_fraction, f"utterances of {name}")
    cuts = [cut for part in parts for cut in scan_part(part, problems, arguments.num_jobs)]
    kept, problems = validate_cuts(
        cuts, problems=problems, num_jobs=arguments.num_jobs, description=f"checking audio of {name}"
    )
    problems.log()
    result = statistics(kept, [part.name for part in parts], problems)
    others: dict[str, dict] = {}
    more = other_cuts(arguments, others) if name == "train" else ()
    save_cuts(chain(kept, more), arguments.output / f"{CORPUS}_cuts_{name}.jsonl.gz")
    return kept, {**result, "others": others} if others else result


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = parse_arguments(argv)
    corpus = arguments.corpus_dir / "LibriSpeech"
    if not corpus.is_dir():
        raise ValueError(f"{corpus} does not exist: run stage 0 first")
    results: dict[str, dict] = {}
    owner: dict[str, str] = {}
    for name, parts in sets_of(corpus).items():
        cuts, results[name] = prepare_set(name, parts, arguments)
        for cut in cuts:
            if owner.setdefault(cut.id, name) != name:
                raise ValueError(
                    f"utterance {cut.id} is in {owner[cut.id]} and in {name}: remove one of them"
                )
        if name == "train":
            labelled = choose_labelled(cuts, arguments.labelled_speakers, corpus)
            save_cuts(labelled, arguments.output / f"{CORPUS}_cuts_labelled.jsonl.gz")
            results["labelled"] = statistics(labelled, [part.name for part in parts], None)
            results["labelled"]["choice"] = arguments.labelled_speakers
    with atomic_file(arguments.output / f"{CORPUS}_statistics.json") as file:
        file.write((json.dumps(results, indent=1) + "\n").encode())
    for name, result in results.items():
        numbers = result["cuts"], result["hours"], result["speakers"]
        logger.info("%-10s %7d cuts %9.2f h %5d speakers", name, *numbers)
        for other, counts in result.get("others", {}).items():
            logger.info("%-10s %7d cuts %9.2f h, added to train", other, counts["cuts"], counts["hours"])


if __name__ == "__main__":
    run(main)
