"""From cut numbers to a batch: what a data worker does (load, augment, collate), whatever is trained."""

import logging
from dataclasses import dataclass

import numpy as np
import torch

from spear_lib.data.batch import Batch, pad_waveforms
from spear_lib.data.features import SAMPLE_RATE, fbank_length
from spear_lib.data.loading import Work
from spear_lib.data.mixing import MixingConfig, Mixture, mix_noise
from spear_lib.keyed_random import keys as make_keys

logger = logging.getLogger(__name__)

_CHECKED_CUTS = 1000  # cuts looked at before training starts, spread over the manifest
_LOAD_ERRORS = (OSError, ValueError, RuntimeError, EOFError)


@dataclass
class Example:
    """One utterance: clean audio (N,) and tokens (T, C) per field, later the augmented ones."""

    cut_id: str
    waveform: np.ndarray
    tokens: dict[str, np.ndarray]
    text: str = ""
    speech: bool = True
    mixed: str = "none"
    speed: float = 1.0


class Examples:
    """Shared part: loading with counted problems, noise, collation. Instances travel to worker processes."""

    def __init__(self, manifest, noise, seed: int, training: bool, mixing: MixingConfig) -> None:
        self.manifest, self.noise = manifest, noise
        self.seed, self.training, self.mixing = seed, training, mixing
        if noise is None and mixing.enabled and mixing.noise_probability > 0.0:
            logger.info("no noise_cuts given: noise mixing is off")

    def check(self, manifest, cut_numbers: np.ndarray) -> None:
        """Looks at cuts spread over the manifest before training starts. Raises ValueError naming a bad
        cut."""
        picked = np.unique(np.linspace(0, len(cut_numbers) - 1, _CHECKED_CUTS).astype(np.int64))
        for number in cut_numbers[picked]:
            self.check_cut(manifest[int(number)])

    def check_cut(self, cut) -> None:
        raise TypeError("subclasses define what a usable cut is")

    def load(self, number: int) -> Example:
        raise TypeError("subclasses define what is loaded")

    def make(self, work: Work) -> Batch:
        """The batch of a work item: this rank's cuts of a global batch."""
        epoch, index, share, global_batch = work
        draw_epoch = epoch if self.training else 0
        statistics: dict[str, tuple[float, int]] = {}
        problems: dict[str, str] = {}
        clean: dict[int, Example] = {}
        for number in share:
            self._load(number, clean, problems)
        examples = [
            self.augment(clean, number, draw_epoch, global_batch, statistics, problems)
            for number in share
            if number in clean
        ]
        if not examples:
            return Batch([], torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0), torch.zeros(0), epoch,
            index,
                         problems=problems)  # fmt: skip
        batch = self.collate(examples, draw_epoch)
        batch.epoch, batch.index = epoch, index
        batch.statistics, batch.problems = statistics, problems
        return batch

    def _load(self, number: int, loaded: dict[int, Example], problems: dict[str, str]) -> Example | None:
        if number not in loaded:
            try:
                loaded[number] = self.load(number)
            except _LOAD_ERRORS as error:
                problems[str(self.manifest[number].id)] = str(error)
        return loaded.get(number)

    def load_waveform(self, cut) -> np.ndarray:
        from spear_lib.data.audio import load_audio

        waveform = np.asarray(load_audio(cut, sample_rate=SAMPLE_RATE), dtype=np.float32)
        if fbank_length(len(waveform)) == 0:
            raise ValueError(f"the audio has {len(waveform)} samples, too few for one frame")
        if not np.isfinite(waveform).all():
            raise ValueError("the audio holds values that are not finite")
        return waveform

    def augment(
        self,
        clean: dict[int, Example],
        number: int,
        epoch: int,
        global_batch: list[int],
        statistics: dict[str, tuple[float, int]],
        problems: dict[str, str],
    ) -> Example:
        """The augmented copy of a clean example; ``clean`` grows by partners loaded from other ranks'
        shares."""
        raise TypeError("subclasses define their augmentation")

    def _noise(self, example: Example, random: np.random.Generator) -> Mixture | None:
        """None: silent or unreadable noise; the caller counts it."""
        if self.noise is None:
            return None
        number = int(random.integers(len(self.noise)))
        try:
            noise = self.load_waveform(self.noise[number])
        except _LOAD_ERRORS as error:
            logger.warning("noise cut %s is not mixed: %s", self.noise.ids[number], error)
            return None
        return mix_noise(example.waveform, noise, self.mixing, random)

    def collate(self, examples: list[Example], epoch: int) -> Batch:
        """Pads examples to a batch."""
        waveforms, num_samples = pad_waveforms([example.waveform for example in examples])
        ids = [example.cut_id for example in examples]
        return Batch(
            ids=ids,
            keys=make_keys("utterance", self.seed, epoch, ids=ids),
            waveforms=waveforms,
            num_samples=num_samples,
            mixed=[example.mixed for example in examples],
            audio_seconds=float(num_samples.sum()) / SAMPLE_RATE,
            padded_seconds=waveforms.numel() / SAMPLE_RATE,
        )


def add_statistic(statistics: dict[str, tuple[float, int]], name: str, value: float, count: int = 1) -> None:
    total, number = statistics.get(name, (0.0, 0))
    statistics[name] = (total + value, number + count)
