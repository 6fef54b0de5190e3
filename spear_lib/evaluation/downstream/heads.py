"""The heads that SUPERB puts on frozen features (sizes of s3prl 0.4.18; own code).

Legend: B utterances, T frames, D channels, K classes or units, S speakers, F frequency bins.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def frames_mask(lengths: Tensor, total: int) -> Tensor:
    """(B, T) bool, True inside."""
    return torch.arange(total, device=lengths.device) < lengths.unsqueeze(1)


class MeanPoolClassifier(nn.Module):
    """Linear to ``hidden``, mean over frames, linear to K (SID, ER, KS)."""

    def __init__(self, dim: int, num_classes: int, hidden: int) -> None:
        super().__init__()
        self.project, self.classify = nn.Linear(dim, hidden), nn.Linear(hidden, num_classes)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D), (B,) -> logits (B, K)."""
        mask = frames_mask(lengths, features.shape[1]).unsqueeze(2)
        pooled = (self.project(features) * mask).sum(1) / lengths.unsqueeze(1)
        return self.classify(pooled)


class FrameTagger(nn.Module):
    """One LSTM of ``hidden``, linear to S activities per frame (SD)."""

    def __init__(self, dim: int, num_speakers: int, hidden: int) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(dim, hidden, batch_first=True)
        self.tag = nn.Linear(hidden, num_speakers)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D), (B,) -> logits (B, T, S); causal, so that padding behind changes nothing."""
        return self.tag(self.recurrent(features)[0])


class UnitHead(nn.Module):
    """Log probabilities of units for CTC: linear alone (PR), or two bidirectional LSTMs first (ASR, SF)."""

    def __init__(self, dim: int, num_units: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, hidden)
        self.recurrent = (
            nn.LSTM(hidden, hidden, layers, batch_first=True, bidirectional=True, dropout=0.2)
            if layers
            else None
        )
        self.output = nn.Linear(2 * hidden if layers else hidden, num_units)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D), (B,) -> (B, T, K)."""
        hidden = self.project(features)
        if self.recurrent is not None:
            hidden = packed(self.recurrent, hidden, lengths)
        return self.output(hidden).log_softmax(-1)


def packed(recurrent: nn.LSTM, features: Tensor, lengths: Tensor) -> Tensor:
    """A bidirectional LSTM that does not see padding, (B, T, D) -> (B, T, D')."""
    inside = nn.utils.rnn.pack_padded_sequence(
        features, lengths.cpu(), batch_first=True, enforce_sorted=False
    )
    return nn.utils.rnn.pad_packed_sequence(
        recurrent(inside)[0], batch_first=True, total_length=features.shape[1]
    )[0]


class XVector(nn.Module):
    """Time-delay layers, statistics of frames, an embedding of ``hidden`` (SV)."""

    CONTEXTS = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))
    """Kernel and dilation."""
    SHORTEST = 16
    """Frames that it needs: 15 to leave one, and two for a deviation."""

    def __init__(self, dim: int, hidden: int, wide: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, hidden)
        sizes = [*([hidden] * 5), wide]
        self.layers = nn.ModuleList(
            nn.Conv1d(a, b, kernel, dilation=dilation)
            for (kernel, dilation), a, b in zip(self.CONTEXTS, sizes, sizes[1:])
        )
        self.embed, self.after = nn.Linear(2 * wide, hidden), nn.Linear(hidden, hidden)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D), (B,) -> (B, hidden). Utterances below SHORTEST frames are repeated (ours)."""
        if int(lengths.min()) < self.SHORTEST:
            features, lengths = _repeated(features, lengths, self.SHORTEST)
        hidden = self.project(features).transpose(1, 2)
        for layer in self.layers:
            hidden = F.relu(layer(hidden))
        lost = features.shape[1] - hidden.shape[2]
        mask = frames_mask(lengths - lost, hidden.shape[2]).unsqueeze(1)
        count = (lengths - lost).view(-1, 1).to(hidden)
        mean = (hidden * mask).sum(2) / count
        variance = ((hidden - mean.unsqueeze(2)).square() * mask).sum(2) / (count - 1)
        embedded = F.relu(self.embed(torch.cat([mean, (variance + 1e-10).sqrt()], dim=1)))
        return F.relu(self.after(embedded)) if self.training else embedded


def _repeated(features: Tensor, lengths: Tensor, shortest: int) -> tuple[Tensor, Tensor]:
    total = max(features.shape[1], shortest)
    index = torch.arange(total, device=features.device) % lengths.unsqueeze(1)
    rows = torch.arange(len(features), device=features.device).unsqueeze(1)
    return features[rows, index], lengths.clamp(min=shortest)


class MarginSoftmax(nn.Module):
    """Additive margin softmax: scale * (cosine - margin of the right class), cross entropy."""

    def __init__(self, dim: int, num_classes: int, margin: float = 0.4, scale: float = 30.0) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale
        self.classes = nn.Parameter(nn.init.xavier_normal_(torch.empty(num_classes, dim)))

    def forward(self, embedded: Tensor, labels: Tensor) -> Tensor:
        """(B, D), (B,) int64 -> loss."""
        cosines = F.linear(F.normalize(embedded), F.normalize(self.classes))
        margins = self.margin * F.one_hot(labels, len(self.classes))
        return F.cross_entropy(self.scale * (cosines - margins), labels)


class MaskEstimator(nn.Module):
    """Three bidirectional LSTMs of ``hidden``, a mask (ReLU) per source (SE, SS)."""

    def __init__(self, dim: int, num_bins: int, num_sources: int, hidden: int) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(dim, hidden, 3, batch_first=True, bidirectional=True, dropout=0.5)
        self.drop = nn.Dropout(0.5)
        self.masks = nn.ModuleList(nn.Linear(2 * hidden, num_bins) for _ in range(num_sources))

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D), (B,) -> masks (B, sources, T, F), 0 or more."""
        hidden = self.drop(packed(self.recurrent, features, lengths))
        return torch.stack([F.relu(mask(hidden)) for mask in self.masks], dim=1)
