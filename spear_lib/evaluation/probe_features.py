"""One vector per utterance for probes: the mean of its frames, of each layer of an encoder or of log-mels.

Legend: B utterances of a batch, U of a set, T frames, D dimensions.
"""

import numpy as np
import torch
from torch import Tensor

from spear_lib.data.features import FbankExtractor
from spear_lib.data.manifests import Manifest
from spear_lib.evaluation.decoding import waveform_batches
from spear_lib.pretrained.kinds import Encoder
from spear_lib.training.progress import progress

Sources = list[tuple[Manifest, list[int]]]
"""Manifests and positions in them, in the order of the wanted rows."""


def log_mel_features(sources: Sources, batch_seconds: float) -> list[np.ndarray]:
    """Mean and standard deviation of each mel bin over the utterance: one "layer" (U, 256)."""
    extractor = FbankExtractor()
    rows = []
    for manifest, positions in sources:
        if not positions:
            continue
        found: dict[int, np.ndarray] = {}
        for batch, waveforms, lengths in waveform_batches(manifest, batch_seconds, positions):
            fbank, num_frames = extractor(waveforms, lengths)
            for row, frames, count in zip(batch, fbank, num_frames.tolist()):
                frames = frames[:count].double()
                found[row] = torch.cat([frames.mean(0), frames.std(0, correction=0)]).numpy()
        rows += [found[position] for position in positions]
    return [np.stack(rows)]


@torch.no_grad()
def encoder_features(
    encoder: Encoder,
    sources: Sources,
    batch_seconds: float,
    device: torch.device | str = "cpu",
    description: str = "features",
) -> list[np.ndarray]:
    """Mean over the valid frames of every layer: a list of (U, D) arrays, the encoder's output last."""
    encoder = encoder.to(device).eval()
    rows: list[list[np.ndarray]] = []
    for manifest, positions in sources:
        if not positions:
            continue
        found: dict[int, list[np.ndarray]] = {}
        batches = waveform_batches(manifest, batch_seconds, positions)
        for batch, waveforms, lengths in progress(batches, None, description, "batches"):
            output = encoder.extract(waveforms.to(device), lengths.to(device))
            frames = [encoder.hidden_length(length) for length in lengths.tolist()]
            at_50_hz = torch.tensor(frames, device=device)
            means = [masked_mean(hidden, at_50_hz) for hidden in output.hidden_states]
            means.append(masked_mean(output.encoder_out, output.lengths))
            arrays = [mean.double().cpu().numpy() for mean in means]
            for index, row in enumerate(batch):
                found[row] = [array[index] for array in arrays]
        rows += [found[position] for position in positions]
    return [np.stack(layer) for layer in zip(*rows)]


def masked_mean(frames: Tensor, lengths: Tensor) -> Tensor:
    """Mean over time of the valid frames: (B, T, D), (B,) -> (B, D)."""
    valid = (torch.arange(frames.shape[1], device=frames.device) < lengths.unsqueeze(1)).unsqueeze(2)
    return torch.where(valid, frames.float(), 0.0).sum(1) / lengths.clamp(min=1).unsqueeze(1)
