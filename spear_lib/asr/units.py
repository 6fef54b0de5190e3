"""Text units: what the ASR model writes. BPE pieces (sentencepiece) or characters (paper C).

Blank is id 0 everywhere. Text that the units cannot write is an error that names the characters, never a
silent <unk>: an unknown character in training text means that the units belong to another text.
"""

import hashlib
import io
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spear_lib.runtime.files import atomic_file
from spear_lib.runtime.overlays import read_yaml

logger = logging.getLogger(__name__)

UNITS_FOLDER = "units"
"""Of an experiment: the units that it was trained with."""
BLANK, UNKNOWN = "<blk>", "<unk>"
# Order as in icefall's BPE models: blank 0, <sos/eos> 1, <unk> 2.
_SPECIAL = [BLANK, "<sos/eos>"]
_WORD_START = "▁"
ENGLISH_CHARACTERS = " '" + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _name(characters: Iterable[str]) -> str:
    return ", ".join(f"{c!r} (U+{ord(c):04X})" for c in sorted(set(characters)))


# What typesetting and phones put where transcripts have a plain character.
_TYPOGRAPHIC = str.maketrans("’‘‛ʼ`´“”„–—−‐‑", "'" * 6 + '"' * 3 + "-" * 5)


def _cure(unknown: set[str], known: set[str]) -> str:
    """What to do about characters that units with the characters ``known`` cannot write."""
    cures = dict.fromkeys(_cure_of(character, known) for character in sorted(unknown))
    return "; ".join(cures)


def _cure_of(character: str, known: set[str]) -> str:
    if character.upper() in known or character.lower() in known:
        return "the units know the other case: change the case of the text"
    if character.translate(_TYPOGRAPHIC) in known:
        return "the units know the plain form (' for ’): replace the typographic one"
    if unicodedata.normalize("NFD", character)[0] in known or unicodedata.combining(character):
        return "accents: write them as the units' text does (NFC or NFD), or leave them out"
    if unicodedata.category(character)[0] in "PS":
        return "take the punctuation out of the text, or train units on text that holds it"
    return "normalise the text, or train units on text that holds them"


def _unwritable(text: str, unknown: set[str], known: set[str], where: str) -> ValueError:
    return ValueError(
        f"{where} cannot write {_name(unknown)} in the text {text[:200]!r}: {_cure(unknown, known)}."
    )


def unwritable_references(units: "TextUnits | CharacterUnits", texts: Iterable[str]) -> tuple[int, str]:
    """How many of the texts hold characters that the units cannot write, so that even a perfect recogniser
    would have errors there, and in one line which characters and what to do (empty where there are none)."""
    unknown: Counter[str] = Counter()
    number = 0
    for text in texts:
        found = units.unknown_characters(text)
        number += bool(found)
        unknown.update(found)
    if not number:
        return 0, ""
    shown = [character for character, _ in unknown.most_common(10)]
    more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
    known = units.known_characters
    return number, f"{_name(shown)}{more}: {_cure(set(unknown), known)}"


def _normalised(text: str) -> str:
    return " ".join(text.split())


def _train(texts: list[str], vocab_size: int, strict: bool) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=1.0,
        # The text decides its own form: no NFKC that decoding could not undo.
        normalization_rule_name="identity",
        user_defined_symbols=_SPECIAL,
        unk_id=len(_SPECIAL),
        unk_piece=UNKNOWN,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        hard_vocab_limit=strict,
        input_sentence_size=0,
        max_sentence_length=1 << 20,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _pieces(model: bytes) -> int:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()


