"""A corpus of synthetic speech in the folder layout of LibriSpeech (ours; layout of https://www.openslr.org/12)."""

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from scipy import signal

from spear_lib.runtime.keyed_random import generator
from tools.synthesis import espeak, rooms
from tools.synthesis.grammar import VOCABULARIES, Grammar
from tools.synthesis.voices import Voice, choose_voices
from tools.synthesis.workers import run_fresh

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
"""Counts up when the same options make other bytes."""

FACTS_FILE = "corpus.json"
UTTERANCES_PER_CHAPTER = 6
"""Few, so that the mini corpus too has several sessions of each speaker."""


@dataclass(frozen=True)
class SpeechOptions:
    """What decides every byte of the corpus."""

    seed: int = 0
    train_minutes: float = 75.0
    dev_minutes: float = 5.0
    test_minutes: float = 5.0
    """Of test-clean and of test-other, each."""
    num_train_voices: int = 40
    num_test_voices: int = 8
    """Of dev-clean, test-clean and test-other, each."""
    labelled_speakers: int = 6
    """Training speakers who read more than the others: the recipe's labelled subset."""
    labelled_minutes: float = 16.0
    """Of the labelled speakers together, part of train_minutes."""
    vocabulary: str = "small"
    accents: tuple[str, ...] = ("us", "gb", "rp", "scotland")
    voice_spread: float = 1.0
    rooms: str | None = None
    """Folder of measured impulse responses; None: drawn ones."""

    def __post_init__(self):
        if self.vocabulary not in VOCABULARIES:
            raise ValueError(f"--vocabulary {self.vocabulary!r}: choose from {', '.join(VOCABULARIES)}")
        for name in ("train_minutes", "dev_minutes", "test_minutes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be above 0")
        for name in ("num_train_voices", "num_test_voices", "labelled_speakers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.labelled_speakers > self.num_train_voices:
            raise ValueError(
                f"{self.labelled_speakers} labelled speakers of {self.num_train_voices} training voices: "
                "lower --labelled-speakers or raise --num-train-voices"
            )
        if not 0 < self.labelled_minutes <= self.train_minutes:
            raise ValueError(
                f"labelled_minutes is {self.labelled_minutes}, it must be above 0 and at most "
                f"train_minutes ({self.train_minutes})"
            )
        if self.rooms is not None:
            rooms.measured_responses(Path(self.rooms))
        if not 0 <= self.voice_spread <= 3:
            raise ValueError(f"voice_spread is {self.voice_spread}, it must be between 0 and 3")


@dataclass(frozen=True)
class SpeakerJob:
    """All recordings of one speaker; made in one fresh process."""

    seed: int
    voice: Voice
    part: str
    """LibriSpeech's name of the subset, e.g. "test-other"."""
    split: str
    """Whose sentences: "train", "dev" or "test"."""
    minutes: float
    vocabulary: str
    corpus: str
    """Folder "LibriSpeech" (unfinished)."""
    rooms: str | None = None


def speaker_jobs(options: SpeechOptions, corpus: Path) -> list[SpeakerJob]:
    """One job per speaker; the labelled speakers are the first of train-clean-100."""
    parts = [
        ("train-clean-100", "train", options.num_train_voices, 100),
        ("dev-clean", "dev", options.num_test_voices, 1000),
        ("test-clean", "test", options.num_test_voices, 2000),
        ("test-other", "test", options.num_test_voices, 3000),
    ]
    groups = choose_voices(
        options.seed,
        [count for _, _, count, _ in parts],
        [first for _, _, _, first in parts],
        list(options.accents),
        options.voice_spread,
    )
    num_others = options.num_train_voices - options.labelled_speakers
    labelled = options.labelled_minutes if num_others else options.train_minutes
    jobs = []
    for (part, split, count, _), voices in zip(parts, groups):
        for index, voice in enumerate(voices):
            if part != "train-clean-100":
                minutes = (options.dev_minutes if split == "dev" else options.test_minutes) / count
            elif index < options.labelled_speakers:
                minutes = labelled / options.labelled_speakers
            else:
                minutes = (options.train_minutes - labelled) / num_others
            said = (options.vocabulary, str(corpus), options.rooms)
            jobs.append(SpeakerJob(options.seed, voice, part, split, minutes, *said))
    return jobs


def read_aloud(voice: Voice, sentence: str, random: np.random.Generator) -> np.ndarray:
    """``sentence`` in this voice, (N,) float64 at 16 kHz, without silence at its ends.

    A speaker never says a word twice in quite the same way: rate and pitch differ a little each time.
    """
    engine = espeak.engine()
    engine.set_parameters(
        # The vocal tract factor is applied by resampling, which also changes the rate: taken back here.
        rate=round(voice.rate / voice.tract * random.uniform(0.94, 1.06)),
        pitch=int(np.clip(voice.pitch + random.integers(-4, 5), 0, 99)),
        pitch_range=int(np.clip(voice.pitch_range + random.integers(-5, 6), 0, 99)),
    )
    question = sentence.split()[0] in ("where", "who", "why")
    samples = engine.say(sentence + ("?" if question else "."))
    loud = np.flatnonzero(np.abs(samples) > 1e-3)
    if len(loud) == 0:
        raise RuntimeError(f"espeak-ng is silent for {sentence!r} in the voice {voice.espeak_name}")
    # up/down = 16000 / (22050 * tract); 320/441 for the factor 1.
    down = round(441 * voice.tract * engine.sample_rate / 22050)
    return signal.resample_poly(samples[loud[0] : loud[-1] + 1].astype(np.float64), 320, down)


def make_speaker(job: SpeakerJob) -> None:
    """Writes the chapters of one speaker and a JSON file about them; runs in a fresh process."""
    voice, grammar = job.voice, Grammar(VOCABULARIES[job.vocabulary])
    espeak.engine().set_voice(voice.espeak_name)
    text_random = generator(job.seed, "text", voice.speaker)
    folder = Path(job.corpus) / job.part / str(voice.speaker)
    said: set[str] = set()
    chapters: list[dict] = []
    num_samples = 0
    while num_samples < job.minutes * 60 * rooms.SAMPLE_RATE:
        chapter = voice.speaker * 100 + len(chapters) + 1
        room_random = generator(job.seed, "room", chapter)
        room = rooms.draw_room(room_random, other=job.part.endswith("-other"))
        if job.rooms is None:
            response = rooms.impulse_response(room, room_random)
        else:
            known = rooms.measured_responses(Path(job.rooms))
            chosen = known[int(room_random.integers(len(known)))]
            response = rooms.measured_response(chosen, room.direct_ratio)
        chapter_folder = folder / str(chapter)
        chapter_folder.mkdir(parents=True)
        lines = []
        while len(lines) < UTTERANCES_PER_CHAPTER and num_samples < job.minutes * 60 * rooms.SAMPLE_RATE:
            sentence = _new_sentence(grammar, job.split, text_random, said)
            utterance = f"{voice.speaker}-{chapter}-{len(lines):04d}"
            random = generator(job.seed, "utterance", utterance)
            speech = read_aloud(voice, sentence, random)
            level = room.level + random.uniform(-2.0, 2.0)
            samples = rooms.record(speech, response, room, voice.tilt + room.microphone, level, random)
            soundfile.write(
                chapter_folder / f"{utterance}.flac", samples, rooms.SAMPLE_RATE, subtype="PCM_16"
            )
            lines.append(f"{utterance} {sentence.upper()}\n")
            num_samples += len(samples)
        (chapter_folder / f"{voice.speaker}-{chapter}.trans.txt").write_text("".join(lines))
        chapters.append({"chapter": chapter, "utterances": len(lines), **asdict(room)})
    facts = {**asdict(voice), "seconds": round(num_samples / rooms.SAMPLE_RATE, 3), "chapters": chapters}
    (folder / "facts.json").write_text(json.dumps(facts))


def _new_sentence(grammar: Grammar, split: str, random: np.random.Generator, said: set[str]) -> str:
    # A speaker repeats a sentence only when a very long recording has used up the easily found ones.
    for _ in range(100):
        sentence = grammar.draw_for(split, random)
        if sentence not in said:
            break
    said.add(sentence)
    return sentence


def make_speech_corpus(output: Path, options: SpeechOptions, num_processes: int = 2) -> dict:
    """Synthesises ``output``/LibriSpeech; returns the facts that it also writes to ``output``/corpus.json.

    Everything is made in ``output``.tmp and renamed at the end, so ``output`` is complete where it exists.
    """
    unfinished = output.with_name(output.name + ".tmp")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    corpus = unfinished / "LibriSpeech"
    corpus.mkdir(parents=True)
    errors = unfinished / "errors"
    errors.mkdir()
    jobs = speaker_jobs(options, corpus)
    # The longest jobs first keeps all processes busy to the end; the order changes no byte.
    order = sorted(jobs, key=lambda job: -job.minutes)
    run_fresh(make_speaker, order, num_processes, errors, "synthesising speech", "speakers")
    shutil.rmtree(errors)
    speakers = []
    for job in jobs:
        path = corpus / job.part / str(job.voice.speaker) / "facts.json"
        speakers.append({"part": job.part, **json.loads(path.read_text())})
        path.unlink()
    (corpus / "SPEAKERS.TXT").write_text(_speakers_table(speakers))
    facts = {
        "kind": "speech",
        "format_version": FORMAT_VERSION,
        "options": asdict(options),
        "minutes": _minutes_per_part(speakers),
        "labelled_speakers": [speaker["speaker"] for speaker in speakers[: options.labelled_speakers]],
        "speakers": speakers,
    }
    (unfinished / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n")
    unfinished.rename(output)
    return facts


def _minutes_per_part(speakers: list[dict]) -> dict[str, float]:
    parts = dict.fromkeys(speaker["part"] for speaker in speakers)
    return {
        part: round(sum(speaker["seconds"] for speaker in speakers if speaker["part"] == part) / 60, 2)
        for part in parts
    }


def _speakers_table(speakers: list[dict]) -> str:
    lines = [
        "; Speakers of a synthetic corpus (tools/synthesize_corpus.py): no person has read this.\n",
        ";ID  |SEX| SUBSET           |MINUTES| NAME\n",
    ]
    for speaker in speakers:
        minutes = speaker["seconds"] / 60
        name = f"{speaker['variant']} {speaker['accent']}"
        start = f"{speaker['speaker']:<4} | {speaker['gender']} | {speaker['part']:<16}"
        lines.append(f"{start} | {minutes:5.2f} | {name}\n")
    return "".join(lines)
