"""What the page shows of a recording, part by part: waveform, words, sounds, layers (ours).

Each part is made by what ``transcribe``, ``tag`` and ``extract_features`` run, so that the page and the
commands agree. Nothing here knows gradio.

Legend: T frames, D channels.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from lhotse.cut import Cut
from torch import nn

from spear_lib.asr.transcription import Recogniser, transcribe
from spear_lib.asr.words import Word
from spear_lib.data.audio import CANCELLED, SILENT, SILENT_CHANNEL, AudioProblems, load_audio
from spear_lib.data.audio_files import open_audio
from spear_lib.data.audio_windows import WindowConfig
from spear_lib.data.containers import cut_short
from spear_lib.demo.pictures import Envelope, envelope_of, layers_picture, points_of, waveform_picture
from spear_lib.interfaces.aligned import AlignedEncoder
from spear_lib.interfaces.upstreams import LogMel
from spear_lib.runtime.progress import format_seconds
from spear_lib.tagging.events import EventConfig, find_events
from spear_lib.tagging.inference import Tagger, tag_file
from spear_lib.tagging.picture import time_by_class

PIECE_SECONDS = 30.0
"""Of a long recording at once in memory, where it is drawn."""
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class PageLimits:
    """What one recording may cost."""

    seconds: float = 600.0
    """Longest recording, s."""
    megabytes: float = 200.0
    """Largest file, MB of 2^20 bytes."""
    layer_seconds: float = 10.0
    """How much of a recording, from its start, is drawn layer by layer, s."""

    def __post_init__(self) -> None:
        for name in ("seconds", "megabytes", "layer_seconds"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"limits.{name} is {value:g}; it must be positive")

    @property
    def bytes(self) -> int:
        """``megabytes`` in bytes."""
        return round(self.megabytes * MEGABYTE)


class PageLimitError(ValueError):
    """A recording that is longer or larger than the page takes."""


@dataclass(frozen=True)
class Shown:
    """What is known of a recording so far; what the models do not give stays empty."""

    facts: str = ""
    """Its name, length, rate and channels, and what is worth telling."""
    waveform: bytes = b""
    """PNG."""
    text: str | None = None
    """None where nothing was transcribed yet, empty where nothing is said."""
    words: list[Word] = field(default_factory=list)
    tags: bytes = b""
    """PNG: time by class."""
    events: list[tuple[float, float, str, float]] = field(default_factory=list)
    """(start, end, class, probability), in s."""
    layers: bytes = b""
    """PNG."""


@dataclass(frozen=True)
class Models:
    """What there is to try."""

    recogniser: Recogniser | None = None
    tagger: Tagger | None = None
    encoder: nn.Module | None = None
    """For the picture of its layers."""

    def __post_init__(self) -> None:
        if self.recogniser is None and self.tagger is None and self.encoder is None:
            raise ValueError("there is no model to try: give a recogniser, a tagger or an encoder")


class Listener:
    """Recordings in, what the page shows out.

    Args:
      models: one of them at least.
      limits: of a recording.
      windows, tag_windows: how long recordings are cut, as of ``transcribe`` and ``tag``.
      events: how frames become events.
      top: classes in the picture of the tags.
    """

    def __init__(
        self,
        models: Models,
        limits: PageLimits,
        windows: WindowConfig,
        tag_windows: WindowConfig,
        events: EventConfig,
        top: int = 10,
    ) -> None:
        self.models, self.limits = models, limits
        self.windows, self.tag_windows, self.events, self.top = windows, tag_windows, events, top
        self.layers = None if models.encoder is None else AlignedEncoder(models.encoder, "all")
        self.log_mel = AlignedEncoder(LogMel())

    def open(self, path: str | os.PathLike) -> Cut:
        """The recording, by its header alone.

        Raises:
          AudioError: missing, empty, or no audio; as ``transcribe`` says it.
          PageLimitError: larger or longer than the limits.
        """
        path, limits = Path(path), self.limits
        size = path.stat().st_size if path.is_file() else 0
        more = "cut it, or start the page with a larger --limits"
        if size > limits.bytes:
            raise PageLimitError(
                f"{path} has {size / MEGABYTE:.1f} MB, the page takes {limits.megabytes:g} MB: "
                f"{more}.megabytes; the command spear transcribe takes files of any size"
            )
        cut = open_audio(path)
        if cut.duration > limits.seconds:
            raise PageLimitError(
                f"{path} lasts {cut.duration:.1f} s ({format_seconds(cut.duration)}), the page takes "
                f"{limits.seconds:g} s: {more}.seconds; the command spear transcribe takes files of any "
                "length"
            )
        return cut

    def listen(self, path: str | os.PathLike) -> Iterator[Shown]:
        """What is shown, more each time: the waveform, then the words on it, the sounds, the layers.

        Raises:
          AudioError: the recording cannot be read to its end.
          PageLimitError: see ``open``.
        """
        path, models = Path(path), self.models
        cut = self.open(path)
        envelope, facts = self._envelope(cut, path)
        shown = Shown(facts, waveform_picture(envelope, []))
        yield shown
        if models.recogniser is not None:
            (transcript,) = transcribe(models.recogniser, [path], self.windows)
            if transcript.error is not None:
                raise transcript.error
            picture = waveform_picture(envelope, transcript.words)
            shown = replace(shown, waveform=picture, text=transcript.text, words=transcript.words)
            yield shown
        if models.tagger is not None:
            shown = replace(shown, **self._tags(path, models.tagger))
            yield shown
        if self.layers is not None:
            shown = replace(shown, layers=self._layers(cut))
            yield shown

    def _envelope(self, cut: Cut, path: Path) -> tuple[Envelope, str]:
        """Read piece by piece: ten minutes of six channels at 96 kHz would take gigabytes at once."""
        notes = AudioProblems()
        lows, highs = [], []
        number = max(1, int(np.ceil(cut.duration / PIECE_SECONDS - 1e-6)))
        for piece in range(number):
            offset = piece * PIECE_SECONDS
            length = min(PIECE_SECONDS, cut.duration - offset)
            part = cut if number == 1 else cut.truncate(offset=offset, duration=length)
            samples = load_audio(part, problems=notes)
            low, high = envelope_of(samples, points_of(length, cut.duration))
            lows.append(low)
            highs.append(high)
        channels = "mono" if cut.num_channels == 1 else f"{cut.num_channels} channels (their mean is heard)"
        facts = [path.name, f"{cut.duration:.2f} s", f"{cut.sampling_rate} Hz", channels]
        if notes.notes.get(SILENT, 0) == number:
            facts.append("silent: every sample is zero")
        facts += [note for note in (SILENT_CHANNEL, CANCELLED) if note in notes.notes]
        if reason := cut_short(path):
            facts.append(reason)
        return Envelope(np.concatenate(lows), np.concatenate(highs), cut.duration), ", ".join(facts)

    def _tags(self, path: Path, tagger: Tagger) -> dict:
        file = tag_file(tagger, path, self.tag_windows)
        if file.error is not None:
            raise file.error
        names = list(tagger.classes.values())
        picture = time_by_class(file.tags, names, self.top, "")
        events = [
            (event.start, event.end, names[event.index], event.probability)
            for event in find_events(file.tags, self.events)
        ]
        return {"tags": picture, "events": events}

    @torch.no_grad()
    def _layers(self, cut: Cut) -> bytes:
        seconds = self.limits.layer_seconds
        if cut.duration > seconds:
            cut = cut.truncate(duration=seconds)
        samples = [torch.from_numpy(load_audio(cut))]
        states = [state[0].float().cpu().numpy() for state in self.layers(samples).states]
        mel = self.log_mel(samples).states[0][0].numpy()
        frames = min(len(mel), *map(len, states))
        states = [state[:frames] for state in states]
        return layers_picture(mel[:frames], states, self.layers.state_names, self.layers.frame_rate)