def train_bpe(texts: Iterable[str], vocab_size: int, output_dir: str | os.PathLike) -> Path:
    """Train BPE units on ``texts`` and write ``output_dir``/bpe.model (aside, then renamed).

    Args:
      texts: one transcript each; white space is collapsed, empty ones are left out.
      vocab_size: number of units, blank, <sos/eos> and <unk> included (paper §5.1: 500).

    Returns:
      The path of bpe.model; the same texts in the same order give the same bytes.

    Raises:
      ValueError: no text, or a vocabulary that is too small or too large for it (the limit is named).
    """
    lines = [line for line in (_normalised(text) for text in texts) if line]
    if not lines:
        raise ValueError("train_bpe got no text: the cuts have no transcripts, or all of them are empty.")
    for special in (*_SPECIAL, UNKNOWN, _WORD_START):
        held = next((line for line in lines if special in line), None)
        if held is not None:
            raise ValueError(
                f"a transcript contains {special!r}, which is reserved: remove it from the text "
                f"{held[:200]!r}."
            )
    characters = set("".join(lines)) - {" "}
    smallest = len(_SPECIAL) + 1 + len(characters | {_WORD_START})
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size is {vocab_size}, but the text has {len(characters)} different characters: with the "
            f"special units at least {smallest} are needed. Raise vocab_size, or normalise the text."
        )
    try:
        model = _train(lines, vocab_size, strict=True)
        reached = _pieces(model)
    except RuntimeError as problem:
        model, reached = b"", 0
        logger.debug("sentencepiece: %s", problem)
        if not re.search("vocab", str(problem), re.IGNORECASE):
            raise RuntimeError(
                f"sentencepiece could not train on {len(lines)} transcripts: {problem}"
            ) from problem
    if reached < vocab_size:
        # Not so at first: the model holds its options, and with them its identity.
        largest = _pieces(_train(lines, vocab_size, strict=False))
        raise ValueError(
            f"vocab_size is {vocab_size}, but {len(lines)} transcripts ({sum(map(len, lines))} characters) "
            f"give at most {largest} BPE units: set vocab_size to {largest} or less, or use more text."
        )
    path = Path(output_dir) / "bpe.model"
    with atomic_file(path) as file:
        file.write(model)
    return path


