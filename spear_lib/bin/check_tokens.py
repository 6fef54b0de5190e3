"""Stage 6: join the shards of a token store, check them against the manifest (every cut exactly once, nothing
damaged), and write the cuts with their tokens. Several stores, one for each teacher, are attached at once."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lhotse.cut import Cut

from spear_lib.bin.common import as_list, run
from spear_lib.config import parse
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.runtime.log import first_screen
from spear_lib.teachers.embedding import resolve_manifests
from spear_lib.tokens.checking import check_quantizer, check_store
from spear_lib.tokens.fields import TokenStoreReader, attach_tokens, validate
from spear_lib.tokens.plan import as_ranges, refuse_same_audio
from spear_lib.tokens.store import missing_parts

logger = logging.getLogger(__name__)


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
