"""A whole token store against the manifest it was made for: gaps, foreign tokens, other quantisers (ours)."""

import logging
import os
from pathlib import Path

import numpy as np

from spear_lib.data.manifests import Manifest
from spear_lib.quantization.storage import quantizer_file, read_quantizer
from spear_lib.runtime.files import write_text
from spear_lib.tokens.fields import TokenStoreReader, write_store_facts
from spear_lib.tokens.report import find_gaps, summary_lines, usage_summary

logger = logging.getLogger(__name__)

BAD_CUTS_FILE = "bad_cuts.txt"


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