class TextUnits:
    """BPE units read from a sentencepiece model.

    Args:
      path: bpe.model, or the folder that holds it.
    """

    blank_id = 0

    def __init__(self, path: str | os.PathLike):
        import sentencepiece

        path = Path(path)
        self.path = path / "bpe.model" if path.is_dir() else path
        if not self.path.is_file():
            raise ValueError(f"{self.path} does not exist: train the text units first (prepare.sh stage 7).")
        content = self._content = self.path.read_bytes()
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as problem:
            raise ValueError(f"{self.path} is no sentencepiece model: {problem}") from problem
        if self._model.id_to_piece(self.blank_id) != BLANK:
            raise ValueError(
                f"{self.path}: unit 0 is {self._model.id_to_piece(0)!r}, but {BLANK} is needed there. "
                "Train the units with spear_lib.asr.units.train_bpe."
            )
        self.vocab_size: int = self._model.get_piece_size()
        self.unk_id: int = self._model.unk_id()
        self.id = "bpe-" + hashlib.sha256(content).hexdigest()[:16]
        pieces = map(self._model.id_to_piece, range(self.vocab_size))
        # sentencepiece makes a word's start of "▁", so no text can hold it.
        self.known_characters: set[str] = {p for p in pieces if len(p) == 1 and p != _WORD_START}

    def __len__(self) -> int:
        return self.vocab_size

    def save(self, folder: str | os.PathLike) -> None:
        """Writes bpe.model into ``folder``."""
        path = Path(folder) / self.path.name
        if not (path.is_file() and path.read_bytes() == self._content):
            with atomic_file(path) as file:
                file.write(self._content)

    def check(self, text: str) -> None:
        """The error that ``encode`` would raise, several times quicker where there is none."""
        if "<" in text or not self.known_characters.issuperset(text.replace(" ", "")):
            self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Unit ids of ``text``, without blank. Raises ValueError on characters that no unit can write."""
        text = _normalised(text)
        ids = self._model.encode(text, out_type=int)
        if any(unit <= self.unk_id for unit in ids) or _WORD_START in text:
            unknown = self.unknown_characters(text) or set("<>")
            raise _unwritable(text, unknown, self.known_characters, f"the BPE units {self.path}")
        return ids

    def unknown_characters(self, text: str) -> set[str]:
        """Characters of ``text`` that no unit can write."""
        return set("".join(text.split())) - self.known_characters

    def decode(self, ids: Iterable[int]) -> str:
        """Text of unit ids (blank and the other special units write nothing)."""
        ids = [int(unit) for unit in ids]
        wrong = [unit for unit in ids if not 0 <= unit < self.vocab_size]
        if wrong:
            raise ValueError(
                f"unit id {wrong[0]} is outside 0..{self.vocab_size - 1}: other units than the model's?"
            )
        return self._model.decode([unit for unit in ids if unit > self.unk_id])

    def unit(self, unit_id: int) -> str:
        """How one unit is written."""
        return self._model.id_to_piece(unit_id)


class CharacterUnits:
    """One unit per character; blank is 0, the space separates words only (none at the ends)."""

    blank_id = 0
    unk_id = None

    def __init__(self, characters: str = ENGLISH_CHARACTERS):
        if len(set(characters)) != len(characters) or " " not in characters:
            raise ValueError("character units must be different characters and hold the space.")
        self.characters = characters
        self.vocab_size = len(characters) + 1
        self.id = "characters-" + hashlib.sha256(characters.encode()).hexdigest()[:16]
        self._ids = {character: index + 1 for index, character in enumerate(characters)}

    def __len__(self) -> int:
        return self.vocab_size

    def save(self, folder: str | os.PathLike) -> None:
        """Nothing: they are known by their name."""

    def check(self, text: str) -> None:
        """The error that ``encode`` would raise."""
        self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Unit ids of ``text``, without blank. Raises ValueError on unknown characters."""
        text = _normalised(text)
        unknown = self.unknown_characters(text)
        if unknown:
            raise _unwritable(text, unknown, self.known_characters, "the character units")
        return [self._ids[character] for character in text]

    @property
    def known_characters(self) -> set[str]:
        """What texts may hold."""
        return set(self._ids)

    def unknown_characters(self, text: str) -> set[str]:
        """Characters of ``text`` that no unit can write."""
        return set(_normalised(text)) - set(self._ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of unit ids; blank writes nothing, spaces are collapsed."""
        ids = [int(unit) for unit in ids]
        wrong = [unit for unit in ids if not 0 <= unit < self.vocab_size]
        if wrong:
            raise ValueError(
                f"unit id {wrong[0]} is outside 0..{self.vocab_size - 1}: other units than the model's?"
            )
        return _normalised("".join(self.characters[unit - 1] for unit in ids if unit > 0))

    def unit(self, unit_id: int) -> str:
        """How one unit is written."""
        return BLANK if unit_id == 0 else self.characters[unit_id - 1]


def character_units() -> CharacterUnits:
    """The 29 labels of the paper's CTC models: blank, space, apostrophe, A..Z."""
    return CharacterUnits()


def load_units(name: str | os.PathLike) -> TextUnits | CharacterUnits:
    """Units by the option ``units``: "characters", bpe.model or the folder that holds it."""
    return character_units() if name == "characters" else TextUnits(name)


def units_of(experiment_dir: str, name: str) -> Any:
    """The text units called ``name``, or those that the experiment was trained with: its folder holds them,
    so that it can be copied elsewhere.

    For experiments from before that: paths in config.yaml count from the folder in which the training was
    started, which is looked for among the current folder and those above the experiment.

    Raises:
      ValueError: not found.
    """
    if name:
        return load_units(name)
    inside = Path(experiment_dir) / UNITS_FOLDER
    if inside.is_dir():
        return load_units(inside)
    path = Path(experiment_dir) / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give the folder of finetune_asr, or the units")
    name = str(read_yaml(path).get("units", ""))
    if not name:
        raise ValueError(f"{path} names no units: give the folder of finetune_asr, or the units")
    folders = [Path(), *Path(experiment_dir).resolve().parents]
    place = next((folder / name for folder in folders if (folder / name).exists()), None)
    if name == "characters" or place is None:
        return load_units(name)
    return load_units(str(place))
