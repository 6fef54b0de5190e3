"""Audio of a cut as one array: mono, at the rate that everything here works with (ours, on lhotse)."""

import functools
import logging
import shutil
import warnings
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import soundfile
from lhotse import Recording, SupervisionSegment
from lhotse.audio import AudioSource, set_audio_duration_mismatch_tolerance
from lhotse.cut import Cut, MonoCut, MultiCut
from lhotse.utils import compute_num_samples, fastcopy

from spear_lib.data.containers import cut_short
from spear_lib.data.problems import Problems
from spear_lib.data.shar_index import RANGE_TYPE, byte_range
from spear_lib.features.fbank import SAMPLE_RATE

DURATION_TOLERANCE = 0.025
"""Seconds by which a file may be shorter or longer than its manifest says (codecs and resampling round)."""

RESAMPLED, MIXED_DOWN, SILENT = "resampled", "made mono", "silent"
SILENT_CHANNEL, CANCELLED = "with a silent channel", "channels that cancel: the loudest taken"
CHANNELS = ("mean", "first")
"""What to make of recordings with several channels."""
_CANCELLED_POWER = 0.01  # -20 dB: independent channels leave 1 / (their number) of their power in the mean
MISSING, CORRUPT, EMPTY = "missing audio", "corrupt audio", "zero-length audio"
TRUNCATED = "audio cut short"
OUT_OF_RANGE, NO_FFMPEG = "samples out of range", "needs ffmpeg"
FFMPEG_ENDINGS = (".m4a", ".aac", ".webm", ".mp4", ".mka", ".mkv", ".wma", ".ac3", ".amr", ".mov")
"""Of formats that libsndfile does not read."""
RATES = (1000, 768000)
"""Samples per second of recordings, the fewest and the most."""
MAX_LEVEL = 10.0
"""Largest sample that is taken for audio; full scale is 1, and what lies above 10 (20 dB) is damage, or a
float file in the units of int16."""


class AudioProblems(Problems):
    """Counts recordings that cannot be read (missing, corrupt, zero-length) and those that are resampled."""


