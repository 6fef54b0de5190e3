"""Data of audio tagging: clips with labels, mixed with each other and with noise.

Legend: B clips, N samples, K classes.
"""

import logging
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from spear_lib.data.batch import Batch
from spear_lib.data.datasets import CutData, LoadingConfig, open_sources
from spear_lib.data.examples import Example, Examples, Making
from spear_lib.data.mixing import FINETUNING_MIXING, MixingConfig
from spear_lib.data.selection import Selection
from spear_lib.features.spec_augment import SpecAugmentConfig
from spear_lib.runtime.keyed_random import generator
from spear_lib.tagging.class_labels import LabelTable

logger = logging.getLogger(__name__)

_NO_LABEL = "no label of the class list"


@dataclass(frozen=True)
class MixupConfig:
    """Two clips as one, with the labels of both in the same proportion (Zhang et al. 2018), on waveforms."""

    probability: float = 0.5
    """Share of the training clips that get a partner (paper B.3: 0.5)."""
    alpha: float = 10.0
    """The clip's share is drawn from Beta(alpha, alpha): 10 keeps it near a half (reference)."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(
                f"data.mixup.probability is {self.probability}, expected a share between 0 and 1"
            )
        if not self.alpha > 0.0:
            raise ValueError(f"data.mixup.alpha is {self.alpha}, expected a number above 0")


@dataclass(frozen=True)
class TaggingDataConfig(LoadingConfig):
    """Data of audio tagging."""

    mixup: MixupConfig = field(default_factory=MixupConfig)
    mixing: MixingConfig = FINETUNING_MIXING
    spec_augment: SpecAugmentConfig = field(default_factory=SpecAugmentConfig)
    """Applied by the task to the features, on the device."""
    weighted_sampling: bool = False
    """Draw the clips of an epoch in proportion to sum over labels of 1000 / (clips of the label + 0.01), with
    replacement, so that rare classes come about as often as frequent ones (paper Table 10)."""
    samples_per_epoch: int = 0
    """Clips of an epoch with weighted_sampling; 0: as many as there are (reference: 200000 of 2 million)."""

    def __post_init__(self) -> None:
        if self.samples_per_epoch < 0:
            raise ValueError(f"data.samples_per_epoch is {self.samples_per_epoch}, expected 0 or more")
        if self.samples_per_epoch and not self.weighted_sampling:
            raise ValueError(
                f"data.samples_per_epoch is {self.samples_per_epoch} and data.weighted_sampling false: an "
                "epoch without weighted sampling is every clip once. Set weighted_sampling to true, or "
                "samples_per_epoch to 0"
            )


@dataclass
class TaggingExample(Example):
    """A clip with its targets."""

    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    """(K,) float32 in 0..1."""


def mix_up(first: np.ndarray, second: np.ndarray, share: float, crop: float = 0.0) -> np.ndarray:
    """share * first + (1 - share) * second, of the first one's length.

    A longer second one gives a piece, whose place is ``crop`` in [0, 1); a shorter one ends early.
    """
    start = int(crop * max(0, len(second) - len(first) + 1)) if len(second) > len(first) else 0
    piece = second[start : start + len(first)]
    mixed = (share * first).astype(np.float32)
    mixed[: len(piece)] += np.float32(1.0 - share) * piece
    return mixed


class TaggingExamples(Examples):
    """Waveforms with targets; mixup with a clip of the global batch, then noise."""

    def __init__(
        self,
        manifest,
        noise,
        seed: int,
        training: bool,
        mixing: MixingConfig,
        mixup: MixupConfig,
        labels: LabelTable,
    ) -> None:
        super().__init__(manifest, noise, seed, training, mixing)
        for name in ("token_probability", "utterance_probability"):
            if mixing.enabled and getattr(mixing, name) > 0.0:
                raise ValueError(
                    f"mixing.{name} is {getattr(mixing, name)}, but tagging mixes clips by mixup: set it to 0"
                )
        self.mixup, self.labels = mixup, labels

    def unusable(self, manifest, cut_numbers) -> dict[int, str]:
        """Clips without a label of the class list."""
        without = (number for number in cut_numbers.tolist() if not len(self.labels.of(number)))
        return dict.fromkeys(without, _NO_LABEL)

    def check_cut(self, cut) -> None:
        """Labels are read of all cuts before (``LabelTable``)."""

    def load(self, number: int) -> TaggingExample:
        if not len(self.labels.of(number)):
            raise ValueError(_NO_LABEL)
        cut = self.manifest[number]
        return TaggingExample(str(cut.id), self.load_waveform(cut), {}, labels=self.labels.row(number))

    def augment(self, example: TaggingExample, number: int, making: Making) -> TaggingExample:
        if not self.training:
            return example
        random = self.random("tagging", making.epoch, example)
        chosen, crop = random.random(2)
        share = random.beta(self.mixup.alpha, self.mixup.alpha)
        kinds = []
        if chosen < self.mixup.probability:
            partner = making.partner(number, random)
            making.count("mixing_skipped", float(partner is None))
            if partner is not None:
                waveform = mix_up(example.waveform, partner.waveform, share, crop)
                labels = (share * example.labels + (1.0 - share) * partner.labels).astype(np.float32)
                example = replace(example, waveform=waveform, labels=labels)
                kinds.append("clip")
        if self.noise is not None and self.mixing.draw_kind(random, speech=False) == "noise":
            mixture = self._noise(example, random)
            making.count("mixing_skipped", float(mixture is None))
            if mixture is not None:
                example = replace(example, waveform=mixture.waveform)
                kinds.append("noise")
        for each in ("clip", "noise"):
            making.count(f"mixed_{each}", float(each in kinds))
        return replace(example, mixed=" and ".join(kinds) or "none")

    def collate(self, examples: list[TaggingExample], epoch: int) -> Batch:
        batch = super().collate(examples, epoch)
        batch.labels = torch.from_numpy(np.stack([example.labels for example in examples]))
        return batch


class WeightedSelection:
    """An epoch of ``num_samples`` cuts drawn with replacement in proportion to their weights.

    Args:
      weights: (n,), 0 or more.
      num_samples: draws per epoch.
      seed: of the draws; those of an epoch are a function of (seed, epoch).
    """

    def __init__(self, weights: np.ndarray, num_samples: int, seed: int = 0) -> None:
        if num_samples < 1:
            raise ValueError(f"samples_per_epoch is {num_samples}: an epoch needs at least one cut")
        self.num_samples, self.seed = num_samples, seed
        self._ends = np.cumsum(weights, dtype=np.float64)
        if not self._ends[-1] > 0.0:
            raise ValueError(
                f"the weights of {len(weights)} cuts add up to {self._ends[-1]}: none could be drawn"
            )

    def __call__(self, epoch: int) -> np.ndarray:
        """(num_samples,) positions, sorted, with repeats."""
        draws = generator("weighted sampling", self.seed, epoch).random(self.num_samples)
        # A cut of weight 0 has no width, so no draw falls on it.
        return np.sort(np.searchsorted(self._ends, draws * self._ends[-1], side="right"))


class TaggingData(CutData):
    """Batches with labels for audio tagging; SpecAugment is left to the task (``config.spec_augment``).

    Arguments and errors as ``PretrainingData``; with ``training`` False nothing is mixed and every clip comes
    once. Cuts without a label of the class list are counted like unreadable ones (``max_bad_fraction``).

    Args:
      classes: {label: name}, the K classes in order.
    """

    def __init__(
        self,
        config: TaggingDataConfig,
        classes: dict[str, str],
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        training: bool = True,
        cuts: list[str] | None = None,
    ) -> None:
        manifest, noise, mixing = open_sources(config, training, cuts)
        self.labels = LabelTable(manifest, classes)
        self.config = config
        examples = TaggingExamples(
            manifest=manifest,
            noise=noise,
            seed=seed,
            training=training,
            mixing=mixing,
            mixup=config.mixup,
            labels=self.labels,
        )
        super().__init__(manifest, examples, config, seed, rank, world_size, training)

    def make_selection(self, seed: int) -> Selection | None:
        if not self.config.weighted_sampling:
            return super().make_selection(seed)
        weights = self.labels.weights(self.cut_numbers)
        return WeightedSelection(weights, self.config.samples_per_epoch or len(weights), seed)

    def describe_sampling(self) -> str:
        """What an epoch takes and what is mixed, for the first screen."""
        config = self.config
        if config.weighted_sampling:
            number = config.samples_per_epoch or self.num_cuts
            sampling = f"{number} clips per epoch, drawn by the weights of their labels"
        else:
            sampling = "every clip once per epoch"
        noise = config.mixing.noise_probability if self.examples.noise is not None else 0.0
        return f"{sampling}; mixup with {config.mixup.probability:g}, noise with {noise:g} of them"
