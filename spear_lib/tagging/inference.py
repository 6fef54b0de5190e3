"""A trained tagger: probabilities of clips and of their frames, for sets of cuts and for files of any length.

Legend: B clips, N samples (16 kHz), T encoder frames, K classes.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spear_lib.config import load as load_options
from spear_lib.data.audio import SILENT, AudioError, AudioProblems, check_whole, load_audio
from spear_lib.data.audio_batches import MIN_SAMPLES, position_batches
from spear_lib.data.audio_files import ManifestCut, open_audio
from spear_lib.data.audio_windows import WindowConfig, plan_windows
from spear_lib.data.batch import pad_waveforms
from spear_lib.data.manifests import Manifest
from spear_lib.data.problems import Problems
from spear_lib.encoders import load_encoder
from spear_lib.runtime.progress import progress
from spear_lib.tagging.model import TaggingConfig, TaggingModel
from spear_lib.training.checkpoint_average import average_checkpoints, weights_hash


@dataclass
class Tags:
    """What a tagger says of one clip."""

    clip: np.ndarray
    """(K,) probability of each class."""
    frames: np.ndarray
    """(T, K) of each frame."""
    times: np.ndarray
    """(T,) centre of each frame in s from the clip's first sample."""


class Tagger:
    """A model in evaluation mode with its classes.

    Attributes:
      classes: {label: name} in the order of the outputs.
      provenance: step, averaging and content hash of the weights, for result files.
    """

    def __init__(
        self,
        model: TaggingModel,
        classes: dict[str, str],
        provenance: dict[str, Any],
        device: torch.device | str = "cpu",
    ) -> None:
        self.model, self.classes, self.provenance = model.eval().to(device), classes, provenance
        self.device = device

    @torch.no_grad()
    def __call__(self, waveforms: list[np.ndarray]) -> list[Tags]:
        """Tags of B waveforms (N_b,), 16 kHz mono in [-1, 1]; none depends on the others."""
        padded = [np.pad(samples, (0, max(0, MIN_SAMPLES - len(samples)))) for samples in waveforms]
        inputs, lengths = pad_waveforms(padded)
        model = self.model
        output = model.encoder.extract(inputs.to(self.device), lengths.to(self.device))
        frames = model.frame_logits(output.encoder_out)
        clips = model.clip_logits(frames, output.lengths).sigmoid().cpu().numpy()
        probabilities, sizes = frames.sigmoid().cpu().numpy(), output.lengths.tolist()
        first, rate = model.encoder.first_frame_center_ms / 1000, model.encoder.frame_rate
        return [
            Tags(clip, each[:size], first + np.arange(size) / rate)
            for clip, each, size in zip(clips, probabilities, sizes)
        ]


def load_tagger(
    experiment_dir: str | os.PathLike, average: int, device: torch.device | str = "cpu"
) -> Tagger:
    """The tagger of a fine-tuning run, averaged over its last ``average`` save intervals (0: the last
    weights).

    Raises:
      ValueError: no checkpoint, fewer checkpoints than wanted, or a checkpoint of another task.
    """
    if not (Path(experiment_dir) / "checkpoints" / "last.pt").exists():
        raise ValueError(f"{experiment_dir} has no checkpoint: fine-tune first (run.sh stage 12)")
    method = "none" if average == 0 else None
    averaged = average_checkpoints(experiment_dir, average, method, kind="tagging")
    checkpoint = averaged.checkpoint
    config = load_options(TaggingConfig, checkpoint["tagging_config"])
    classes = dict(checkpoint["classes"])
    model = TaggingModel(load_encoder(checkpoint["encoder_config"]), config, len(classes))
    model.load_state_dict(averaged.state)
    provenance = {
        "step": checkpoint["step"],
        "average": average,
        "weights": averaged.words,
        "weights_hash": weights_hash(averaged.state),
    }
    return Tagger(model, classes, provenance, device)


def tag_cuts(
    tagger: Tagger,
    manifest: Manifest,
    problems: Problems,
    batch_seconds: float = 100.0,
    description: str = "tagging",
) -> Iterator[tuple[int, Tags]]:
    """(position in the manifest, tags) of every cut that can be read, batches of similar durations together.

    Raises:
      ValueError: more cuts are missing or corrupt than ``problems`` allows.
    """
    batches = position_batches(manifest, batch_seconds)
    for position in progress(_flat(batches), len(manifest), description, "clips"):
        if isinstance(position, int):  # one more clip of the batch before
            continue
        read: list[tuple[int, np.ndarray]] = []
        for each in position:
            try:
                cut = manifest[each]
                check_whole(cut)
                read.append((each, load_audio(cut)))
                problems.good()
            except AudioError as error:
                problems.bad(error.kind, manifest.ids[each])
        if read:
            tags = tagger([samples for _, samples in read])
            yield from zip([each for each, _ in read], tags)
    problems.check()


def _flat(batches: list[list[int]]) -> Iterator[list[int] | int]:
    """Each batch, then an item for each further cut of it: a progress bar that counts cuts."""
    for batch in batches:
        yield batch
        yield from batch[1:]


@dataclass
class TaggedFile:
    """What a tagger says of a file of any length."""

    path: Path | ManifestCut
    seconds: float = 0.0
    sampling_rate: int = 0
    """Of the file, Hz."""
    num_channels: int = 0
    num_windows: int = 0
    silent: bool = False
    """Every sample is zero."""
    tags: Tags | None = None
    """None with an error."""
    error: AudioError | None = None
    """Why there are no tags."""


def tag_file(tagger: Tagger, path: Path | ManifestCut, config: WindowConfig) -> TaggedFile:
    """Tags of a file of any rate and any number of channels (their mean).

    A recording longer than a window is tagged in overlapping windows, of which only one batch is in memory: a
    class is as probable as in the window where it is most probable, and of two windows the one counts whose
    edge is farther from the frame. What cannot be read is in ``error``.
    """
    result, notes = TaggedFile(path), AudioProblems()
    parts: list[Tags] = []
    windows: list[tuple[float, float]] = []
    try:
        cut = open_audio(path)
        windows = plan_windows(cut.duration, config)
        result.seconds, result.sampling_rate = cut.duration, cut.sampling_rate
        result.num_channels, result.num_windows = cut.num_channels, len(windows)
        size = max(1, int(config.batch_seconds / config.window_seconds))
        for start in range(0, len(windows), size):
            pieces = [
                cut if len(windows) == 1 else cut.truncate(offset=begin, duration=end - begin)
                for begin, end in windows[start : start + size]
            ]
            parts += tagger([load_audio(piece, problems=notes) for piece in pieces])
    except AudioError as error:
        result.error = error
        return result
    result.silent = notes.notes.get(SILENT, 0) == len(windows)
    result.tags = join_windows(parts, windows)
    return result


def join_windows(parts: list[Tags], windows: list[tuple[float, float]]) -> Tags:
    """One for the whole recording, from the tags of its windows (begin, end) in s."""
    middles = [(end + begin) / 2 for (_, end), (begin, _) in zip(windows, windows[1:])]
    lows, highs = [-np.inf, *middles], [*middles, np.inf]
    times, frames = [], []
    for part, (begin, _), low, high in zip(parts, windows, lows, highs):
        moved = part.times + begin
        kept = (moved >= low) & (moved < high)
        times.append(moved[kept])
        frames.append(part.frames[kept])
    return Tags(np.max([part.clip for part in parts], axis=0), np.concatenate(frames), np.concatenate(times))
