"""Stage 6: join the shards of a token store, check them against the manifest (every cut exactly once, nothing
damaged), and write the cuts with their tokens. Several stores, one for each teacher, are attached at once."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lhotse.cut import Cut

from spear_lib.bin.common import as_list, run
from spear_lib.config import parse
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.quantization.storage import quantizer_file, read_quantizer
from spear_lib.runtime.files import write_text
from spear_lib.runtime.log import first_screen
from spear_lib.teachers.embedding import resolve_manifests
from spear_lib.tokens.fields import TokenStoreReader, attach_tokens, validate, write_store_facts
from spear_lib.tokens.plan import as_ranges, refuse_same_audio
from spear_lib.tokens.report import find_gaps, summary_lines, usage_summary
from spear_lib.tokens.store import missing_parts

logger = logging.getLogger(__name__)

BAD_CUTS_FILE = "bad_cuts.txt"


@dataclass(frozen=True)
class Options:
    """Options of check_tokens."""

    cuts: str | list[str]
    """Manifest(s) that the tokens were made for."""
    store: str | list[str]
    """Folder of the token store (output_dir of dump_tokens), or several with a field each."""
    output_cuts: str = ""
    """Manifest to write: the cuts with their token field; empty: only check."""
    quantizer: str | list[str] = ""
    """If given, one for each store: refuse tokens of another quantiser than this one."""
    max_bad_fraction: float = 0.001
    """Share of the cuts that may have no tokens; they are left out of output_cuts."""

    missing: int = 0
    """Only print which of this many parts (num_splits of dump_tokens) are not made, as --array of Slurm takes
    them, 1-3,7; an empty line: all are made."""

    def __post_init__(self) -> None:
        if self.missing < 0:
            raise ValueError(
                f"missing is {self.missing}: give the number of parts, num_splits of dump_tokens"
            )
        stores, quantizers = as_list(self.store), as_list(self.quantizer)
        if self.quantizer and len(quantizers) != len(stores):
            raise ValueError(
                f"{len(stores)} store(s) but {len(quantizers)} quantizer(s): give one for each, or none"
            )


def check_quantizer(quantizer: str, store: str, found: str) -> None:
    """ValueError if the store's tokens (of quantiser ``found``) come from another quantiser than the one
    given."""
    wanted = read_quantizer(quantizer)[1]["id"]
    if wanted != found:
        raise ValueError(
            f"{store} holds tokens of quantiser {found}, but {quantizer_file(quantizer)} is {wanted}; delete "
            "the store and run stage 5 again"
        )


def list_gaps(gaps: dict[str, str], store: str, output_cuts: str) -> str:
    """Writes the cuts without tokens into the store, or beside ``output_cuts`` where the store is read-only:
    a linked store need not be writable. Returns where they are, for a message."""
    listing = Path(store) / BAD_CUTS_FILE
    places = [listing] + ([Path(f"{output_cuts}.{BAD_CUTS_FILE}")] if output_cuts else [])
    if not gaps:
        if os.access(store, os.W_OK):
            listing.unlink(missing_ok=True)
        return "none"
    for place in places:
        try:
            write_text(place, "".join(f"{cut}\t{why}\n" for cut, why in gaps.items()))
        except OSError as error:
            logger.info("%s", error.strerror or error)
        else:
            return f"{place} lists them all"
    return "there is no room for a list of all: give output_cuts"


def check_gaps(
    store: str, manifest: Manifest, reader: TokenStoreReader, limit: float, output_cuts: str = ""
) -> dict[str, str]:
    """Cuts without tokens (id -> why), listed in a file; ValueError if there are too many, or foreign
    tokens."""
    gaps, foreign = find_gaps(manifest, reader)
    if foreign:
        raise ValueError(
            f"{store} holds tokens of {len(foreign)} cuts that {manifest.describe()} does not have, for "
            f"example {foreign[0]}: it belongs to another corpus; delete it and run stage 5 again"
        )
    listing = list_gaps(gaps, store, output_cuts)
    if len(gaps) > limit * len(manifest):
        shown = "; ".join(f"{cut}: {why}" for cut, why in list(gaps.items())[:5])
        raise ValueError(
            f"{len(gaps)} of {len(manifest)} cuts have no tokens in {store}, at most {limit:.2%} may: "
            f"{shown} ({listing}). Repair their audio and run stage 5 with --retry_skipped "
            "true, or, where cuts were added, delete the store and run stage 5 again"
        )
    return gaps


def check_store(
    store: str, manifest: Manifest, reader: TokenStoreReader, limit: float, output_cuts: str = ""
) -> dict[str, str]:
    """Check one store as a whole and write what is in it to its store.json; returns ``check_gaps``'s gaps."""
    gaps = check_gaps(store, manifest, reader, limit, output_cuts)
    usage = usage_summary(reader.verify())
    counts = {
        "num_cuts": len(manifest) - len(gaps),
        "num_skipped": len(gaps),
        "num_frames": reader.num_frames,
        "num_bytes": reader.num_bytes,
        "audio_hours": round(manifest.hours, 6),
        "num_shards": reader.num_shards,
    }
    try:
        write_store_facts(store, reader.facts, {**counts, **usage})
    except OSError as error:
        logger.warning("the summary of %s is not written: %s", store, error.strerror or error)
    for line in summary_lines(reader.facts, counts, usage):
        logger.info("%s", line)
    logger.info("%.1f %% of the codes are used", 100 * float(np.mean(usage["used_share"])))
    return gaps


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, prog="python -m spear_lib.bin.check_tokens", description=__doc__)
    if options.missing:
        print(as_ranges(missing_parts(as_list(options.store), options.missing)))
        return
    manifest = Manifest(resolve_manifests(options.cuts))
    refuse_same_audio(manifest)
    readers = {store: TokenStoreReader(store) for store in as_list(options.store)}
    lines = {"cuts": f"{len(manifest)} of {manifest.describe()}"}
    for store, reader in readers.items():
        facts = reader.facts
        if f"tokens {facts.field}" in lines:
            raise ValueError(f"two of the stores hold the field {facts.field!r}: a cut has it once")
        made_by = f"quantiser {facts.quantizer_id}, teacher {facts.teacher_id}"
        lines[f"tokens {facts.field}"] = f"{made_by}, {store}"
    first_screen("check and attach tokens", lines)
    gaps: dict[str, str] = {}
    quantizers = as_list(options.quantizer) if options.quantizer else [""] * len(readers)
    for quantizer, (store, reader) in zip(quantizers, readers.items()):
        if quantizer:
            check_quantizer(quantizer, store, reader.facts.quantizer_id)
        gaps |= check_store(store, manifest, reader, options.max_bad_fraction, options.output_cuts)

    def attached() -> Iterable[Cut]:
        cuts: Iterable[Cut] = (cut for cut in manifest if cut.id not in gaps)
        for reader in readers.values():
            cuts = attach_tokens(cuts, reader)
        return cuts

    if options.output_cuts:
        save_cuts(attached(), options.output_cuts)
    for reader in readers.values():
        cuts = Manifest(options.output_cuts) if options.output_cuts else attached()
        report = validate(cuts, reader.facts.field, reader.facts.quantizer_id, max_bad_fraction=0.0)
        logger.info("all %d cuts have their tokens %s", report.num_cuts, reader.facts.field)
    if options.output_cuts:
        logger.info("cuts with tokens: %s", Path(options.output_cuts))


if __name__ == "__main__":
    run(main)