class AudioError(RuntimeError):
    """A recording cannot be read; ``kind`` is one of MISSING, CORRUPT, EMPTY, TRUNCATED, OUT_OF_RANGE,
    NO_FFMPEG."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def source_of(cut: Cut) -> str:
    """The file of the cut, for messages; its id where the audio is not in a file."""
    recording = getattr(cut, "recording", None)
    if recording is None or not recording.sources:
        return f"cut {cut.id}"
    source = recording.sources[0]
    return str(source.source) if source.type == "file" else f"{source.type} of cut {cut.id}"


def cut_of(
    recording: Recording,
    name: str = "",
    start: float = 0.0,
    seconds: float | None = None,
    supervision: SupervisionSegment | None = None,
    custom: dict | None = None,
) -> MonoCut | MultiCut:
    """A stretch of a recording with all of its channels, which ``load_audio`` makes mono; a supervision is
    put on all of them.

    Args:
      name: id of the cut; the recording's own by default.
      seconds: length; up to the end of the recording by default.
    """
    several = recording.num_channels > 1
    channel = list(recording.channel_ids) if several else recording.channel_ids[0]
    if supervision is not None:
        supervision.channel = channel
    return (MultiCut if several else MonoCut)(
        id=name or recording.id,
        start=start,
        duration=recording.duration - start if seconds is None else seconds,
        channel=channel,
        recording=recording,
        supervisions=[] if supervision is None else [supervision],
        custom=custom,
    )


def load_audio(
    cut: Cut,
    sample_rate: int = SAMPLE_RATE,
    problems: Problems | None = None,
    channels: str = "mean",
) -> np.ndarray:
    """The samples of a cut: float32 (N,) in [-1, 1], mono, N = round(duration * sample_rate).

    Args:
      sample_rate: samples per second of the result; other recordings are resampled.
      problems: where "resampled", "made mono", "silent" and what ``to_mono`` says are noted.
      channels: of a cut with several channels take their mean (``to_mono``), or the first.

    Raises:
      AudioError: the recording is missing, corrupt, empty or out of range; names the file and what to do.
      ValueError: another word for ``channels``.
    """
    if channels not in CHANNELS:
        raise ValueError(f"channels is {channels!r}: use {' or '.join(CHANNELS)}")
    notes = []
    if not cut.has_recording:
        raise AudioError(
            MISSING, f"cut {cut.id} has no recording: make its manifest again (prepare.sh stage 1)"
        )
    check_rate(cut.sampling_rate, f"{source_of(cut)} (cut {cut.id})")
    cut = _out_of_archive(cut)
    if cut.sampling_rate != sample_rate:
        cut = cut.resample(sample_rate)
        notes.append(RESAMPLED)
    path = source_of(cut)
    try:
        samples = _read_plainly(cut)
        if samples is None:
            _limit_mismatch()
            samples = cut.load_audio()
    except Exception as error:
        raise _audio_error(cut, path, error) from error
    if samples is None or samples.shape[-1] == 0:
        raise AudioError(
            EMPTY, f"{path} (cut {cut.id}) holds no samples at {sample_rate} Hz: remove it or make it again"
        )
    _check_level(samples, f"{path} (cut {cut.id})")
    mono, said = to_mono(samples, channels)
    notes += said
    if problems is not None:
        if not mono.any():
            notes.append(SILENT)
        for note in notes:
            problems.note(note)
    return np.ascontiguousarray(mono, dtype=np.float32)


def check_rate(rate: int, name: str) -> None:
    """AudioError for a rate in Hz that no recording has: a damaged header, from which resampling would make
    gigabytes."""
    low, high = RATES
    if not low <= rate <= high:
        raise AudioError(
            CORRUPT, f"{name} says {rate} samples per second, recordings have {low} to {high}: make it again"
        )


def check_whole(cut: Cut) -> None:
    """AudioError where a file of the cut holds less, or more, than its own header says (``containers``)."""
    for source in cut.recording.sources if cut.has_recording else ():
        reason = cut_short(source.source) if source.type == "file" else ""
        if reason:
            raise AudioError(
                TRUNCATED, f"{source.source} (cut {cut.id}): {reason}: copy, download or make it again"
            )


def to_mono(samples: np.ndarray, channels: str = "mean") -> tuple[np.ndarray, list[str]]:
    """One signal (N,) of the channels (C, N), and what is worth telling about it (ours).

    The mean of all channels, whoever reads: a silent one counts like the others and halves the level of a
    pair, because a level must not jump where a channel begins. Where the channels cancel (one of a pair with
    its polarity turned), so that the mean has less than a hundredth of their power, the loudest one is taken.
    """
    if samples.shape[0] == 1:
        return samples[0], []
    if channels == "first":
        return samples[0], [MIXED_DOWN]
    mean = samples.mean(axis=0)
    powers = np.square(samples, dtype=np.float64).mean(axis=1)
    notes = [MIXED_DOWN]
    if 0.0 in powers and powers.any():
        notes.append(SILENT_CHANNEL)
    if np.square(mean, dtype=np.float64).mean() < _CANCELLED_POWER * powers.mean():
        return samples[int(powers.argmax())], [*notes, CANCELLED]
    return mean, notes


def _check_level(samples: np.ndarray, name: str) -> None:
    """Of all channels, before any mean in which two of them could cancel."""
    peak = float(max(samples.max(), -samples.min()))
    if not np.isfinite(peak):
        raise AudioError(CORRUPT, f"{name} holds samples that are not finite: make it again")
    if peak > MAX_LEVEL:
        advice = "divide it by 32768" if peak <= 32768 else "it is damaged, make it again"
        raise AudioError(
            OUT_OF_RANGE,
            f"{name} holds a sample of {peak:.5g}, at most {MAX_LEVEL:g} may be (full scale is 1): {advice}",
        )


@functools.cache
def _limit_mismatch() -> None:
    """Once per process: lhotse's own limit is 0.5 s, and it fills what is missing with mirrored speech, which
    nobody would notice."""
    # It announces the new limit through the root logger, in every worker.
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_audio_duration_mismatch_tolerance(DURATION_TOLERANCE)
    logging.disable(disabled)


def _out_of_archive(cut: Cut) -> Cut:
    """The cut with its bytes in memory where its audio lies in a Shar archive; any other cut as it is."""
    recording = getattr(cut, "recording", None)
    if recording is None or not recording.sources or recording.sources[0].type != RANGE_TYPE:
        return cut
    source = recording.sources[0]
    try:
        content = byte_range(source.source)
    except OSError as error:
        raise AudioError(
            MISSING if isinstance(error, FileNotFoundError) else CORRUPT,
            f"the audio of cut {cut.id} cannot be read ({error}): copy or export the Shar folder again",
        ) from error
    sources = [AudioSource("memory", source.channels, content)]
    return fastcopy(cut, recording=fastcopy(recording, sources=sources))


def _read_plainly(cut: Cut) -> np.ndarray | None:
    """(1, N) of an untransformed cut of a mono file or its bytes, read where they lie: lhotse's own way costs
    the loader a seventh of its time. None: anything else, also a file that holds less than it should."""
    recording = cut.recording
    plain = isinstance(cut, MonoCut) and len(recording.sources) == 1 and not recording.transforms
    if not plain or recording.channel_ids != [cut.channel]:
        return None
    source = recording.sources[0]
    if source.type not in ("file", "memory"):
        return None
    place = BytesIO(source.source) if source.type == "memory" else source.source
    begin, count = compute_num_samples(cut.start, cut.sampling_rate), cut.num_samples
    if source.type == "file" and (begin, count) == (0, recording.num_samples):
        samples = _whole_flac(source.source, count, cut.sampling_rate)
        if samples is not None:
            return samples[None]
    try:
        with soundfile.SoundFile(place) as file:
            if file.channels != 1 or file.samplerate != cut.sampling_rate or begin + count > file.frames:
                return None
            if begin:
                file.seek(begin)
            samples = file.read(count, dtype="float32")
    except soundfile.LibsndfileError:
        return None  # lhotse knows more formats, and the reason
    return samples[None] if len(samples) == count else None


@functools.cache
def _fast_flac() -> ModuleType | None:
    """miniaudio, whose decoder (dr_flac) takes two thirds of libsndfile's time; None where it is absent."""
    try:
        import miniaudio
    except ImportError:
        return None
    return miniaudio


