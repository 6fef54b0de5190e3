"""Predicting the tokens of every codebook from the encoder's frames (paper Eq. 2; spec mvq §7).

Legend: F frames with targets, P channels of the encoder, N codebooks, K entries of a codebook.

N linear classifiers that do not see each other, as one matrix product. This is the part of the reference's
JointCodebookLoss that SPEAR uses; its other 4 to 5 million parameters never get a gradient and do not exist
here. The (F, N, K) logits would need 500 MB for 30,000 frames of 16 codebooks, so they are made chunk by
chunk. Each chunk's gradient is taken while its logits are there, which needs the weight of every frame in the
loss beforehand and saves computing the logits a second time in backward (three matrix products instead of
four, ours).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spear_lib.kernels import Kernel, fused
from spear_lib.kernels.choice import autocast_of
from spear_lib.runtime.devices import on_host

# Logits held at once: 8 MB in float32 stay near a CPU's cache, a GPU is kept busy by 128 MB.
CPU_CHUNK_ELEMENTS = 1 << 21
GPU_CHUNK_ELEMENTS = 1 << 25


_NAME = "heads"
_MOST_CLASSES = 4096  # that a kernel holds at once


class HeadOutput(NamedTuple):
    """What a head says about F frames."""

    total: Tensor
    """Scalar: sum over frames of the frame's weight times its losses; the only part with a gradient."""
    loss: Tensor
    """(F, N) cross-entropy in nats, 0 where there is no target."""
    correct: Tensor
    """(F, N) bool: the best guess is the target."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Weighted sum of the cross-entropies of N classifiers, without keeping logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor, train: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """hidden (F, P), weight (N, K, P), bias (N, K), targets (F, N), weights (F,) -> total, loss, correct.

        Under autocast the matrix products take its format; losses and sums stay in that of ``hidden``.
        """
        device = hidden.device.type
        if fused(_NAME, hidden) and bias.shape[1] <= _MOST_CLASSES:
            return _ChunkedCrossEntropy._by_kernels(ctx, hidden, weight, bias, targets, weights, train)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        loss, correct = (
            torch.empty_like(targets, dtype=hidden.dtype),
            torch.empty_like(targets, dtype=torch.bool),
        )
        classifiers, offsets = weight.flatten(0, 1).to(dtype), bias.flatten().to(dtype)
        gradients = (
            [torch.zeros_like(tensor) for tensor in (hidden, weight.flatten(0, 1), bias)] if train else []
        )
        with torch.autocast(device, enabled=False):
            for rows in _chunks(hidden, bias):
                wanted, valid = targets[rows].clamp(min=0).unsqueeze(-1), targets[rows] >= 0
                logits = torch.addmm(offsets, hidden[rows].to(dtype), classifiers.t()).to(hidden.dtype)
                logits = logits.view(-1, *bias.shape)
                highest, guess = logits.max(-1, keepdim=True)
                probabilities = logits.softmax(-1)
                # The logarithm of the sum of exponentials, from an entry whose probability is far from 0.
                normaliser = highest - probabilities.gather(-1, guess).log()
                nats = (normaliser - logits.gather(-1, wanted)).squeeze(-1)
                loss[rows] = nats.masked_fill(~valid, 0.0)
                correct[rows] = (guess == wanted).squeeze(-1) & valid
                if train:
                    _add_gradients(
                        gradients, rows, hidden, classifiers, probabilities, wanted, valid, weights
                    )
            total = loss.sum(-1) @ weights
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(loss, correct)
        return total, loss, correct

    @staticmethod
    def _by_kernels(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, weights: Tensor, train: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``forward`` with one sweep over the logits, which become their own gradients."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        loss = torch.empty_like(targets, dtype=hidden.dtype)
        correct = torch.empty_like(targets, dtype=torch.bool)
        classifiers, offsets = weight.flatten(0, 1).to(dtype), bias.flatten().to(dtype)
        targets, weights, grads = targets.contiguous(), weights.contiguous(), []
        if train:
            grads = [torch.empty_like(hidden), *map(torch.zeros_like, (weight.flatten(0, 1), bias))]
        with torch.autocast(device, enabled=False):
            for rows in _chunks(hidden, bias, dtype):
                part = hidden[rows].to(dtype)
                logits = torch.addmm(offsets, part, classifiers.t())
                sums = torch.ops.spear.cross_entropies_(
                    logits.view(-1, *bias.shape),
                    loss[rows],
                    correct[rows],
                    targets[rows],
                    weights[rows],
                    train,
                )
                if train:
                    grads[0][rows] = logits @ classifiers
                    grads[1] += logits.t() @ part
                    grads[2] += sums.sum(0)
            total = loss.sum(-1) @ weights
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(loss, correct)
        return total, loss, correct

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_total: Tensor, _grad_loss: Any, _grad_correct: Any
    ) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        grad_weight = grad_weight.view(*grad_bias.shape, -1)
        return grad_hidden * grad_total, grad_weight * grad_total, grad_bias * grad_total, None, None, None


def _add_gradients(
    gradients: list[Tensor],
    rows: slice,
    hidden: Tensor,
    classifiers: Tensor,
    probabilities: Tensor,
    wanted: Tensor,
    valid: Tensor,
    weights: Tensor,
) -> None:
    """Gradient of one chunk's weighted loss; destroys ``probabilities`` (F', N, K).

    gradients: of hidden (F, P), classifiers (N*K, P) and bias (N, K).
    """
    grad_hidden, grad_classifiers, grad_bias = gradients
    grad = probabilities.scatter_add_(-1, wanted, -torch.ones_like(wanted, dtype=probabilities.dtype))
    # Nearly always all are valid. Asking a GPU would wait for it, and there a pass over memory costs little.
    if not on_host(grad) or not bool(valid.all()):
        grad.masked_fill_(~valid.unsqueeze(-1), 0.0)
    # The frame's weight goes to the narrow side of each product: F' x P numbers instead of F' x N*K.
    scale = weights[rows].unsqueeze(-1)
    flat = grad.flatten(1).to(classifiers.dtype)
    grad_hidden[rows] = (flat @ classifiers).to(scale.dtype) * scale
    grad_classifiers += flat.t() @ (hidden[rows] * scale).to(flat.dtype)
    grad_bias += (weights[rows] @ grad.flatten(1)).view_as(grad_bias)


def _chunks(hidden: Tensor, bias: Tensor, dtype: torch.dtype = torch.float32) -> list[slice]:
    elements = CPU_CHUNK_ELEMENTS if on_host(hidden) else GPU_CHUNK_ELEMENTS * 4 // dtype.itemsize
    size = max(1, elements // bias.numel())
    return [slice(start, start + size) for start in range(0, hidden.shape[0], size)]


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

    def forward(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> HeadOutput:
        """Cross-entropy of every frame and codebook.

        Args:
          hidden: (F, P) float32; under autocast the matrix products are in its format.
          targets: (F, N) int64 in 0..K-1, or -100 where nothing is to be predicted (loss 0, never correct).
            Leave frames without any target out: they cost as much as the others.
          weights: (F,) what each frame counts in ``total``; 1 by default. They get no gradient.
        """
        if hidden.shape[-1] != self.dim or targets.shape[-1] != self.num_codebooks:
            raise ValueError(
                f"this head predicts {self.num_codebooks} codebooks from {self.dim} channels; it was given "
                f"{targets.shape[-1]} codebooks and {hidden.shape[-1]} channels: the tokens belong to "
                "another model"
            )
        if weights is None:
            weights = hidden.new_ones(hidden.shape[0])
        train = torch.is_grad_enabled()
        return HeadOutput(
            *_ChunkedCrossEntropy.apply(hidden, self.weight, self.bias, targets, weights, train)
        )

    @torch.no_grad()
    def load_reference(self, state: dict[str, Tensor], prefix: str = "") -> None:
        """Takes the weights of the reference's JointCodebookLoss (``linear2b_weight``, ``linear2_bias``)."""
        self.weight.copy_(state[prefix + "linear2b_weight"])
        self.bias.copy_(state[prefix + "linear2_bias"])


