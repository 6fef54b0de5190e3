#!/usr/bin/env python3
"""Stage 0: strings of 3 to 8 digits, made of the single recordings of the Free Spoken Digit Dataset.

The data set (https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0) holds 8 kHz files named
``{digit}_{speaker}_{index}.wav``; by its own convention the indices 0 to 4 of every digit and speaker are the
test part. Here

* test-<speaker> has all recordings of the held-out speaker, each once; he is in no other set;
* dev has the test part of the other speakers, each recording once;
* train has the training part of the other speakers, each recording several times in different strings; the
  first strings of every speaker are marked as labelled.

One FLAC file (16 kHz) per string, and strings.csv about them all. The same recordings, options and seed give
the same strings.
"""

import argparse
import csv
import io
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from spear_lib.bin.common import run
from spear_lib.data.audio import check_rate
from spear_lib.data.manifests import atomic_file
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.runtime import keyed_random

logger = logging.getLogger("prepare_corpus")

WORDS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
MIN_DIGITS, MAX_DIGITS = 3, 8
NUM_TEST_INDICES = 5
"""Indices below this are the test part (the data set's convention)."""

PAUSE_SECONDS = (0.05, 0.3)
"""Shortest and longest pause before, between and after the digits; the recordings have next to none."""
FADE_SECONDS = 0.005
"""At both ends of a recording, which is cut off in the noise of its room: no clicks."""
SPEECH_LEVEL = 0.05
"""Root mean square of the spoken samples of a string. The speakers' own levels differ by up to 22 dB."""
NOISE_LEVEL = 0.001
"""Root mean square of white noise under the whole string, so that a pause is not digital silence."""
PEAK_LIMIT = 0.95

# How often train uses every recording, how many minutes of train are labelled, and how many recordings of
# each digit, speaker and part are used (all, or few).
SIZES = {
    "default": {"passes": 2, "labelled_minutes": 4.0, "recordings": 1000},
    "tiny": {"passes": 1, "labelled_minutes": 0.8, "recordings": 5},
}
FIELDS = ("set", "file", "speaker", "labelled", "recordings", "text")


@dataclass(frozen=True, order=True)
class Digit:
    """One recording."""

    speaker: str
    number: int
    index: int
    path: Path

    @property
    def is_test_part(self) -> bool:
        """Whether the data set keeps it for testing."""
        return self.index < NUM_TEST_INDICES


@dataclass(frozen=True)
class DigitString:
    """Recordings of one speaker in the order in which they are joined."""

    set: str
    name: str
    digits: tuple[Digit, ...]

    @property
    def speaker(self) -> str:
        """Who speaks all of them."""
        return self.digits[0].speaker

    @property
    def text(self) -> str:
        """The transcript."""
        return " ".join(WORDS[digit.number] for digit in self.digits)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--mini", choices=("true", "false"), default="false", help="refused: nothing to synthesise"
    )
    parser.add_argument("--corpus-dir", default="", help="folder of the data set, or its folder recordings")
    parser.add_argument("--noise-dir", default="", help="refused: this recipe mixes no noise")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="of the strings")
    parser.add_argument("--num-jobs", type=int, default=1, help="not needed, this takes seconds")
    parser.add_argument("--held-out-speaker", required=True, help="who is heard in testing only")
    parser.add_argument("--size", choices=list(SIZES), default="default", help="tiny is for tests")
    return parser.parse_args(argv)


def find_recordings(corpus_dir: str) -> list[Digit]:
    """All recordings in a fixed order; ValueError with the expected names if there are none."""
    expected = "expected DIR/recordings/{digit}_{speaker}_{index}.wav of the Free Spoken Digit Dataset"
    if not corpus_dir:
        raise ValueError(
            "no corpus: give --corpus-dir DIR, the Free Spoken Digit Dataset (git clone "
            "https://github.com/Jakobovski/free-spoken-digit-dataset DIR)"
        )
    folder = Path(corpus_dir)
    if (folder / "recordings").is_dir():
        folder = folder / "recordings"
    found = []
    for path in folder.glob("[!.]*.wav"):
        parts = re.fullmatch(r"([0-9])_([a-z]+)_([0-9]+)", path.stem)
        if parts is None:
            raise ValueError(f"{path} is no recording of a digit: {expected}")
        found.append(Digit(parts[2], int(parts[1]), int(parts[3]), path.resolve()))
    if not found:
        raise ValueError(f"--corpus-dir {folder} holds no recordings: {expected}")
    return sorted(found)


def join_digits(name: str, digits: list[Digit], seed: int, passes: int) -> list[DigitString]:
    """Strings of one speaker that use each of ``digits`` exactly ``passes`` times; ``name`` is the set."""
    speaker = digits[0].speaker
    if len(digits) < MIN_DIGITS:
        raise ValueError(
            f"{len(digits)} recordings of {speaker} for {name}: at least {MIN_DIGITS} are needed"
        )
    strings = []
    for number in range(passes):
        random = keyed_random.generator(seed, "digit strings", name, speaker, number)
        order = [digits[i] for i in random.permutation(len(digits))]
        while order:
            # Never leave fewer behind than the shortest string needs.
            lengths = [
                length
                for length in range(MIN_DIGITS, MAX_DIGITS + 1)
                if len(order) == length or len(order) - length >= MIN_DIGITS
            ]
            length = int(random.choice(lengths))
            strings.append(DigitString(name, f"{speaker}-{name}-{len(strings):04d}", tuple(order[:length])))
            order = order[length:]
    return strings


