"""Train a word n-gram for decoding on transcripts or text, or compile an ARPA file (stage 7)."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from spear_lib.asr.arpa import load_ngram_model
from spear_lib.asr.ngram import SPECIAL_WORDS
from spear_lib.asr.ngram_training import train_ngram
from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.data.manifests import Manifest
from spear_lib.data.references import transcript
from spear_lib.runtime.files import write_json
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.text_files import text_lines

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LmOptions:
    """What the model is made of, and where it goes."""

    output_dir: str
    """Receives lm.npz (compiled: what decode reads), lm.json and, where it is trained here, lm.arpa.gz."""
    cuts: list[str] = field(default_factory=list)
    """Manifests whose transcripts it is trained on."""
    text: list[str] = field(default_factory=list)
    """Text files (plain or .gz), one sentence per line, written as the transcripts are."""
    arpa: str = ""
    """An ARPA file (plain or .gz) to compile instead of training: for LibriSpeech 4-gram.arpa.gz (1.3 GB) or
    the smaller 3-gram.pruned.1e-7.arpa.gz of https://www.openslr.org/11."""
    order: int = 3
    """Longest n-gram of a model that is trained here."""
    test_cuts: list[str] = field(default_factory=list)
    """Manifests whose transcripts' perplexity is reported: development sets."""

    def __post_init__(self) -> None:
        if bool(self.arpa) == bool(self.cuts or self.text):
            raise ValueError("give either arpa, or what to train on: cuts, text or both")


def sentences_of(cuts: list[str], text: list[str]) -> Iterator[list[str]]:
    """Words of every transcript and of every line.

    Raises:
      ValueError: a text file that does not exist.
    """
    for name in cuts:
        manifest = Manifest(name)
        for position in range(len(manifest)):
            yield transcript(manifest[position]).split()
    for path in map(Path, text):
        if not path.exists():
            raise ValueError(f"{path} does not exist: give text files, one sentence per line")
        for _, line in text_lines(path):
            yield line.split()


def main(argv: list[str] | None = None) -> None:
    options = parse(
        LmOptions,
        argv,
        prog="python -m spear_lib.bin.train_lm",
        description="Train a word n-gram for decoding on transcripts or text, or compile an ARPA file.",
    )
    output_dir = Path(options.output_dir)
    path = Path(options.arpa) if options.arpa else output_dir / "lm.arpa.gz"
    sources = [options.arpa] if options.arpa else [*options.cuts, *options.text]
    first_screen(
        "Compiling a language model" if options.arpa else f"Training a {options.order}-gram language model",
        {"from": ", ".join(sources), "results": output_dir},
    )
    if not options.arpa:
        train_ngram(sentences_of(options.cuts, options.text), options.order, path)
    model = load_ngram_model(path)
    model.save(output_dir / "lm.npz")
    facts = {"from": sources, "order": model.order, "words": model.num_words, "ngrams": len(model.keys)}
    if options.test_cuts:
        sentences = list(sentences_of(options.test_cuts, []))
        words = [word for sentence in sentences for word in sentence]
        unknown = sum(word not in model.word_ids for word in words)
        facts |= {
            "test": options.test_cuts,
            "perplexity": round(model.perplexity(sentences), 2),
            "unknown_words": f"{unknown} of {len(words)}",
        }
        if 2 * unknown > len(words):
            logger.warning(
                "%d of %d words of %s are unknown to the model, so its perplexity says nothing: is one of "
                "them written in another case, or with punctuation? The model knows %s",
                unknown,
                len(words),
                ", ".join(options.test_cuts),
                ", ".join([repr(word) for word in model.words if word not in SPECIAL_WORDS][:3]),
            )
    write_json(output_dir / "lm.json", facts)
    said = ", ".join(f"{re.sub('_', ' ', name)} {value}" for name, value in facts.items() if name != "from")
    logger.info("%s: %s", output_dir / "lm.npz", said)


if __name__ == "__main__":
    run(main)
