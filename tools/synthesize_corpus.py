#!/usr/bin/env python3
"""Makes a small corpus of speech, noises or sound events in the folder layouts of real corpora.

    python tools/synthesize_corpus.py speech --output data/corpus
    python tools/synthesize_corpus.py noise --output data/noise_corpus
    python tools/synthesize_corpus.py events --output data/sound_corpus

``speech`` leaves OUTPUT/LibriSpeech (16 kHz FLAC and transcripts as in LibriSpeech, read by espeak-ng);
``noise`` leaves OUTPUT/musan; ``events`` leaves OUTPUT/AudioSet (10 s clips of overlapping sounds, labelled
with AudioSet's classes, and its tables). The same options give the same bytes. A finished OUTPUT is left as
it is; an interrupted run can simply be started again.
"""

import argparse
import json
import logging
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path

# One thread per process: the work is spread over processes, and threads would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from spear_lib.bin.common import run
from tools.synthesis import clips, layout, noises

logger = logging.getLogger("synthesize_corpus")

COMMANDS = {
    "speech": (layout.SpeechOptions, layout.make_speech_corpus),
    "noise": (noises.NoiseOptions, noises.make_noise_corpus),
    "events": (clips.ClipOptions, clips.make_clip_corpus),
}
"""Subcommand -> the options that decide the bytes, and what makes the corpus."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line: a subcommand and its options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    formatter = argparse.ArgumentDefaultsHelpFormatter
    speech = commands.add_parser(
        "speech", help="a LibriSpeech-shaped corpus", formatter_class=formatter, allow_abbrev=False
    )
    noise = commands.add_parser(
        "noise", help="a MUSAN-shaped folder of noises", formatter_class=formatter, allow_abbrev=False
    )
    events = commands.add_parser(
        "events", help="an AudioSet-shaped corpus", formatter_class=formatter, allow_abbrev=False
    )
    for command in (speech, noise, events):
        command.add_argument("--output", type=Path, required=True, help="folder to make")
        command.add_argument("--num-processes", type=int, default=2, help="how many processes work")
        command.add_argument("--seed", type=int, default=0, help="all random choices follow from it")
    default = layout.SpeechOptions()
    helps = {
        "train_minutes": "minutes of train-clean-100",
        "dev_minutes": "minutes of dev-clean",
        "test_minutes": "minutes of test-clean, and of test-other",
        "num_train_voices": "speakers of train-clean-100",
        "num_test_voices": "speakers of dev-clean, of test-clean, and of test-other",
        "labelled_speakers": "training speakers who read more than the others, to be the labelled subset",
        "labelled_minutes": "minutes of these speakers together, part of the training minutes",
        "voice_spread": "how different the voices are in pitch, rate, vocal tract, tilt: 0 not at all to 3",
    }
    add_options(speech, default, helps)
    speech.add_argument("--vocabulary", choices=list(layout.VOCABULARIES), default="small", help="words")
    speech.add_argument(
        "--accents",
        nargs="+",
        choices=("us", "gb", "rp", "scotland"),
        default=default.accents,
        help="English",
    )
    speech.add_argument("--rooms", default=None, help="folder of measured impulse responses (else drawn)")
    noise.add_argument("--minutes", type=float, default=8.0, help="of all noises together")
    helps = {
        "balanced_minutes": "minutes of balanced_train, in which every class is about as frequent",
        "unbalanced_minutes": "minutes of unbalanced_train, in which few classes are frequent and many rare",
        "eval_minutes": "minutes of eval",
        "num_classes": "classes that occur",
        "short_share": "share of the clips that are shorter than 10 s",
        "missing_share": "share of the clips that are in the tables but not on disk",
    }
    add_options(events, clips.ClipOptions(), helps)
    return parser.parse_args(argv)


def add_options(parser: argparse.ArgumentParser, default, helps: dict[str, str]) -> None:
    """An option for each field, with the type and value that it has in ``default``."""
    for name, text in helps.items():
        value = getattr(default, name)
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value, help=text)


def options_of(arguments: argparse.Namespace):
    """The options that decide the bytes, as the dataclass of the subcommand."""
    kind, _ = COMMANDS[arguments.command]
    values = {field.name: getattr(arguments, field.name) for field in fields(kind)}
    return kind(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    )


def is_complete(output: Path, options) -> bool:
    """Whether ``output`` is there and was made with the same options; ValueError if it is something else."""
    if not output.exists():
        return False
    path = output / layout.FACTS_FILE
    if not path.is_file():
        raise ValueError(
            f"{output} exists and is not a synthesised corpus (no {path.name}): choose another folder"
        )
    facts = json.loads(path.read_text())
    wanted = json.loads(json.dumps(asdict(options)))
    found = {**facts["options"], "format_version": facts["format_version"]}
    different = [
        f"{name} is {found.get(name)!r} there, {value!r} is wanted"
        for name, value in {**wanted, "format_version": layout.FORMAT_VERSION}.items()
        if found.get(name) != value
    ]
    if different:
        raise ValueError(
            f"{output} was made with other options: {'; '.join(different)}. "
            f"Delete {output} or choose another folder"
        )
    return True


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = parse_arguments(argv)
    options = options_of(arguments)
    if is_complete(arguments.output, options):
        logger.info("%s is there already, made with the same options: nothing to do", arguments.output)
        return
    if arguments.num_processes < 1:
        raise ValueError(f"--num-processes is {arguments.num_processes}, it must be at least 1")
    _, make = COMMANDS[arguments.command]
    facts = make(arguments.output, options, arguments.num_processes)
    minutes = ", ".join(f"{part} {value:.1f}" for part, value in facts["minutes"].items())
    logger.info("made %s (minutes: %s)", arguments.output, minutes)


if __name__ == "__main__":
    run(main)