def _sample(device: torch.device, values: torch.dtype, computed: torch.dtype) -> list[Tensor]:
    """Frames of which some have no target, with different weights; few and many classes."""
    generator, found = torch.Generator().manual_seed(1), []
    wide = torch.promote_types(computed, torch.float32)
    for frames, size in ((70, 256), (3, 5)):
        head = MaskedPredictionHead(24, 3, size)
        for each in head.parameters():
            each.data = torch.randn(each.shape, generator=generator).to(values).to(wide)
        hidden = torch.randn(frames, 24, generator=generator).to(values).to(device, wide).requires_grad_()
        targets = torch.randint(size, (frames, 3), generator=generator)
        targets[::7] = -100
        weights = torch.rand(frames, generator=generator).to(device, wide)
        with torch.enable_grad(), autocast_of(device, computed):
            out = head.to(device)(hidden, targets.to(device), weights)
            out.total.backward()
        grads = [hidden.grad, *(each.grad for each in head.parameters())]
        # Which of two nearly equal guesses is best is decided by rounding; its loss is compared.
        found += [each.to(computed) for each in (out.total.detach(), out.loss.detach(), *grads)]
    return found


HEADS = Kernel(_NAME, _sample)
"""The fused kernel of prediction heads, and what it is compared on before it runs."""
