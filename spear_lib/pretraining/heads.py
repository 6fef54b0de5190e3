"""Predicting the tokens of every codebook from the encoder's frames (paper Eq. 2; spec mvq §7).

Legend: F frames with targets, P channels of the encoder, N codebooks, K entries of a codebook.

N linear classifiers that do not see each other, as one matrix product. This is the part of the reference's
JointCodebookLoss that SPEAR uses; its other 4 to 5 million parameters never get a gradient and do not exist
here. The (F, N, K) logits would need 500 MB for 30,000 frames of 16 codebooks, so they are made chunk by
chunk, in forward and again in backward.
"""

from typing import Any

import torch
from torch import Tensor, nn

CHUNK_ELEMENTS = 1 << 23  # logits held at once: 32 MB in float32


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of N classifiers per frame without keeping logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """hidden (F, P), weight (N, K, P), bias (N, K), targets (F, N) -> loss, correct (F, N)."""
        ctx.save_for_backward(hidden, weight, bias, targets)
        losses, corrects = [], []
        for rows in _chunks(hidden, weight):
            logits = _logits(hidden[rows], weight, bias)
            valid = targets[rows] >= 0
            index = targets[rows].clamp(min=0).unsqueeze(-1)
            loss = logits.logsumexp(-1) - logits.gather(-1, index).squeeze(-1)
            losses.append(loss.masked_fill(~valid, 0.0))
            corrects.append((logits.argmax(-1) == targets[rows]) & valid)
        correct = torch.cat(corrects)
        ctx.mark_non_differentiable(correct)
        return torch.cat(losses), correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _grad_correct: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        hidden, weight, bias, targets = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for rows in _chunks(hidden, weight):
            grad = _logits(hidden[rows], weight, bias).softmax(-1)
            valid = targets[rows] >= 0
            index = targets[rows].clamp(min=0).unsqueeze(-1)
            grad.scatter_add_(-1, index, torch.full_like(index, -1, dtype=grad.dtype))
            grad *= (grad_loss[rows] * valid).unsqueeze(-1)
            flat = grad.flatten(1)  # (F', N*K)
            grad_hidden[rows] = flat @ weight.flatten(0, 1)
            grad_weight += (flat.t() @ hidden[rows]).view_as(weight)
            grad_bias += grad.sum(0)
        return grad_hidden, grad_weight, grad_bias, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    flat = torch.addmm(bias.flatten(), hidden, weight.flatten(0, 1).t())
    return flat.view(hidden.shape[0], *bias.shape)


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // (weight.shape[0] * weight.shape[1]))
    return [slice(start, start + size) for start in range(0, max(1, hidden.shape[0]), size)]


class MaskedPredictionHead(nn.Module):
    """N classifiers over K codebook entries on the encoder's output.

    Args:
      dim: P, channels of the encoder's output.
      num_codebooks: N; twice the quantiser's number where a student frame predicts two teacher frames.
      codebook_size: K.
    """

    def __init__(self, dim: int, num_codebooks: int, codebook_size: int = 256) -> None:
        super().__init__()
        self.dim, self.num_codebooks, self.codebook_size = dim, num_codebooks, codebook_size
        self.weight = nn.Parameter(torch.randn(num_codebooks, codebook_size, dim) * dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(num_codebooks, codebook_size))

    def forward(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats and whether the best guess is right, per frame and codebook.

        Args:
          hidden: (F, P) float32.
          targets: (F, N) int64 in 0..K-1, or -100 where nothing is to be predicted (loss 0, never correct).
        """
        if hidden.shape[-1] != self.dim or targets.shape[-1] != self.num_codebooks:
            raise ValueError(
                f"this head predicts {self.num_codebooks} codebooks from {self.dim} channels; it was given "
                f"{targets.shape[-1]} codebooks and {hidden.shape[-1]} channels: the tokens belong to "
                "another model"
            )
        return _ChunkedCrossEntropy.apply(hidden, self.weight, self.bias, targets)

    @torch.no_grad()
    def load_reference(self, state: dict[str, Tensor], prefix: str = "") -> None:
        """Takes the weights of the reference's JointCodebookLoss (``linear2b_weight``, ``linear2_bias``)."""
        self.weight.copy_(state[prefix + "linear2b_weight"])
        self.bias.copy_(state[prefix + "linear2_bias"])
