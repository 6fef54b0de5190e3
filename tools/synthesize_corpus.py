#!/usr/bin/env python3
"""Makes a small speech corpus, or noises to mix into it, in the folder layouts of real corpora.

    python tools/synthesize_corpus.py speech --output data/corpus
    python tools/synthesize_corpus.py noise --output data/noise_corpus

``speech`` leaves OUTPUT/LibriSpeech (16 kHz FLAC and transcripts as in LibriSpeech, read by espeak-ng);
``noise`` leaves OUTPUT/musan. The same options give the same bytes. A finished OUTPUT is left as it is; an
interrupted run can simply be started again.
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
from tools.synthesis import layout, noises

logger = logging.getLogger("synthesize_corpus")


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
    for command in (speech, noise):
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
        "voice_spread": "how different the voices are in pitch, rate, vocal tract, level: 0 not at all to 3",
    }
    for name, text in helps.items():
        value = getattr(default, name)
        speech.add_argument("--" + name.replace("_", "-"), type=type(value), default=value, help=text)
    speech.add_argument("--vocabulary", choices=list(layout.VOCABULARIES), default="small", help="words")
    speech.add_argument(
        "--accents",
        nargs="+",
        choices=("us", "gb", "rp", "scotland"),
        default=default.accents,
        help="English",
    )
    noise.add_argument("--minutes", type=float, default=8.0, help="of all noises together")
    return parser.parse_args(argv)


def options_of(arguments: argparse.Namespace):
    """The options that decide the bytes, as the dataclass of the subcommand."""
    kind = layout.SpeechOptions if arguments.command == "speech" else noises.NoiseOptions
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


def main() -> None:
    """Entry point."""
    arguments = parse_arguments()
    options = options_of(arguments)
    if is_complete(arguments.output, options):
        logger.info("%s is there already, made with the same options: nothing to do", arguments.output)
        return
    if arguments.num_processes < 1:
        raise ValueError(f"--num-processes is {arguments.num_processes}, it must be at least 1")
    make = layout.make_speech_corpus if arguments.command == "speech" else noises.make_noise_corpus
    facts = make(arguments.output, options, arguments.num_processes)
    minutes = ", ".join(f"{part} {value:.1f}" for part, value in facts["minutes"].items())
    logger.info("made %s (minutes: %s)", arguments.output, minutes)


if __name__ == "__main__":
    run(main)
