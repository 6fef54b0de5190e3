"""The encoder on the audio of a batch, with SpecAugment in training: what fine-tuning tasks share.

Legend: B utterances, N samples of audio, T encoder frames.
"""

from typing import Any

import torch

from spear_lib.features.fbank import FbankExtractor, fbank_length
from spear_lib.features.spec_augment import SpecAugmentConfig, spec_augment, spec_augment_time_mask


class AugmentedEncoder:
    """Waveforms to encoder output; SpecAugment works on the features, on their device, keyed by
    ``batch.keys``.

    Args:
      config: SpecAugment of training; the defaults without one.
    """

    def __init__(self, config: SpecAugmentConfig | None = None) -> None:
        self.config = config or SpecAugmentConfig()
        self.features = FbankExtractor()

    def __call__(self, encoder: Any, batch: Any, training: bool) -> Any:
        """EncoderOutput with ``encoder_out`` (B, T, E); an encoder that reads waveforms has no mel bins, so
        that only the time masks of SpecAugment apply to it."""
        waveforms, num_samples = batch.waveforms, batch.num_samples
        if not training:
            return encoder.extract(waveforms, num_samples)
        if encoder.input_kind == "waveform":
            keys = batch.keys.to(waveforms.device)
            num_frames = fbank_length(waveforms.shape[1])
            mask = spec_augment_time_mask(num_frames, fbank_length(num_samples), keys, self.config)
            return encoder.extract(waveforms, num_samples, mask)
        fbank, lengths = self.features(waveforms, num_samples)
        with torch.autocast(waveforms.device.type, enabled=False):
            fbank = spec_augment(fbank, lengths, batch.keys, self.config)
        return encoder(fbank, lengths)
