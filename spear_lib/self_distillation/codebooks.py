"""Online clusters of a layer's outputs: running sums and counts of what was assigned to each code (spec spidr
§4).

Legend: K codes, D channels, F masked frames.

All of it is in float32, whatever the precision of training (the reference sums in bfloat16 there).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPSILON = 1e-5


class Codebook(nn.Module):
    """K codes; the centre of code k is ``codebook[k] / counts[k]``.

    A code moves only in steps in which it wins frames. One that never won has a count of exactly 1.

    Args:
      size: K.
      dim: D.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        start = torch.randn(size, dim)
        variance, mean = torch.var_mean(start, dim=0, correction=0)
        self.register_buffer("codebook", (start - mean) / (variance + _EPSILON).sqrt())
        self.register_buffer("counts", torch.ones(size))

    def centres(self) -> Tensor:
        """(K, D) float32."""
        return self.codebook / self.counts.unsqueeze(1)

    @torch.no_grad()
    def assign(self, vectors: Tensor) -> Tensor:
        """The nearest code of each vector, the first of equally near ones: (F, D) -> (F,) int64."""
        with torch.autocast(vectors.device.type, enabled=False):
            return torch.cdist(vectors.float(), self.centres()).argmin(dim=1)

    @torch.no_grad()
    def collect(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """What vectors (F, D) with labels (F,) add to each code: (K, D + 1) float32, their sum and in the
        last column their number. Such tensors of micro-batches and ranks are added up."""
        with torch.autocast(vectors.device.type, enabled=False):
            won = F.one_hot(labels, len(self.counts)).to(torch.float32)
            # As a product: adding by index is not repeatable on a GPU.
            return torch.cat([won.t() @ vectors.float(), won.sum(0).unsqueeze(1)], dim=1)

    @torch.no_grad()
    def update(self, collected: Tensor, decay: float) -> None:
        """Codes that won something move towards it; the others, and with a decay of 1 all, stay as they are.

        Args:
          collected: (K, D + 1), ``collect`` summed over the global batch of the step.
          decay: a in sums <- a sums + (1 - a) new ones.
        """
        if decay >= 1.0:
            return
        sums, numbers = collected[:, :-1], collected[:, -1]
        won = numbers > 0
        counts = decay * self.counts + (1.0 - decay) * numbers
        moved = decay * self.codebook + (1.0 - decay) * sums
        self.counts.copy_(torch.where(won, counts, self.counts))
        self.codebook.copy_(torch.where(won.unsqueeze(1), moved, self.codebook))

    def num_dead(self) -> int:
        """Codes that never won a frame."""
        return int((self.counts == 1.0).sum())


@torch.no_grad()
def target_vectors(outputs: Tensor, valid: Tensor | None) -> Tensor:
    """Outputs of a layer, normalised per utterance and channel over time (spec spidr §4.1).

    Args:
      outputs: (B, T, D).
      valid: (B, T) bool: the frames that mean and variance are over; None: all, also those of padding, as
        in the reference.

    Returns:
      (B, T, D) float32; undefined where not valid.
    """
    with torch.autocast(outputs.device.type, enabled=False):
        z = outputs.float()
        if valid is None:
            variance, mean = torch.var_mean(z, dim=1, keepdim=True, correction=0)
            return (z - mean) / (variance + _EPSILON).sqrt()
        frames = valid.unsqueeze(2)
        count = frames.sum(dim=1, keepdim=True)
        mean = (z * frames).sum(dim=1, keepdim=True) / count
        centred = (z - mean) * frames
        variance = centred.square().sum(dim=1, keepdim=True) / count
        return centred / (variance + _EPSILON).sqrt()
