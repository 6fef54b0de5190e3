"""Tokens of a store as text, for language models of speech: one line per recording, repeated units joined.

    python -m spear_lib.bin.export_units --store data/tokens/spear/train --output data/units/train.txt

A line is the recording's id, a tab, and its units separated by spaces; OUTPUT.json says how many there are,
their perplexity and their bit rate.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from spear_lib.bin.common import command_line, run
from spear_lib.config import parse
from spear_lib.runtime.files import atomic_path, write_json
from spear_lib.runtime.log import first_screen
from spear_lib.tokens.store import TokenStoreReader
from spear_lib.tokens.units import UnitStatistics, utterances

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportUnitsOptions:
    """Which tokens, and how they are written."""

    store: str
    """Token store of stage 5 (dump_tokens)."""
    output: str
    """Text file."""
    codebook: int = 0
    """Which codebook of the tokens, from 0."""
    deduplicate: bool = True
    """Write a unit that lasts several frames once."""
    durations: bool = False
    """Add a second tab and the frames of every unit."""
    ids: bool = True
    """Begin every line with the recording's id; false: units alone, as text for a language model."""


def main(argv: list[str] | None = None) -> None:
    options = parse(
        ExportUnitsOptions, argv, prog="python -m spear_lib.bin.export_units", description=__doc__
    )
    store = TokenStoreReader(options.store)
    facts = store.facts
    first_screen(
        "Units as text",
        {
            "tokens": f"{facts.field}, {facts.num_codebooks} codebooks x {facts.codebook_size} at "
            f"{facts.frame_rate:g} Hz, quantiser {facts.quantizer_id}",
            "writes to": options.output,
        },
    )
    statistics = UnitStatistics(facts.codebook_size, facts.frame_rate)
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(output) as partial, partial.open("w", encoding="utf-8") as file:
        for utterance in utterances(store, options.codebook, options.deduplicate):
            statistics.add(utterance)
            columns = [utterance.cut_id] if options.ids else []
            columns.append(" ".join(map(str, utterance.units.tolist())))
            if options.durations:
                columns.append(" ".join(map(str, utterance.durations.tolist())))
            file.write("\t".join(columns) + "\n")
    summary = statistics.summary()
    about = {"field": facts.field, "quantizer_id": facts.quantizer_id, "codebook": options.codebook}
    command = command_line("spear_lib.bin.export_units", argv)
    write_json(f"{output}.json", {**about, **summary, "command": command})
    logger.info(
        "%s: %d recordings, %.1f units per second, perplexity %.1f, %d of %d units used, %.0f bits/s",
        output,
        summary["recordings"],
        summary["units_per_second"],
        summary["perplexity"],
        summary["active_units"],
        facts.codebook_size,
        summary["bits_per_second"],
    )


if __name__ == "__main__":
    run(main)
