"""MUSAN as noise to mix into training audio: stage 2 of the recipes (ours, on lhotse)."""

import argparse
import logging
from pathlib import Path

from lhotse import CutSet
from lhotse.recipes.musan import prepare_musan

from spear_lib.corpora.validation import validate_cuts
from spear_lib.data.manifests import save_cuts

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 10.0
MIN_SECONDS = 2.0
PARTS = ("music", "noise", "speech")


def find_musan(noise_dir: str | Path) -> Path:
    """The folder with the parts of MUSAN; ValueError with the expected layout if there are none."""
    folder = Path(noise_dir)
    if (folder / "musan").is_dir():
        folder = folder / "musan"
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise ValueError(
            f"--noise-dir {folder} has no {', '.join(missing)}: expected the unpacked archive of "
            "https://www.openslr.org/17, with the folders music, noise and speech"
        )
    return folder


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


def prepare_noise(musan: Path, output: Path, max_bad_fraction: float = 0.01) -> None:
    """Writes the manifest of MUSAN's cuts, or removes it where the folder ``musan`` is not there."""
    if not musan.is_dir():
        output.unlink(missing_ok=True)
        logger.info("%s does not exist: no noise will be mixed in (stage 0 takes --noise-dir)", musan)
        return
    kept, problems = validate_cuts(
        noise_cuts(musan), max_bad_fraction, need_text=False, description="checking noises"
    )
    problems.log()
    save_cuts(kept, output)
    logger.info("%d cuts, %.2f h of noise", len(kept), sum(cut.duration for cut in kept) / 3600)


def main(argv: list[str] | None = None) -> None:
    """Stage 2: cuts of at most 10 s of MUSAN (noise, music, speech), to be mixed into the training audio."""
    parser = argparse.ArgumentParser(
        description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--corpus-dir", type=Path, required=True, help="folder that holds musan (stage 0)")
    parser.add_argument("--output", type=Path, required=True, help="manifest to write, *.jsonl.gz")
    parser.add_argument(
        "--max-bad-fraction", type=float, default=0.01, help="of the recordings, to be skipped"
    )
    arguments = parser.parse_args(argv)
    prepare_noise(arguments.corpus_dir / "musan", arguments.output, arguments.max_bad_fraction)
