"""One vector per utterance for probes: mean and standard deviation of its frames, of each layer of an encoder
or of log-mels.

Legend: B utterances of a batch, U of a set, T frames, D dimensions.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from spear_lib.data.audio_batches import load_waveforms, position_batches
from spear_lib.data.manifests import Manifest
from spear_lib.encoders.kinds import Encoder
from spear_lib.features.fbank import FbankExtractor
from spear_lib.runtime.progress import progress

Sources = list[tuple[Manifest, list[int]]]
"""Manifests and positions in them, in the order of the wanted rows."""


def log_mel_features(sources: Sources, batch_seconds: float) -> list[np.ndarray]:
    """Mean and standard deviation of each mel bin over the utterance: one "layer" (U, 256)."""
    extractor = FbankExtractor()
    rows: dict[int, np.ndarray] = {}
    for batch, waveforms, lengths in probe_batches(sources, batch_seconds):
        fbank, num_frames = extractor(waveforms, lengths)
        for row, pooled in zip(batch, statistics(fbank, num_frames)):
            rows[row] = pooled.numpy()
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


def num_rounds(sources: Sources, batch_seconds: float, num_shares: int) -> int:
    """How many batches of ``probe_batches`` the first share has; the others have as many or one fewer."""
    chosen = [(manifest, positions) for manifest, positions in sources if positions]
    total = sum(len(position_batches(manifest, batch_seconds, positions)) for manifest, positions in chosen)
    return -(-total // num_shares)


def batch_features(
    encoder: Encoder, waveforms: Tensor, lengths: Tensor, device: torch.device | str
) -> list[np.ndarray]:
    """Statistics of the valid frames of every layer, (B, 2 D) each, the encoder's output last."""
    output = encoder.extract(waveforms.to(device), lengths.to(device))
    frames = [encoder.hidden_length(length) for length in lengths.tolist()]
    at_50_hz = torch.tensor(frames, device=device)
    pooled = [statistics(hidden, at_50_hz) for hidden in output.hidden_states]
    pooled.append(statistics(output.encoder_out, output.lengths))
    return [of_layer.cpu().numpy() for of_layer in pooled]


@torch.no_grad()
def encoder_features(
    encoder: Encoder,
    sources: Sources,
    batch_seconds: float,
    device: torch.device | str = "cpu",
    description: str = "features",
) -> list[np.ndarray]:
    """Statistics of the valid frames of every layer: a list of (U, 2 D) arrays, the encoder's output last."""
    encoder = encoder.to(device).eval()
    rows: dict[int, list[np.ndarray]] = {}
    batches = probe_batches(sources, batch_seconds)
    for batch, waveforms, lengths in progress(batches, None, description, "batches"):
        arrays = batch_features(encoder, waveforms, lengths, device)
        for index, row in enumerate(batch):
            rows[row] = [array[index] for array in arrays]
    return [np.stack(layer) for layer in zip(*(rows[row] for row in sorted(rows)))]


def statistics(frames: Tensor, lengths: Tensor) -> Tensor:
    """Mean and standard deviation over the valid frames: (B, T, D), (B,) -> (B, 2 D) float64."""
    valid = (torch.arange(frames.shape[1], device=frames.device) < lengths.unsqueeze(1)).unsqueeze(2)
    count = lengths.clamp(min=1).unsqueeze(1)
    frames = torch.where(valid, frames.double(), 0.0)
    mean = frames.sum(1) / count
    deviation = torch.where(valid, frames - mean.unsqueeze(1), 0.0)
    return torch.cat([mean, (deviation.square().sum(1) / count).sqrt()], dim=1)
