"""Frozen states of audio, kept in memory while they fit, and their learned weighted sum (s3prl: Featurizer).

Legend: L states, B utterances, T frames at 50 Hz, D channels of the widest state.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.data.audio import load_audio
from spear_lib.evaluation.clip_sets import Clip
from spear_lib.interfaces.aligned import AlignedEncoder


class FrozenStates:
    """All states of clips. States narrower than the widest (Zipformer stacks) get channels of zeros, as
    inside the encoder.

    Args:
      encoder: with layers "all".
      max_gigabytes: of states that are kept; what does not fit is computed each time anew.
    """

    def __init__(self, encoder: AlignedEncoder, max_gigabytes: float = 2.0) -> None:
        self.encoder = encoder
        self.num_states, self.dim = len(encoder.state_dims), encoder.output_dim
        self.room = max_gigabytes * 1e9
        self.kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def of(self, clip: Clip) -> Tensor:
        """(L, T, D) float32 on the encoder's device."""
        states = self.kept.get(clip.name)
        if states is None:
            found = self.encoder(torch.from_numpy(load_audio(clip.cut()))).states
            states = torch.stack([F.pad(one[0].float(), (0, self.dim - one.shape[2])) for one in found])
            size = states.nbytes
            if size <= self.room:
                self.room -= size
                self.kept[clip.name] = states
        return states

    def batch(self, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
        """(L, B, T, D) and frames (B,)."""
        return pad([self.of(clip) for clip in clips])


def pad(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(L, T, D) of each utterance as (L, B, T, D), and frames (B,)."""
    lengths = torch.tensor([one.shape[1] for one in states])
    most = int(lengths.max())
    return torch.stack([F.pad(one, (0, 0, 0, most - one.shape[1])) for one in states], dim=1), lengths


class WeightedSum(nn.Module):
    """(L, B, T, D) -> (B, T, D): weights softmax(zeros(L)) at first, trained with the head.

    Args:
      normalise: layer norm without weights of every state first (s3prl's option ``normalize``, off there).
    """

    def __init__(self, num_states: int, normalise: bool = False) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_states))
        self.normalise = normalise

    def forward(self, states: Tensor) -> Tensor:
        """states: (L, B, T, D)."""
        if self.normalise:
            states = F.layer_norm(states, states.shape[-1:])
        return torch.tensordot(self.weights.softmax(0), states, dims=1)
