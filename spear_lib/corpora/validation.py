"""Checks cuts before anything is computed from them: bad ones are left out, too many stop the run (ours)."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat

from lhotse.cut import Cut

from spear_lib.data.audio import AudioError, load_audio
from spear_lib.data.problems import Problems
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.runtime.progress import progress

NO_TRANSCRIPT, DUPLICATE, LENGTH = "without transcript", "duplicate id", "of unfit length"
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
    ``min_seconds`` or longer than ``max_seconds``, or if its audio is missing, empty or cannot be decoded
    (``check_audio`` reads every sample). Audio of another sample rate is kept and noted as resampled.

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
        for cut, audio_error in progress(checked, total, description, "cuts"):
            kind = _problem(cut, seen, need_text, min_seconds, max_seconds) or audio_error
            seen.add(cut.id)
            if kind is not None:
                problems.bad(kind, cut.id)
                continue
            problems.good()
            if cut.sampling_rate != SAMPLE_RATE:
                problems.note(f"resampled from {cut.sampling_rate} Hz")
            yield cut
    problems.check()


def _with_audio_problems(
    cuts: Iterable[Cut], pool: ThreadPoolExecutor | None
) -> Iterator[tuple[Cut, str | None]]:
    """Each cut and what is wrong with its audio, some read ahead; without a pool audio is not looked at."""
    source = iter(cuts)
    while block := list(islice(source, _BLOCK)):
        yield from zip(block, pool.map(_audio_problem, block) if pool else repeat(None))


def _problem(cut: Cut, seen: set[str], need_text: bool, min_seconds: float, max_seconds: float) -> str | None:
    if cut.id in seen:
        return DUPLICATE
    if need_text and not any((supervision.text or "").strip() for supervision in cut.supervisions):
        return NO_TRANSCRIPT
    if not min_seconds <= cut.duration <= max_seconds:
        return LENGTH
    return None


def _audio_problem(cut: Cut) -> str | None:
    try:
        load_audio(cut)
    except AudioError as error:
        return error.kind
    return None
