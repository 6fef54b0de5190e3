"""Data of self-distillation: waveforms and masks; with teacher tokens where these are predicted too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from spear_lib.data.batch import Batch
from spear_lib.data.datasets import CutData, LoadingConfig, open_sources
from spear_lib.data.examples import Example, Examples, Making
from spear_lib.data.mixing import MixingConfig
from spear_lib.features.masking import MaskingConfig
from spear_lib.pretraining.data import PretrainingExamples
from spear_lib.self_distillation.masking import (
    FrameMaskingConfig,
    as_fbank_mask,
    frame_counts,
    frame_mask,
)


@dataclass(frozen=True)
class SelfDistillationDataConfig(LoadingConfig):
    """Data of self-distillation."""

    mixing: MixingConfig = field(default_factory=lambda: MixingConfig(enabled=False))
    """Only with token_fields; SpidR mixes nothing."""
    masking: FrameMaskingConfig = field(default_factory=FrameMaskingConfig)
    token_fields: list[str] = field(default_factory=list)
    """Token fields of the cuts that are predicted as well, see ``tokens.weight``; none: only audio is
    read."""
    quantizer_ids: list[str] = field(default_factory=list)
    """Expected quantiser of each token field; none: not checked."""
    mixed_token_field: str = ""
    """Field that token mixing mixes; default: the first."""

    def __post_init__(self) -> None:
        if self.mixing.enabled and not self.token_fields:
            raise ValueError(
                "data.mixing.enabled is true without data.token_fields: self-distillation alone mixes "
                "nothing in. Set it to false"
            )


def hide_frames(batch: Batch, masking: FrameMaskingConfig, input_kind: str) -> None:
    """Adds the mask to a batch."""
    num_samples = batch.waveforms.shape[1]
    lengths = frame_counts(batch.num_samples, input_kind)
    num_frames = int(frame_counts(torch.tensor(num_samples), input_kind))
    mask = frame_mask(lengths, batch.keys, masking, num_frames)
    batch.time_mask = as_fbank_mask(mask, num_samples, input_kind)
    batch.channel_mask = None


class _Masked:
    """Batches with the mask."""

    frame_masking: FrameMaskingConfig
    input_kind: str

    def collate(self, examples: list[Example], epoch: int) -> Batch:
        batch = super().collate(examples, epoch)
        hide_frames(batch, self.frame_masking, self.input_kind)
        return batch


class AudioExamples(_Masked, Examples):
    """Waveforms and nothing else."""

    def check_cut(self, cut) -> None:
        """Every cut will do."""

    def load(self, number: int) -> Example:
        cut = self.manifest[number]
        return Example(str(cut.id), self.load_waveform(cut), {})

    def augment(self, example: Example, number: int, making: Making) -> Example:
        return example


class TokenExamples(_Masked, PretrainingExamples):
    """Waveforms with teacher tokens, mixed as in pre-training."""


class SelfDistillationData(CutData):
    """Batches for self-distillation.

    Args:
      config: what to load.
      input_kind: of the encoder.
      seed, rank, world_size: of the run, this process, and the number of processes.
      training: False for validation: fixed order, no mixing, masks keyed by the cut alone.
      cuts: manifests to use instead of ``config.train_cuts``, for validation sets.
      needed_fields: domain -> token fields that its cuts must carry; all of them by default.
    """

    def __init__(
        self,
        config: SelfDistillationDataConfig,
        input_kind: str,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        training: bool = True,
        cuts: list[str] | None = None,
        needed_fields: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        manifest, noise, mixing = open_sources(config, training, cuts)
        sources = (manifest, noise, seed, training, mixing)
        if config.token_fields:
            examples = TokenExamples(
                *sources,
                masking=MaskingConfig(enabled=False),
                token_fields=list(config.token_fields),
                quantizer_ids=list(config.quantizer_ids),
                mixed_token_field=config.mixed_token_field,
                needed_fields=needed_fields,
            )
        else:
            examples = AudioExamples(*sources)
        examples.frame_masking, examples.input_kind = config.masking, input_kind
        super().__init__(manifest, examples, config, seed, rank, world_size, training)
        self.config = config

    @property
    def token_facts(self) -> dict[str, dict]:
        """As in ``PretrainingData``; empty without token fields."""
        return getattr(self.examples, "token_facts", {})

    @property
    def needed_fields(self) -> Mapping[str, Sequence[str]]:
        """Domain -> token fields that its cuts must carry."""
        return getattr(self.examples, "needed_fields", {})
