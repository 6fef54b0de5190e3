"""From cut numbers to a batch: what a data worker does (load, augment, collate), whatever is trained."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from spear_lib.data.batch import Batch, pad_waveforms
from spear_lib.data.loading import Work
from spear_lib.data.mixing import MixingConfig, Mixture, mix_noise
from spear_lib.data.sampling import Pick
from spear_lib.data.shar_index import audio_archives
from spear_lib.features.fbank import SAMPLE_RATE, fbank_length
from spear_lib.runtime.keyed_random import generator, key

logger = logging.getLogger(__name__)

_CHECKED_CUTS = 1000  # cuts looked at before training starts, spread over the manifest
LOAD_ERRORS = (OSError, ValueError, RuntimeError, EOFError)
"""What may be wrong with one cut: it is skipped and counted."""


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
    occurrence: int = 0
    """How often this epoch took the cut before."""


class Examples:
    """Shared part: loading with counted problems, noise, collation. Instances travel to worker processes."""

    def __init__(self, manifest, noise, seed: int, training: bool, mixing: MixingConfig) -> None:
        self.manifest, self.noise = manifest, noise
        self.seed, self.training, self.mixing = seed, training, mixing
        self.channels = "mean"
        if noise is None and mixing.enabled and mixing.noise_probability > 0.0:
            logger.info("no noise_cuts given: noise mixing is off")

    def check(self, manifest, cut_numbers: np.ndarray) -> None:
        """Looks at cuts spread over the manifest before training starts. Raises ValueError naming a bad
        cut."""
        for number in self.spread(cut_numbers):
            self.check_cut(manifest[number])

    @staticmethod
    def spread(cut_numbers: np.ndarray) -> list[int]:
        """Up to 1000 of the cuts, spread over the manifest, the first and the last among them."""
        picked = np.unique(np.linspace(0, len(cut_numbers) - 1, _CHECKED_CUTS).astype(np.int64))
        return cut_numbers[picked].tolist()

    def archives(self, manifest, cut_numbers: np.ndarray) -> Iterator[str]:
        """The large files that hold many cuts: token shards and Shar archives, of the cuts that ``spread``
        picks and of the noise. Only looked up where somebody asks."""
        for number in self.spread(cut_numbers):
            yield from self.archives_of(manifest[number])
        if self.noise is not None:
            for number in self.spread(np.arange(len(self.noise))):
                yield from audio_archives(self.noise[number])

    def archives_of(self, cut) -> list[str]:
        """Those of one cut that are read here."""
        return audio_archives(cut)

    def unusable(self, manifest, cut_numbers: np.ndarray) -> dict[int, str]:
        """Cuts whose labels cannot be used, number -> why: looked up in all of them before training starts,
        for they would end it in the step that draws them."""
        return {}

    def check_cut(self, cut) -> None:
        raise TypeError("subclasses define what a usable cut is")

    def load(self, number: int) -> Example:
        raise TypeError("subclasses define what is loaded")

    def make(self, work: Work) -> Batch:
        """The batch of a work item: this rank's cuts of a global batch."""
        epoch, index, share, global_batch = work
        making = Making(self, epoch if self.training else 0, [pick.cut for pick in global_batch])
        examples = []
        for pick in share:
            clean = making.load(pick.cut)
            if clean is not None:
                examples.append(self.augment(replace(clean, occurrence=pick.occurrence), pick.cut, making))
        counts = bool(examples)
        if not examples and self.training:
            examples = self._substitute(making, global_batch)
        if not examples:
            return Batch([], torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0), torch.zeros(0), epoch,
            index,
                         problems=making.problems)  # fmt: skip
        batch = self.collate(examples, making.epoch)
        batch.epoch, batch.index = epoch, index
        batch.statistics, batch.problems, batch.counts = making.statistics, making.problems, counts
        return batch

    def _substitute(self, making: "Making", global_batch: list[Pick]) -> list[Example]:
        """A cut of another rank where all of this rank's are unusable: with it this one takes part in the
        step, to which it adds nothing (``Batch.counts``). None where the whole global batch is unusable,
        which all ranks then find alike."""
        loaded = (making.load(pick.cut) for pick in global_batch)
        found = next((each for each in loaded if each is not None), None)
        return [] if found is None else [found]

    def random(self, purpose: str, epoch: int, example: Example) -> np.random.Generator:
        """The draws of an example for one purpose: a function of (seed, epoch, cut id, occurrence) alone."""
        return generator(purpose, self.seed, epoch, *_draw_id(example))

    def load_waveform(self, cut) -> np.ndarray:
        from spear_lib.data.audio import check_whole, load_audio

        check_whole(cut)
        waveform = load_audio(cut, sample_rate=SAMPLE_RATE, channels=self.channels)
        if fbank_length(len(waveform)) == 0:
            raise ValueError(f"the audio has {len(waveform)} samples, too few for one frame")
        return waveform

    def augment(self, example: Example, number: int, making: "Making") -> Example:
        """The augmented example.

        Args:
          example: a copy whose arrays are shared with other copies of the cut: replace them, never change
          them. number: of its cut.
          making: the batch that it is for, with partners and counters.
        """
        raise TypeError("subclasses define their augmentation")

    def _noise(self, example: Example, random: np.random.Generator) -> Mixture | None:
        """None: silent or unreadable noise; the caller counts it."""
        if self.noise is None:
            return None
        number = int(random.integers(len(self.noise)))
        try:
            noise = self.load_waveform(self.noise[number])
        except LOAD_ERRORS as error:
            logger.warning("noise cut %s is not mixed: %s", self.noise.ids[number], error)
            return None
        return mix_noise(example.waveform, noise, self.mixing, random)

    def collate(self, examples: list[Example], epoch: int) -> Batch:
        """Pads examples to a batch."""
        waveforms, num_samples = pad_waveforms([example.waveform for example in examples])
        ids = [example.cut_id for example in examples]
        return Batch(
            ids=ids,
            keys=torch.tensor(
                [key("utterance", self.seed, epoch, *_draw_id(each)) for each in examples], dtype=torch.int64
            ),
            waveforms=waveforms,
            num_samples=num_samples,
            samples_of_each=num_samples.tolist(),
            mixed=[example.mixed for example in examples],
            audio_seconds=float(num_samples.sum()) / SAMPLE_RATE,
            padded_seconds=waveforms.numel() / SAMPLE_RATE,
        )


