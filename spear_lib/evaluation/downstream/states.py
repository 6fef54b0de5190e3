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
    def of(self, clips: Sequence[Clip]) -> list[Tensor]:
        """(L, T, D) float32 of each clip, on the encoder's device; what is not kept runs as one batch."""
        missing = [clip for clip in clips if clip.name not in self.kept]
        now: dict[str, Tensor] = {}
        if missing:
            output = self.encoder([torch.from_numpy(load_audio(clip.cut())) for clip in missing])
            together = torch.stack([F.pad(s.float(), (0, self.dim - s.shape[2])) for s in output.states])
            for row, (clip, length) in enumerate(zip(missing, output.lengths.tolist())):
                states = together[:, row, :length].clone()
                now[clip.name] = states
                if states.nbytes <= self.room and clip.name not in self.kept:
                    self.room -= states.nbytes
                    self.kept[clip.name] = states
        return [self.kept[clip.name] if clip.name in self.kept else now[clip.name] for clip in clips]

    def batch(self, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
        """(L, B, T, D) and frames (B,)."""
        return pad(self.of(clips))


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
