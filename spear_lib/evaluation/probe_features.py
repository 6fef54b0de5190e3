"""One vector per utterance for probes: the mean of its frames, of each layer of an encoder or of log-mels.

Legend: B utterances of a batch, U of a set, T frames, D dimensions.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from spear_lib.data.features import FbankExtractor
from spear_lib.data.manifests import Manifest
from spear_lib.evaluation.audio_batches import load_waveforms, position_batches
from spear_lib.pretrained.kinds import Encoder
from spear_lib.training.progress import progress

Sources = list[tuple[Manifest, list[int]]]
"""Manifests and positions in them, in the order of the wanted rows."""


def log_mel_features(sources: Sources, batch_seconds: float) -> list[np.ndarray]:
    """Mean and standard deviation of each mel bin over the utterance: one "layer" (U, 256)."""
    extractor = FbankExtractor()
    rows: dict[int, np.ndarray] = {}
    for batch, waveforms, lengths in probe_batches(sources, batch_seconds):
        fbank, num_frames = extractor(waveforms, lengths)
        for row, frames, count in zip(batch, fbank, num_frames.tolist()):
            frames = frames[:count].double()
            rows[row] = torch.cat([frames.mean(0), frames.std(0, correction=0)]).numpy()
    return [np.stack([rows[row] for row in sorted(rows)])]


def probe_batches(
    sources: Sources, batch_seconds: float, share: int = 0, num_shares: int = 1
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Every ``num_shares``-th batch of the audio of ``sources``, from number ``share`` on.

    Yields:
      Rows (positions among all cuts of ``sources``), waveforms (B, N), lengths (B,) in samples. Which cuts
      are batch mates does not depend on the shares.
    """
    before = number = 0
    for manifest, positions in sources:
        if not positions:
            continue
        row_of = {position: before + index for index, position in enumerate(positions)}
        before += len(positions)
        batches = position_batches(manifest, batch_seconds, positions)
        mine = [batch for index, batch in enumerate(batches, start=number) if index % num_shares == share]
        number += len(batches)
        for batch in mine:
            yield [row_of[position] for position in batch], *load_waveforms(manifest, batch)


def batch_features(
    encoder: Encoder, waveforms: Tensor, lengths: Tensor, device: torch.device | str
) -> list[np.ndarray]:
    """Mean over the valid frames of every layer, (B, D) each, the encoder's output last."""
    output = encoder.extract(waveforms.to(device), lengths.to(device))
    frames = [encoder.hidden_length(length) for length in lengths.tolist()]
    at_50_hz = torch.tensor(frames, device=device)
    means = [masked_mean(hidden, at_50_hz) for hidden in output.hidden_states]
    means.append(masked_mean(output.encoder_out, output.lengths))
    return [mean.double().cpu().numpy() for mean in means]


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
    rows: dict[int, list[np.ndarray]] = {}
    batches = probe_batches(sources, batch_seconds)
    for batch, waveforms, lengths in progress(batches, None, description, "batches"):
        arrays = batch_features(encoder, waveforms, lengths, device)
        for index, row in enumerate(batch):
            rows[row] = [array[index] for array in arrays]
    return [np.stack(layer) for layer in zip(*(rows[row] for row in sorted(rows)))]


def masked_mean(frames: Tensor, lengths: Tensor) -> Tensor:
    """Mean over time of the valid frames: (B, T, D), (B,) -> (B, D)."""
    valid = (torch.arange(frames.shape[1], device=frames.device) < lengths.unsqueeze(1)).unsqueeze(2)
    return torch.where(valid, frames.float(), 0.0).sum(1) / lengths.clamp(min=1).unsqueeze(1)
