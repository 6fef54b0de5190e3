"""MUSAN, or any noises in its folders, to mix into training audio: stage 2 of the recipes (ours).

lhotse's recipe ends at the first file that it cannot read, and needs ANNOTATIONS, which nothing here uses.
"""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

from lhotse import CutSet, Recording
from lhotse.cut import Cut

from spear_lib.corpora.validation import validate_cuts
from spear_lib.data.audio import EMPTY, unreadable
from spear_lib.data.audio_files import AUDIO_ENDINGS
from spear_lib.data.manifests import save_cuts
from spear_lib.data.problems import Problems
from spear_lib.runtime.walking import files_below

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 10.0
MIN_SECONDS = 2.0
PARTS = ("music", "noise", "speech")
RIR_FOLDER = "rir"
"""Beside a folder ``noise``: impulse responses of rooms (not MUSAN's)."""


def find_noises(noise_dir: str | Path) -> Path:
    """The folder itself where it holds ``noise`` and ``rir``, noises and rooms, else ``find_musan``'s.

    Raises:
      ValueError: neither of the two, or without audio.
    """
    folder = Path(noise_dir)
    if not all((folder / part).is_dir() for part in ("noise", RIR_FOLDER)):
        return find_musan(noise_dir)
    for part in ("noise", RIR_FOLDER):
        if not files_below(folder / part, *AUDIO_ENDINGS):
            raise ValueError(f"--noise-dir: {folder / part} holds no audio ({', '.join(AUDIO_ENDINGS)})")
    return folder


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
    for part in PARTS:
        if not files_below(folder / part, *AUDIO_ENDINGS):
            raise ValueError(
                f"--noise-dir: {folder / part} holds no audio ({', '.join(AUDIO_ENDINGS)}): was the archive "
                "unpacked whole?"
            )
    return folder


def noise_cuts(musan: Path, problems: Problems) -> list[Cut]:
    """All recordings in windows; the kind of noise ("music", "noise", "speech") is in ``custom["kind"]``.

    Without supervisions: nothing that is said in the noise is to be transcribed.

    Args:
      problems: counts the files that cannot be read.
    """
    parts = [part for part in PARTS if (musan / part).is_dir()]
    return [cut for part in parts for cut in _windows(musan / part, part, problems)]


def _windows(folder: Path, kind: str, problems: Problems) -> Iterator[Cut]:
    """All recordings below a folder, by name, in windows."""
    for path in sorted(map(Path, files_below(folder, *AUDIO_ENDINGS)), key=lambda path: path.stem):
        recording = _recording(path, problems)
        if recording is None:
            continue
        whole = recording.to_cut().with_id(recording.id)
        for index, window in enumerate(CutSet.from_cuts([whole]).cut_into_windows(WINDOW_SECONDS)):
            if window.duration >= MIN_SECONDS:
                window = window.with_id(f"{recording.id}-{index:03d}")
                window.custom = {"kind": kind}
                yield window


def _recording(path: Path, problems: Problems) -> Recording | None:
    if path.stat().st_size == 0:
        problems.bad(EMPTY, str(path))
        return None
    try:
        recording = Recording.from_file(path)
    except Exception as error:  # the audio libraries have no common base class
        logger.debug("%s: %s", path, error)
        problems.bad(unreadable(path, error).kind, str(path))
        return None
    if recording.num_samples == 0:
        problems.bad(EMPTY, str(path))
        return None
    return recording


def prepare_noise(musan: Path, output: Path, max_bad_fraction: float = 0.01) -> None:
    """Writes the manifest of MUSAN's cuts, or removes it where the folder ``musan`` is not there."""
    if not musan.is_dir():
        output.unlink(missing_ok=True)
        logger.info("%s does not exist: no noise will be mixed in (stage 0 takes --noise-dir)", musan)
        return
    problems = Problems(max_bad_fraction, "noises")
    _save(noise_cuts(musan, problems), problems, output)


def prepare_noise_folder(folder: Path, output: Path, max_bad_fraction: float = 0.01) -> None:
    """Writes the manifest of any noises: of the folder ``noise`` in ``folder`` where there is one (beside
    ``rir``, rooms), else of ``folder``.

    Raises:
      ValueError: no folder, or no audio in it.
    """
    if not folder.is_dir():
        raise ValueError(f"--noise-dir {folder} is not a folder: expected noises, or a folder noise of them")
    folder = (folder / "noise" if (folder / "noise").is_dir() else folder).resolve()
    if not files_below(folder, *AUDIO_ENDINGS):
        raise ValueError(f"--noise-dir: {folder} holds no audio ({', '.join(AUDIO_ENDINGS)})")
    problems = Problems(max_bad_fraction, "noises")
    _save(list(_windows(folder, "noise", problems)), problems, output)


def _save(cuts: list[Cut], problems: Problems, output: Path) -> None:
    kept, problems = validate_cuts(cuts, problems=problems, need_text=False, description="checking noises")
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
