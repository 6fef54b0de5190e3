"""Stage 6: check a token store (every cut exactly once, nothing damaged) and write the cuts with their
tokens."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spear_lib.bin.common import first_screen, run
from spear_lib.bin.dump_tokens import cuts_hash
from spear_lib.config import parse
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.tokens import TokenStoreReader, attach_tokens, validate, write_store_facts
from spear_lib.quantization.storage import quantizer_file, read_quantizer
from spear_lib.teachers.embedding import resolve_manifests

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Options of check_tokens."""

    cuts: str | list[str]
    """Manifest(s) that the tokens were made for."""
    store: str
    """Folder of the token store (output_dir of dump_tokens)."""
    output_cuts: str
    """Manifest to write: the cuts with their token field."""
    quantizer: str = ""
    """If given: refuse tokens of another quantiser than this one."""


def usage_summary(counts: np.ndarray) -> dict[str, object]:
    """Per codebook: entropy in bits and nats (the unigram baseline of the token loss), perplexity, share
    used."""
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    logs = np.log(np.where(share > 0, share, 1.0))
    nats = -(share * logs).sum(axis=1)
    return {
        "unigram_entropy_nats": [round(float(each), 6) for each in nats],
        "mean_unigram_entropy_nats": round(float(nats.mean()), 6),
        "perplexity": [round(float(each), 3) for each in np.exp(nats)],
        "used_share": [round(float(each), 6) for each in (counts > 0).mean(axis=1)],
    }


def main() -> None:
    options = parse(Options, prog="python -m spear_lib.bin.check_tokens", description=__doc__)
    manifest = Manifest(resolve_manifests(options.cuts))
    reader = TokenStoreReader(options.store)
    facts = reader.facts
    first_screen(
        "check and attach tokens",
        {
            "cuts": f"{len(manifest)} of {manifest.describe()}",
            "tokens": f"{facts.field}, quantiser {facts.quantizer_id}, teacher {facts.teacher_id}",
        },
    )
    if options.quantizer:
        wanted = read_quantizer(options.quantizer)[1]["id"]
        if wanted != facts.quantizer_id:
            raise ValueError(
                f"{options.store} holds tokens of quantiser {facts.quantizer_id}, but "
                f"{quantizer_file(options.quantizer)} is {wanted}; delete the store and run stage 5 again"
            )
    missing = [name for name in manifest.ids if name not in reader.entries]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(manifest)} cuts have no tokens in {options.store}, for example "
            f"{missing[0]}; "
            "the store was made for other cuts, or cuts were added: delete it and run stage 5 again"
        )
    extra = [name for name in reader.entries if name not in manifest]
    if extra:
        raise ValueError(
            f"{options.store} holds tokens of {len(extra)} cuts that {manifest.describe()} does not have, "
            f"for example "
            f"{extra[0]}: it belongs to another corpus; delete it and run stage 5 again"
        )
    if facts.cuts_id != cuts_hash(manifest):
        raise ValueError(
            f"{options.store} was made for the same ids but in another order or with other durations than "
            f"{manifest.describe()}; delete it and run stage 5 again"
        )
    reader.verify()
    num_frames = sum(entry.num_frames for entry in reader.entries.values())
    usage = usage_summary(reader.histograms())
    write_store_facts(
        options.store,
        facts,
        {
            "num_cuts": len(reader),
            "num_frames": num_frames,
            "audio_hours": round(manifest.hours, 6),
            "num_splits": len(reader.folders),
            "num_shards": len(reader.shards),
            **usage,
        },
    )
    save_cuts(attach_tokens(manifest, options.store), options.output_cuts)
    report = validate(Manifest(options.output_cuts), facts.field, facts.quantizer_id, max_bad_fraction=0.0)
    logger.info(
        "%d cuts, %d frames of %s: unigram entropy %.3f nats per codebook (ln %d = %.3f), %.1f %% of the "
        "codes used",
        report.num_cuts,
        num_frames,
        facts.field,
        usage["mean_unigram_entropy_nats"],
        facts.codebook_size,
        math.log(facts.codebook_size),
        100 * float(np.mean(usage["used_share"])),
    )
    logger.info("cuts with tokens: %s", Path(options.output_cuts))


if __name__ == "__main__":
    run(main)
