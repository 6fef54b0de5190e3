"""Reading n-gram language models: ARPA files (plain or gzip; their log10 become natural logarithms) or our
compiled form."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from spear_lib.asr.ngram import SPECIAL_WORDS, UNKNOWN, NgramModel, build_ngram_model
from spear_lib.runtime.text_files import text_lines

LN_10 = math.log(10.0)
# Of words that the model does not know, where it says nothing about them (KenLM's convention), log10.
_UNKNOWN_LOG10 = -100.0


def load_ngram_model(path: str | os.PathLike) -> NgramModel:
    """A compiled model (``*.npz``) or an ARPA file (``*.arpa``, ``*.arpa.gz``).

    Raises:
      ValueError: there is no such file, or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(
            f"{path} does not exist: train a language model with python -m spear_lib.bin.train_lm "
            "(prepare.sh stage 7 does), or give an ARPA file"
        )
    if path.suffix != ".npz":
        return read_arpa(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        words = arrays["words"].tobytes().decode().split("\n")
        tensors = [torch.from_numpy(arrays[n]) for n in ("keys", "log_probs", "backoffs", "suffixes")]
        return NgramModel(int(arrays["order"]), words, *tensors, int(arrays["num_contexts"]))
    except Exception as problem:  # zipfile, zlib, numpy and the decoder each have their own
        raise ValueError(f"{path} is no compiled language model, or it is damaged: {problem!r}") from problem


def read_arpa(path: str | os.PathLike) -> NgramModel:
    """The model of an ARPA file.

    Raises:
      ValueError: the file is damaged; the message says in which line.
    """
    path = Path(path)
    lines = _Lines(path)
    counts = _read_counts(lines)
    words: list[str] = []
    ids: dict[str, int] = {}
    levels = []
    for order, count in enumerate(counts, 1):
        lines.expect(f"\\{order}-grams:")
        level = _read_level(lines, order, count, words, ids)
        if order == 1:
            level = _with_special_words(level, words, ids, path)
        levels.append(level)
    lines.expect("\\end\\")
    return build_ngram_model(words, levels, str(path))


class _Lines:
    """Lines of the file that are not empty, with their numbers."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, 0
        self._lines = self._read()
        self._ahead: list[str] = []

    def _read(self) -> Iterator[str]:
        for number, line in text_lines(self.path):
            self.number = number
            yield line

    def next(self) -> str:
        """The next line; the end of the file is an error, since \\end\\ must come before it."""
        line = self._ahead.pop() if self._ahead else next(self._lines, None)
        if line is None:
            raise self.error("it ends here, before \\end\\")
        return line

    def peek(self) -> str:
        """The next line, which stays the next one."""
        self._ahead.append(self.next())
        return self._ahead[-1]

    def expect(self, wanted: str) -> None:
        """Reads the line ``wanted``."""
        line = self.next().strip()
        if line != wanted:
            raise self.error(
                f"{line[:60]!r} where {wanted!r} was expected; do the counts of the header hold?"
            )

    def error(self, text: str) -> ValueError:
        """What is wrong, with the place."""
        return ValueError(
            f"{self.path}, line {self.number}: {text}. It is no ARPA file, or it is damaged: fetch it again, "
            "or make it again with python -m spear_lib.bin.train_lm"
        )


def _read_counts(lines: _Lines) -> list[int]:
    # Some tools write comments before the header.
    while lines.next().strip() != "\\data\\":
        if lines.number > 1000:
            raise lines.error("no \\data\\ in the first 1000 lines")
    counts: list[int] = []
    while not counts or lines.peek().startswith("ngram"):
        line = lines.next().strip()
        match = re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line)
        if match is None or int(match[1]) != len(counts) + 1 or int(match[2]) < 1:
            raise lines.error(f"{line[:60]!r} where 'ngram {len(counts) + 1}=COUNT' was expected")
        counts.append(int(match[2]))
    return counts


def _read_level(
    lines: _Lines, order: int, count: int, words: list[str], ids: dict[str, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sequences = np.zeros((count, order), dtype=np.int32)
    log_probs, backoffs = np.zeros(count, dtype=np.float32), np.zeros(count, dtype=np.float32)
    for row in range(count):
        fields = lines.next().split()
        try:
            log_probs[row] = float(fields[0])
            if len(fields) == order + 2:
                backoffs[row] = float(fields[-1])
            elif len(fields) != order + 1:
                raise ValueError("fields")
        except ValueError:
            text = " ".join(fields)[:60]
            raise lines.error(
                f"{text!r} is no {order}-gram (log10 probability, {order} word(s), perhaps a back-off weight)"
            ) from None
        if order == 1:
            if fields[1] in ids:
                raise lines.error(f"the word {fields[1]!r} is there twice")
            ids[fields[1]] = len(words)
            words.append(fields[1])
        try:
            sequences[row] = [ids[word] for word in fields[1 : order + 1]]
        except KeyError as unknown:
            raise lines.error(f"the word {unknown} is in no 1-gram") from None
    wrong = ~(np.isfinite(log_probs) & (log_probs <= 0) & np.isfinite(backoffs))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise lines.error(
            f"of the {order}-grams above, number {row + 1} has the log10 probability {log_probs[row]:g} and "
            f"the back-off weight {backoffs[row]:g}; a probability is at most 0 there, and both are finite"
        )
    return sequences, log_probs * LN_10, backoffs * LN_10


def _with_special_words(level, words: list[str], ids: dict[str, int], path: Path):
    """Adds <unk> where the file has none; <s> and </s> must be there."""
    if UNKNOWN not in ids and "<UNK>" in ids:
        words[ids["<UNK>"]] = UNKNOWN  # SRILM and the LibriSpeech models of openslr 11 write it so
        ids[UNKNOWN] = ids["<UNK>"]
    missing = [word for word in SPECIAL_WORDS if word not in ids and word != UNKNOWN]
    if missing:
        raise ValueError(f"{path} has no 1-gram {' and no '.join(missing)}: sentences cannot be scored")
    if UNKNOWN in ids:
        return level
    ids[UNKNOWN] = len(words)
    words.append(UNKNOWN)
    sequences, log_probs, backoffs = level
    return (
        np.concatenate([sequences, [[ids[UNKNOWN]]]]),
        np.append(log_probs, np.float32(_UNKNOWN_LOG10 * LN_10)),
        np.append(backoffs, np.float32(0.0)),
    )
