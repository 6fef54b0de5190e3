"""Checks cuts before anything is computed from them: bad ones are left out, too many stop the run (ours)."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat

import numpy as np
from lhotse.cut import Cut

from spear_lib.data.audio import (
    CANCELLED,
    SILENT,
    SILENT_CHANNEL,
    AudioError,
    AudioProblems,
    check_whole,
    load_audio,
)
from spear_lib.data.problems import Problems
from spear_lib.data.references import text_outside
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.runtime.progress import progress

NO_TRANSCRIPT, DUPLICATE, LENGTH = "without transcript", "duplicate id", "of unfit length"
TEXT_OUTSIDE, HALF_ZERO = "text outside the audio", "nothing but zeros in its second half"
_BLOCK = 1024  # cuts that are read ahead


def validate_cuts(
    cuts: Iterable[Cut],
    max_bad_fraction: float = 0.01,
    *,
    problems: Problems | None = None,
    need_text: bool = True,
    check_audio: bool = True,
    min_seconds: float = 0.1,
    max_seconds: float = float("inf"),
    num_jobs: int = 1,
    description: str = "checking audio",
) -> tuple[list[Cut], Problems]:
    """The cuts that can be used, in their order, and a count of the others.

    A cut is left out if its id came before, if it has no transcript (``need_text``), if it is shorter than
    ``min_seconds`` or longer than ``max_seconds``, or if its audio is missing, empty, cut short or cannot be
    decoded (``check_audio`` reads every sample). With ``need_text`` also if a supervision lies outside the
    cut's audio, or if all samples or those of the second half are zero: nobody says there what the transcript
    says; without, silence is noted. Audio of another sample rate or of several channels is kept and noted.

    Args:
      problems: a count that was begun before (e.g. while the corpus was scanned); continued here.
      num_jobs: how many files are read at the same time.

    Raises:
      ValueError: there are no cuts, or more than ``max_bad_fraction`` of them are bad.
    """
    cuts = list(cuts)
    problems = Problems(max_bad_fraction, "cuts") if problems is None else problems
    usable = usable_cuts(
        cuts,
        problems,
        need_text=need_text,
        check_audio=check_audio,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        num_jobs=num_jobs,
        description=description,
        total=len(cuts),
    )
    kept = list(usable)
    if not kept:
        raise ValueError(
            f"no usable cuts are left: {problems.describe()}. Is the corpus folder the right one?"
        )
    return kept, problems


def usable_cuts(
    cuts: Iterable[Cut],
    problems: Problems,
    *,
    need_text: bool = True,
    check_audio: bool = True,
    min_seconds: float = 0.1,
    max_seconds: float = float("inf"),
    num_jobs: int = 1,
    description: str = "checking audio",
    total: int | None = None,
) -> Iterator[Cut]:
    """As ``validate_cuts``, for corpora that are larger than memory: the cuts that can be used, one by one.

    Args:
      total: how many there are, where that is known.

    Raises:
      ValueError: too many are bad; at the end at the latest.
    """
    seen: set[str] = set()
    with ThreadPoolExecutor(max(1, num_jobs)) as pool:
        checked = _with_audio_problems(cuts, pool if check_audio else None)
        for cut, (audio_error, notes) in progress(checked, total, description, "cuts"):
            kind = _problem(cut, seen, need_text, min_seconds, max_seconds) or audio_error
            if kind is None and need_text:
                kind = next((note for note in (SILENT, HALF_ZERO) if note in notes), None)
            seen.add(cut.id)
            if kind is not None:
                problems.bad(kind, cut.id)
                continue
            problems.good()
            if cut.sampling_rate != SAMPLE_RATE:
                problems.note(f"resampled from {cut.sampling_rate} Hz")
            if cut.num_channels > 1:
                problems.note(f"mean of {cut.num_channels} channels")
            for note in notes:
                problems.note(note)
            yield cut
    problems.check()


def _with_audio_problems(
    cuts: Iterable[Cut], pool: ThreadPoolExecutor | None
) -> Iterator[tuple[Cut, tuple[str | None, list[str]]]]:
    """Each cut, what is wrong with its audio and what is worth telling about it, some read ahead; without a
    pool audio is not looked at."""
    source = iter(cuts)
    while block := list(islice(source, _BLOCK)):
        yield from zip(block, pool.map(_audio_problem, block) if pool else repeat((None, [])))


def _problem(cut: Cut, seen: set[str], need_text: bool, min_seconds: float, max_seconds: float) -> str | None:
    if cut.id in seen:
        return DUPLICATE
    if need_text and not any((supervision.text or "").strip() for supervision in cut.supervisions):
        return NO_TRANSCRIPT
    if not min_seconds <= cut.duration <= max_seconds:
        return LENGTH
    if need_text and text_outside(cut):
        return TEXT_OUTSIDE
    return None


def _audio_problem(cut: Cut) -> tuple[str | None, list[str]]:
    notes = AudioProblems()
    try:
        samples = load_audio(cut, problems=notes)
        check_whole(cut)
    except AudioError as error:
        return error.kind, []
    # What a download leaves that was given its room on disk and then stopped.
    zeros = int(np.argmax(samples[::-1] != 0.0)) if samples.any() else 0
    if zeros > max(len(samples) / 2, SAMPLE_RATE):
        notes.note(HALF_ZERO)
    return None, [note for note in (SILENT, SILENT_CHANNEL, CANCELLED, HALF_ZERO) if note in notes.notes]