def plan_strings(
    recordings: list[Digit], held_out: str, seed: int, passes: int, recordings_per_digit: int
) -> list[DigitString]:
    """The strings of all sets.

    Args:
      recordings: what ``find_recordings`` returns.
      held_out: the speaker of the test set.
      passes: how often train uses each recording.
      recordings_per_digit: how many recordings of each digit, speaker and part are used.

    Raises:
      ValueError: the speaker is unknown, or a part has too few recordings.
    """
    speakers = sorted({digit.speaker for digit in recordings})
    if held_out not in speakers:
        raise ValueError(f"held-out speaker '{held_out}' is not in the corpus, it has {', '.join(speakers)}")
    if len(speakers) < 2:
        raise ValueError(f"{held_out} is the only speaker of the corpus: nobody is left to train on")
    used = [
        digit
        for digit in recordings
        if digit.index - (0 if digit.is_test_part else NUM_TEST_INDICES) < recordings_per_digit
    ]
    strings = []
    for speaker in speakers:
        own = [digit for digit in used if digit.speaker == speaker]
        if speaker == held_out:
            strings += join_digits(f"test-{speaker}", own, seed, 1)
            continue
        for name, is_test_part, times in (("train", False, passes), ("dev", True, 1)):
            part = [digit for digit in own if digit.is_test_part == is_test_part]
            if not part:
                raise ValueError(f"{speaker} has no recordings for {name}: is the corpus complete?")
            strings += join_digits(name, part, seed, times)
    return sorted(strings, key=lambda string: (string.set, string.speaker, string.name))


def read_digit(path: Path) -> np.ndarray:
    """The samples of one recording, float64 (N,), 16 kHz, faded in and out."""
    try:
        samples, rate = soundfile.read(path)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} cannot be read ({error}): copy it again") from error
    if samples.ndim != 1 or len(samples) == 0:
        raise ValueError(f"{path} has {samples.ndim} channels and {len(samples)} samples: copy it again")
    check_rate(rate, str(path))
    samples = resample_poly(samples, SAMPLE_RATE, rate) if rate != SAMPLE_RATE else samples
    num_fade = min(round(FADE_SECONDS * SAMPLE_RATE), len(samples) // 2)
    ramp = np.linspace(0.0, 1.0, num_fade, endpoint=False)
    samples[:num_fade] *= ramp
    samples[len(samples) - num_fade :] *= ramp[::-1]
    return samples


def render(string: DigitString, seed: int) -> np.ndarray:
    """The audio of a string, float64 (N,) in [-1, 1], 16 kHz."""
    random = keyed_random.generator(seed, "digit audio", string.name)
    spoken = [read_digit(digit.path) for digit in string.digits]
    level = float(np.sqrt(np.mean(np.concatenate(spoken) ** 2)))
    if level == 0.0:
        raise ValueError(f"the recordings of {string.name} are silent: {string.digits[0].path} ...")
    pieces = [np.zeros(round(random.uniform(*PAUSE_SECONDS) * SAMPLE_RATE))]
    for samples in spoken:
        pieces += [samples * (SPEECH_LEVEL / level)]
        pieces += [np.zeros(round(random.uniform(*PAUSE_SECONDS) * SAMPLE_RATE))]
    audio = np.concatenate(pieces)
    audio += NOISE_LEVEL * random.standard_normal(len(audio))
    return audio * min(1.0, PEAK_LIMIT / float(np.abs(audio).max()))


def write_strings(
    strings: Iterable[DigitString], output: Path, seed: int, labelled_minutes: float
) -> dict[str, float]:
    """Writes the audio, and strings.csv last; returns the seconds of each set."""
    strings = list(strings)
    num_speakers = len({string.speaker for string in strings if string.set == "train"})
    seconds: dict[str, float] = {}
    labelled_seconds: dict[str, float] = {}
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, FIELDS, lineterminator="\n")
    writer.writeheader()
    for string in strings:
        path = output / string.set / string.speaker / f"{string.name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        audio = render(string, seed)
        soundfile.write(path, audio, SAMPLE_RATE, subtype="PCM_16")
        duration = len(audio) / SAMPLE_RATE
        seconds[string.set] = seconds.get(string.set, 0.0) + duration
        so_far = labelled_seconds.get(string.speaker, 0.0)
        labelled = string.set == "train" and so_far < labelled_minutes * 60 / num_speakers
        if labelled:
            labelled_seconds[string.speaker] = so_far + duration
        writer.writerow(
            {
                "set": string.set,
                "file": path.relative_to(output),
                "speaker": string.speaker,
                "labelled": str(labelled).lower(),
                "recordings": " ".join(digit.path.stem for digit in string.digits),
                "text": string.text,
            }
        )
    with atomic_file(output / "strings.csv") as file:
        file.write(table.getvalue().encode())
    return {**seconds, "labelled": sum(labelled_seconds.values())}


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = parse_arguments(argv)
    if arguments.mini == "true":
        raise ValueError("--mini true: these are real recordings, give --corpus-dir DIR --conf mini instead")
    if arguments.noise_dir:
        raise ValueError("--noise-dir: this recipe mixes no noise, leave it out")
    size = SIZES[arguments.size]
    strings = plan_strings(
        find_recordings(arguments.corpus_dir),
        arguments.held_out_speaker,
        arguments.seed,
        size["passes"],
        size["recordings"],
    )
    output = arguments.output / "digits"
    seconds = write_strings(strings, output, arguments.seed, size["labelled_minutes"])
    for name, value in seconds.items():
        logger.info("%-16s %6.1f minutes", name, value / 60)


if __name__ == "__main__":
    run(main)