def _draw_id(example: Example) -> tuple[str | int, ...]:
    """What the draws of an example belong to; the first time that an epoch takes a cut it is the id alone."""
    return (example.cut_id, example.occurrence) if example.occurrence else (example.cut_id,)


class Making:
    """One batch in the making: the cuts loaded for it, what its augmentations did, what went wrong.

    Args:
      examples: who loads.
      epoch: that the draws are keyed by.
      global_batch: numbers of the cuts of all ranks, the possible partners.
    """

    def __init__(self, examples: Examples, epoch: int, global_batch: list[int]) -> None:
        self.epoch = epoch
        self.statistics: dict[str, tuple[float, int]] = {}
        self.problems: dict[str, str] = {}
        self._examples, self._global_batch = examples, global_batch
        self._loaded: dict[int, Example] = {}

    def load(self, number: int) -> Example | None:
        """The clean example of a cut; None (and a problem noted) where it cannot be read."""
        if number not in self._loaded:
            try:
                self._loaded[number] = self._examples.load(number)
            except LOAD_ERRORS as error:
                self.problems[self._examples.manifest.ids[number]] = str(error)
        return self._loaded.get(number)

    def partner(self, number: int, random: np.random.Generator) -> Example | None:
        """A clean example of the global batch, uniform over those of other cuts; None if there is none."""
        others = [other for other in self._global_batch if other != number]
        return self.load(others[int(random.integers(len(others)))]) if others else None

    def count(self, name: str, value: float, times: int = 1) -> None:
        """Adds to a statistic, a (sum, count)."""
        total, number = self.statistics.get(name, (0.0, 0))
        self.statistics[name] = (total + value, number + times)
