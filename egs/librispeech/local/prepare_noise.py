#!/usr/bin/env python3
"""Stage 2: cuts of at most 10 s of MUSAN's noise, music and speech, to be mixed into the training audio."""

import argparse
import logging
from pathlib import Path

from lhotse import CutSet
from lhotse.recipes.musan import prepare_musan

from spear_lib.bin.common import run
from spear_lib.data.manifests import save_cuts
from spear_lib.data.validation import validate_cuts

logger = logging.getLogger("prepare_noise")

WINDOW_SECONDS = 10.0
MIN_SECONDS = 2.0
PARTS = ("music", "noise", "speech")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--corpus-dir", type=Path, required=True, help="folder that holds musan (stage 0)")
    parser.add_argument("--output", type=Path, required=True, help="manifest to write, *.jsonl.gz")
    parser.add_argument(
        "--max-bad-fraction", type=float, default=0.01, help="of the recordings, to be skipped"
    )
    return parser.parse_args(argv)


def noise_cuts(musan: Path) -> CutSet:
    """All recordings in windows; the kind of noise ("music", "noise", "speech") is in ``custom["kind"]``."""
    cuts = []
    manifests = prepare_musan(musan, parts=PARTS)
    for part in PARTS:
        whole = CutSet.from_manifests(recordings=manifests[part]["recordings"])
        # Without supervisions: nothing that is said in the noise is to be transcribed.
        for recording in sorted(whole, key=lambda cut: cut.recording_id):
            recording = recording.with_id(recording.recording_id)
            for index, window in enumerate(CutSet.from_cuts([recording]).cut_into_windows(WINDOW_SECONDS)):
                if window.duration >= MIN_SECONDS:
                    window = window.with_id(f"{recording.id}-{index:03d}")
                    window.custom = {"kind": part}
                    cuts.append(window)
    return CutSet.from_cuts(cuts)


def main() -> None:
    """Entry point."""
    arguments = parse_arguments()
    musan = arguments.corpus_dir / "musan"
    if not musan.is_dir():
        arguments.output.unlink(missing_ok=True)
        logger.info("%s does not exist: no noise will be mixed in (stage 0 takes --noise-dir)", musan)
        return
    kept, problems = validate_cuts(
        noise_cuts(musan), arguments.max_bad_fraction, need_text=False, description="checking noises"
    )
    problems.log()
    save_cuts(kept, arguments.output)
    logger.info("%d cuts, %.2f h of noise", len(kept), sum(cut.duration for cut in kept) / 3600)


if __name__ == "__main__":
    run(main)
