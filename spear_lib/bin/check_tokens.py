"""Stage 6: join the shards of a token store, check them against the manifest (every cut exactly once, nothing
damaged), and write the cuts with their tokens."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spear_lib.bin.common import first_screen, run
from spear_lib.config import parse
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.tokens import TokenStoreReader, attach_tokens, validate, write_store_facts
from spear_lib.data.tokens_plan import refuse_same_audio
from spear_lib.data.tokens_report import find_gaps, summary_lines, usage_summary
from spear_lib.files import write_text
from spear_lib.quantization.storage import quantizer_file, read_quantizer
from spear_lib.teachers.embedding import resolve_manifests

logger = logging.getLogger(__name__)

BAD_CUTS_FILE = "bad_cuts.txt"


@dataclass(frozen=True)
class Options:
    """Options of check_tokens."""

    cuts: str | list[str]
    """Manifest(s) that the tokens were made for."""
    store: str
    """Folder of the token store (output_dir of dump_tokens)."""
    output_cuts: str = ""
    """Manifest to write: the cuts with their token field; empty: only check."""
    quantizer: str = ""
    """If given: refuse tokens of another quantiser than this one."""
    max_bad_fraction: float = 0.001
    """Share of the cuts that may have no tokens; they are left out of output_cuts."""


def check_quantizer(options: Options, found: str) -> None:
    """ValueError if the store's tokens (of quantiser ``found``) come from another quantiser than the one
    given."""
    if not options.quantizer:
        return
    wanted = read_quantizer(options.quantizer)[1]["id"]
    if wanted != found:
        raise ValueError(
            f"{options.store} holds tokens of quantiser {found}, but {quantizer_file(options.quantizer)} is "
            f"{wanted}; delete the store and run stage 5 again"
        )


def check_gaps(options: Options, manifest: Manifest, reader: TokenStoreReader) -> dict[str, str]:
    """Cuts without tokens (id -> why), listed in a file; ValueError if there are too many, or foreign
    tokens."""
    gaps, foreign = find_gaps(manifest, reader)
    if foreign:
        raise ValueError(
            f"{options.store} holds tokens of {len(foreign)} cuts that {manifest.describe()} does not have, "
            f"for example {foreign[0]}: it belongs to another corpus; delete it and run stage 5 again"
        )
    listing = Path(options.store) / BAD_CUTS_FILE
    listing.unlink(missing_ok=True)
    if gaps:
        write_text(listing, "".join(f"{cut}\t{why}\n" for cut, why in gaps.items()))
    if len(gaps) > options.max_bad_fraction * len(manifest):
        shown = "; ".join(f"{cut}: {why}" for cut, why in list(gaps.items())[:5])
        raise ValueError(
            f"{len(gaps)} of {len(manifest)} cuts have no tokens in {options.store}, at most "
            f"{options.max_bad_fraction:.2%} may: {shown} ({listing} lists them all). Repair their audio "
            "and run stage 5 with --retry_skipped true, or, where cuts were added, delete the store and run "
            "stage 5 again"
        )
    return gaps


def main() -> None:
    options = parse(Options, prog="python -m spear_lib.bin.check_tokens", description=__doc__)
    manifest = Manifest(resolve_manifests(options.cuts))
    refuse_same_audio(manifest)
    reader = TokenStoreReader(options.store)
    facts = reader.facts
    first_screen(
        "check and attach tokens",
        {
            "cuts": f"{len(manifest)} of {manifest.describe()}",
            "tokens": f"{facts.field}, quantiser {facts.quantizer_id}, teacher {facts.teacher_id}",
        },
    )
    check_quantizer(options, facts.quantizer_id)
    gaps = check_gaps(options, manifest, reader)
    usage = usage_summary(reader.verify())
    counts = {
        "num_cuts": len(manifest) - len(gaps),
        "num_skipped": len(gaps),
        "num_frames": reader.num_frames,
        "num_bytes": reader.num_bytes,
        "audio_hours": round(manifest.hours, 6),
        "num_shards": reader.num_shards,
    }
    write_store_facts(options.store, facts, {**counts, **usage})
    kept = (cut for cut in manifest if cut.id not in gaps)
    if options.output_cuts:
        save_cuts(attach_tokens(kept, reader), options.output_cuts)
        kept = Manifest(options.output_cuts)
    else:
        kept = attach_tokens(kept, reader)
    report = validate(kept, facts.field, facts.quantizer_id, max_bad_fraction=0.0)
    for line in summary_lines(facts, counts, usage):
        logger.info("%s", line)
    logger.info(
        "all %d cuts have their tokens; %.1f %% of the codes are used",
        report.num_cuts,
        100 * float(np.mean(usage["used_share"])),
    )
    if options.output_cuts:
        logger.info("cuts with tokens: %s", Path(options.output_cuts))


if __name__ == "__main__":
    run(main)
