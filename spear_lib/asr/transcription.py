"""Recordings of any length to words with times: overlapping windows, recognised in batches and joined (ours).

An encoder's memory grows with the square of a recording's length, and no model was trained on hours. A
recording longer than ``window_seconds`` is therefore recognised in windows of that length, evenly spread,
whose neighbours overlap by at least ``overlap_seconds``; ``words.join`` makes one transcript of them. Only
the windows of one batch are in memory, and no window's words depend on what else is in its batch.

Legend: B windows, N samples (16 kHz), T encoder frames, E encoder channels.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse.cut import Cut
from torch import Tensor

from spear_lib.asr.hypothesis import Hypothesis
from spear_lib.asr.searcher import Searcher
from spear_lib.asr.words import Unit, Word, join, mean_confidence, unit_confidences, words_of
from spear_lib.data.audio import SILENT, AudioError, AudioProblems, load_audio
from spear_lib.data.audio_batches import MIN_SAMPLES
from spear_lib.data.audio_files import ManifestCut, open_audio
from spear_lib.data.audio_windows import WindowConfig, plan_windows
from spear_lib.data.batch import pad_waveforms
from spear_lib.features.fbank import SAMPLE_RATE


class Recogniser:
    """Waveforms in, words out.

    Args:
      searcher: a model in evaluation mode, its text units and the search.
      device: where the model is.
    """

    def __init__(self, searcher: Searcher, device: torch.device | str = "cpu"):
        self.searcher, self.device = searcher, device

    @torch.no_grad()
    def words(self, waveforms: list[np.ndarray]) -> list[list[Word]]:
        """Words of each of B waveforms (N_b,), 16 kHz mono in [-1, 1]; times from its first sample."""
        padded = [np.pad(samples, (0, max(0, MIN_SAMPLES - len(samples)))) for samples in waveforms]
        inputs, lengths = pad_waveforms(padded)
        output = self.searcher.model.encoder.extract(inputs.to(self.device), lengths.to(self.device))
        scores = self.searcher.scores(output.encoder_out)
        return [self._words(*pair) for pair in zip(scores, self.searcher.search(scores, output.lengths))]

    def _words(self, scores: Tensor, hypothesis: Hypothesis) -> list[Word]:
        """``scores`` (T, ...): what the search read."""
        encoder, units = self.searcher.model.encoder, self.searcher.units
        first, step = encoder.first_frame_center_ms / 1000, 1 / encoder.frame_rate
        ids, frames = hypothesis.ids, hypothesis.timestamps
        if self.searcher.head == "ctc":
            sure = scores[frames, ids].exp().tolist()
        else:
            sure = unit_confidences(self.searcher.model, scores, ids, frames)
        recognised = []
        for id, frame, confidence in zip(ids, frames, sure):
            start = first + (frame - 0.5) * step
            recognised.append(Unit(units.unit(id), start, start + step, confidence))
        return words_of(units, ids, recognised)


@dataclass
class Transcript:
    """What was recognised in one file or cut."""

    path: Path | ManifestCut
    seconds: float = 0.0
    """Length of the recording."""
    sampling_rate: int = 0
    """Of the file, Hz."""
    num_channels: int = 0
    num_windows: int = 0
    words: list[Word] = field(default_factory=list)
    silent: bool = False
    """Every sample is zero."""
    error: AudioError | None = None
    """Why there is no transcript."""

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        units = [unit for word in self.words for unit in word.units]
        return {
            "audio": str(self.path),
            "seconds": round(self.seconds, 3),
            "sampling_rate": self.sampling_rate,
            "channels": self.num_channels,
            "windows": self.num_windows,
            "text": self.text,
            "confidence": round(mean_confidence(units), 3),
            "words": [word.to_dict() for word in self.words],
        }


class _File:
    """A file on its way: its windows are read one by one and recognised in anybody's batch."""

    def __init__(self, path: Path | ManifestCut, config: WindowConfig):
        self.transcript = Transcript(path)
        self.windows: list[tuple[float, float]] = []
        self.found: list[list[Word]] = []
        self.problems = AudioProblems()
        try:
            self.cut: Cut = open_audio(path)
        except AudioError as error:
            self.transcript.error = error
            return
        self.windows = plan_windows(self.cut.duration, config)
        self.transcript.seconds = self.cut.duration
        self.transcript.sampling_rate = self.cut.sampling_rate
        self.transcript.num_channels = self.cut.num_channels
        self.transcript.num_windows = len(self.windows)

    def samples(self) -> Iterator[np.ndarray]:
        """Samples (N,) of each window; ends early, with the error noted, where one cannot be read."""
        for begin, end in self.windows:
            whole = len(self.windows) == 1
            cut = self.cut if whole else self.cut.truncate(offset=begin, duration=end - begin)
            try:
                yield load_audio(cut, SAMPLE_RATE, self.problems)
            except AudioError as error:
                self.transcript.error = error
                return

    @property
    def done(self) -> bool:
        return self.transcript.error is not None or len(self.found) == len(self.windows)

    def finish(self) -> Transcript:
        """The windows' words, moved to their place and joined."""
        transcript = self.transcript
        transcript.silent = self.problems.notes.get(SILENT, 0) == len(self.windows)
        reached = 0.0
        for (begin, end), words in zip(self.windows, self.found if transcript.error is None else []):
            moved = [_moved(word, begin) for word in words]
            transcript.words = join(transcript.words, moved, begin, reached) if begin > 0 else moved
            reached = end
        return transcript


def _moved(word: Word, seconds: float) -> Word:
    units = (Unit(u.text, u.start + seconds, u.end + seconds, u.confidence) for u in word.units)
    return Word(word.text, tuple(units))


def transcribe(
    recogniser: Recogniser, paths: Iterable[Path | ManifestCut], config: WindowConfig
) -> Iterator[Transcript]:
    """Recognise files, in order; one that cannot be read has an ``error`` and the others go on."""
    waiting: deque[_File] = deque()
    batch: list[tuple[_File, np.ndarray]] = []

    def recognise() -> None:
        found = recogniser.words([samples for _, samples in batch])
        for (file, _), words in zip(batch, found):
            file.found.append(words)
        batch.clear()

    for path in paths:
        file = _File(path, config)
        waiting.append(file)
        for samples in file.samples():
            longest = max(len(samples), *(len(other) for _, other in batch)) if batch else len(samples)
            if batch and longest * (len(batch) + 1) > config.batch_seconds * SAMPLE_RATE:
                recognise()
            batch.append((file, samples))
        while waiting and waiting[0].done:
            yield waiting.popleft().finish()
    if batch:
        recognise()
    while waiting:
        yield waiting.popleft().finish()
