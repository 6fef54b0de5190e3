"""Train text units (BPE) on the transcripts of cuts (stage 7)."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from spear_lib.asr.units import TextUnits, character_units, train_bpe
from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.data.manifests import Manifest
from spear_lib.data.references import transcript
from spear_lib.runtime.files import write_json, write_text
from spear_lib.runtime.log import first_screen

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UnitsOptions:
    """Which text, how many units, where to."""

    cuts: list[str]
    """Manifests whose transcripts the units are made of: the transcribed part that fine-tuning uses."""
    output_dir: str
    """Receives bpe.model, units.txt (the units by id), characters.txt (the labels of CTC) and units.json."""
    vocab_size: int = 500
    """Number of BPE units, blank and special units included (paper §5.1: 500)."""


def main(argv: list[str] | None = None) -> None:
    options = parse(
        UnitsOptions,
        argv,
        prog="python -m spear_lib.bin.train_units",
        description="Train BPE units on the transcripts of cuts.",
    )
    output_dir = Path(options.output_dir)
    manifest = Manifest(options.cuts)
    texts = [transcript(manifest[index]) for index in range(len(manifest))]
    first_screen(
        "Training text units",
        {"cuts": ", ".join(options.cuts), "transcripts": len(texts), "units": options.vocab_size},
    )
    units = TextUnits(train_bpe(texts, options.vocab_size, output_dir))

    # Every transcript must come back as it was; otherwise a perfect recogniser would have errors.
    for text in texts:
        if units.decode(units.encode(text)) != text:
            raise RuntimeError(
                f"the units do not write {text!r} back, but {units.decode(units.encode(text))!r}"
            )
    num_ids = sum(len(units.encode(text)) for text in texts)
    num_words = sum(len(text.split()) for text in texts)
    write_text(output_dir / "units.txt", "".join(f"{i} {units.unit(i)}\n" for i in range(units.vocab_size)))
    characters = character_units()
    write_text(
        output_dir / "characters.txt",
        "".join(f"{i} {json.dumps(characters.unit(i))}\n" for i in range(characters.vocab_size)),
    )
    facts = {
        "id": units.id,
        "vocab_size": units.vocab_size,
        "num_transcripts": len(texts),
        "num_words": num_words,
        "units_per_word": round(num_ids / max(num_words, 1), 3),
    }
    write_json(output_dir / "units.json", facts)
    logger.info("%s: %s units, %.2f per word", units.path, units.vocab_size, num_ids / max(num_words, 1))


if __name__ == "__main__":
    run(main)