def _whole_flac(path: str, count: int, sample_rate: int) -> np.ndarray | None:
    """(N,) of a whole mono FLAC file of ``count`` samples, the same numbers as libsndfile's; None: another
    file, or one that is not as it should be, which libsndfile then tells."""
    library = _fast_flac()
    if library is None or not str(path).endswith(".flac"):
        return None
    try:
        decoded = library.flac_read_file_f32(str(path))
    except (library.MiniaudioError, OSError, UnicodeError):
        return None
    if (decoded.nchannels, decoded.sample_rate, decoded.num_frames) != (1, sample_rate, count):
        return None
    return np.frombuffer(decoded.samples, dtype=np.float32)


def _audio_error(cut: Cut, path: str, error: Exception) -> AudioError:
    is_file = cut.recording.sources and cut.recording.sources[0].type == "file"
    if is_file and not Path(path).exists():
        return AudioError(
            MISSING,
            f"{path} (cut {cut.id}) does not exist: was the corpus moved since its manifests were made? "
            "(relative paths count from the recipe's folder)",
        )
    if is_file and Path(path).stat().st_size == 0:
        return AudioError(EMPTY, f"{path} (cut {cut.id}) is an empty file: copy or make it again")
    return unreadable(path, error, cut.id)


def unreadable(path: str | Path, error: Exception, cut: str = "") -> AudioError:
    """What to say of a file that ``error`` kept from being read: by its ending it may need ffmpeg, which is
    not the file's fault.

    Args:
      cut: its id, where a manifest says that the file is audio.
    """
    name = f"{path} (cut {cut})" if cut else str(path)
    if Path(path).suffix.lower() in FFMPEG_ENDINGS and shutil.which("ffmpeg") is None:
        return AudioError(
            NO_FFMPEG,
            f"{name} is in a format that needs ffmpeg, which is not installed: install it, or convert the "
            "file to WAV or FLAC",
        )
    # lhotse lists what each of its backends said; the first is libsndfile.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line.split(">: ")[-1] for line in lines if line.startswith("Exception #")), None)
    reason = (reason or next(iter(lines), type(error).__name__))[:200]
    if cut:
        return AudioError(CORRUPT, f"{name} cannot be read ({reason}): copy or make it again")
    return AudioError(CORRUPT, f"{name} is no audio that can be read ({reason}): convert it to WAV or FLAC")
