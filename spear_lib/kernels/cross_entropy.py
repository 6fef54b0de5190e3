"""Cross-entropies of many classifiers: losses, hits and gradients in one sweep over the logits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from spear_lib.kernels.step_operations import LOSS_ROWS

_ROWS = 8  # at once, each with all classes


@triton.jit(do_not_specialize=["frames"])
def _cross_entropies(
    logits, loss, correct, targets, weights, sums, frames, classifiers, classes,
    TRAIN: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Program (part, n): one classifier for the frames of one part."""
    part, n = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, CLASSES)
    exists = column < classes
    of_bias = tl.zeros([CLASSES], tl.float32)
    for step in range(STEPS):
        frame = (part * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = frame < frames
        place = (frame * classifiers + n)[:, None] * classes + column[None, :]
        here = inside[:, None] & exists[None, :]
        value = tl.load(logits + place, mask=here, other=-float("inf")).to(tl.float32)
        value = tl.where(inside[:, None], value, 0.0)
        target = tl.load(targets + frame * classifiers + n, mask=inside, other=-1)
        valid = target >= 0
        top = tl.max(value, axis=1)
        # The first of the highest.
        guess = tl.min(tl.where(value == top[:, None], column[None, :], CLASSES), axis=1)
        exponential = tl.exp(value - top[:, None])
        total = tl.sum(exponential, axis=1)
        hit = column[None, :] == target[:, None]
        wanted = tl.sum(tl.where(hit, value, 0.0), axis=1)
        nats = tl.where(valid, top + tl.log(total) - wanted, 0.0)
        at = frame * classifiers + n
        tl.store(loss + at, nats, mask=inside)
        tl.store(correct + at, ((guess == target) & valid).to(correct.dtype.element_ty), mask=inside)
        if TRAIN:
            weight = tl.where(valid, tl.load(weights + frame, mask=inside, other=0.0), 0.0)
            change = (exponential / total[:, None] - tl.where(hit, 1.0, 0.0)) * weight[:, None]
            tl.store(logits + place, change.to(logits.dtype.element_ty), mask=here)
            of_bias += tl.sum(change, axis=0)
    if TRAIN:
        tl.store(sums + (part * classifiers + n) * classes + column, of_bias, mask=exists)


def cross_entropies_(
    logits: Tensor, loss: Tensor, correct: Tensor, targets: Tensor, weights: Tensor, train: bool
) -> Tensor:
    """See ``step_operations``."""
    frames, classifiers, classes = logits.shape
    parts = triton.cdiv(frames, LOSS_ROWS)
    sums = logits.new_empty((parts, classifiers, classes) if train else 0, dtype=torch.float32)
    if frames:
        _cross_entropies[(parts, classifiers)](
            logits, loss, correct.view(torch.uint8), targets, weights, sums, frames, classifiers, classes,
            TRAIN=train, STEPS=LOSS_ROWS // _ROWS, ROWS=_ROWS, CLASSES=triton.next_power_of_2(classes),
        )  # fmt: skip
    return sums
