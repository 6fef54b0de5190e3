"""Cuts with tokens as lhotse Shar archives, with or without their audio, for object stores (optional)."""

import logging
from dataclasses import dataclass

from lhotse.array import TemporalArray

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.data.manifests import Manifest
from spear_lib.runtime.log import first_screen
from spear_lib.runtime.progress import progress
from spear_lib.teachers.embedding import resolve_manifests
from spear_lib.tokens.shar import export_shar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Options of export_shar."""

    cuts: str | list[str]
    """Manifest(s) of cuts with tokens (stage 6)."""
    output_dir: str
    """Folder for the archives; every set has its own."""
    fields: str | list[str] = ""
    """Token fields to export; default: all of the first cut."""
    audio: str = ""
    """flac or wav: the audio travels too; empty: tokens alone, the cuts go on pointing to their
    recordings."""
    shard_cuts: int = 1000
    """Cuts per archive."""


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, prog="python -m spear_lib.bin.export_shar", description=__doc__)
    manifest = Manifest(resolve_manifests(options.cuts))
    custom = manifest[0].custom or {}
    fields = [options.fields] if isinstance(options.fields, str) else list(options.fields)
    if fields == [""]:
        fields = sorted(name for name, value in custom.items() if isinstance(value, TemporalArray))
    if not fields:
        raise ValueError(f"{manifest.describe()} has no token fields: give it cuts of stage 6 (check_tokens)")
    first_screen(
        "export to Shar",
        {
            "cuts": f"{len(manifest)} of {manifest.describe()}, {manifest.hours:.2f} h",
            "fields": ", ".join(fields),
            "audio": options.audio or "none: the cuts point to their recordings",
        },
    )
    cuts = progress(manifest, len(manifest), "export", "cuts")
    count = export_shar(cuts, options.output_dir, fields, options.audio, options.shard_cuts)
    logger.info(
        "%d cuts in %s: a folder to train on (data.train_cuts), or CutSet.from_shar",
        count,
        options.output_dir,
    )


if __name__ == "__main__":
    run(main)
