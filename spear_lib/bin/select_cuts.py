"""Choose a part of a labelled set: so many hours over all speakers, or listed utterances (stage 1)."""

import logging
from dataclasses import dataclass

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.corpora.cut_subsets import select_hours, select_ids
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.references import speaker
from spear_lib.runtime.log import first_screen

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelectOptions:
    """What is chosen from, how much, and where it goes."""

    cuts: str
    """Manifest with speakers."""
    output_cuts: str
    """Manifest of the chosen cuts."""
    hours: float = 0.0
    """So many hours, equally over the speakers, drawn by the seed."""
    ids: str = ""
    """These utterances: a text file with an id per line, or a folder whose audio files are named by them
    (Libri-light's librispeech_finetuning)."""
    seed: int = 0
    """The same seed, the same cuts."""

    def __post_init__(self) -> None:
        if bool(self.ids) == bool(self.hours):
            raise ValueError(f"hours is {self.hours:g} and ids {self.ids!r}: give one of them")


def main(argv: list[str] | None = None) -> None:
    options = parse(
        SelectOptions,
        argv,
        prog="python -m spear_lib.bin.select_cuts",
        description="Choose a part of a labelled set: so many hours over all speakers, or listed utterances.",
    )
    manifest = Manifest(options.cuts)
    first_screen(
        "Choosing cuts",
        {"from": options.cuts, "what": options.ids or f"{options.hours:g} h", "result": options.output_cuts},
    )
    if options.ids:
        chosen = select_ids(manifest, options.ids)
    else:
        chosen = select_hours(manifest, options.hours, options.seed)
    save_cuts(chosen, options.output_cuts)
    seconds: dict[str, float] = {}
    for cut in chosen:
        seconds[speaker(cut)] = seconds.get(speaker(cut), 0.0) + cut.duration
    logger.info(
        "%s: %d cuts, %.3f h, %d speakers of %.1f to %.1f min",
        options.output_cuts,
        len(chosen),
        sum(seconds.values()) / 3600,
        len(seconds),
        min(seconds.values()) / 60,
        max(seconds.values()) / 60,
    )


if __name__ == "__main__":
    run(main)
