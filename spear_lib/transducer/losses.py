"""RNN-T losses with the names, arguments and semantics of k2 (Kuang et al. 2022), in plain torch.

Legend: B utterances, T frames, S labels (maximum of the batch), C classes including blank, R states kept per
frame. ``boundary`` is (B, 4) int64 with rows [0, 0, S_b, T_b]; ``symbols`` is (B, S), padding is ignored.
``rnnt_type``: "regular" (a label stays on its frame), "modified" (a label consumes its frame), "constrained"
(as modified, and the blank of the next context on the same frame is forced).
Losses are in nats; an utterance without any path (modified: more labels than frames) has the loss +inf and
no gradient. NaN in the arrays of an utterance makes its loss NaN and no other's (the training loop stops
there). Call them outside autocast; bf16/fp16 logits are accepted and computed in float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from spear_lib.transducer.band import band_score
from spear_lib.transducer.checks import check_additive, check_joint
from spear_lib.transducer.lattice import lattice_score
from spear_lib.transducer.recursions import TORCH, Recursions


# ----------------------------------------------------------------------------------------- small pieces
def _sizes(boundary: Tensor | None, batch: int, labels: int, frames: int, device) -> tuple[Tensor, Tensor]:
    """(num_labels (B,), num_frames (B,))."""
    if boundary is None:
        full = torch.ones(batch, dtype=torch.int64, device=device)
        return full * labels, full * frames
    return boundary[:, 2], boundary[:, 3]


def _delay(num_frames: Tensor, frames: int, penalty: float, dtype: torch.dtype) -> Tensor:
    """(B, frames): reward of early and punishment of late labels, mean 0 (Kang et al. 2022)."""
    middle = (num_frames.to(dtype) - 1) / 2
    return penalty * (middle[:, None] - torch.arange(frames, device=num_frames.device, dtype=dtype))


def _reduce(scores: Tensor, reduction: str) -> Tensor:
    losses = -scores
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def _score(
    px: Tensor,
    py: Tensor,
    num_labels: Tensor,
    num_frames: Tensor,
    rnnt_type: str,
    delay_penalty: float,
    occupation: bool,
    recursions: Recursions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lattice score of label (B, S, T) and blank (B, S+1, T) log-probabilities of the given type."""
    frames = py.shape[2]
    if rnnt_type == "constrained":
        px = px + py[:, 1:]
    if delay_penalty > 0:
        px = px + _delay(num_frames, frames, delay_penalty, px.dtype)[:, None]
    if rnnt_type == "regular":
        after_end = torch.arange(frames, device=px.device) >= num_frames[:, None]
        px = F.pad(px.masked_fill(after_end[:, None], -torch.inf), (0, 1), value=-torch.inf)
    regular = rnnt_type == "regular"
    return lattice_score(px, py, num_labels, num_frames, regular, occupation, recursions.lattice)


# ------------------------------------------------------------------------ normaliser of the additive joiner
class _AdditiveNormaliser(torch.autograd.Function):
    """Z (B, S+1, T) = log sum_v exp(lm[s, v] + am[t, v]) by one matrix product, never (B, S, T, C).

    In float64: in float32 the product underflows where the peaks of lm and am are disjoint by about 90 nats,
    and the loss is then wrong by hundreds (spec rnnt §2).
    """

    @staticmethod
    def forward(ctx, lm, am):
        lm_max, am_max = lm.amax(2, keepdim=True), am.amax(2, keepdim=True)
        lm_exp, am_exp = (lm - lm_max).double().exp_(), (am - am_max).double().exp_()
        total = torch.matmul(lm_exp, am_exp.transpose(1, 2)).add_(torch.finfo(torch.float64).tiny)
        ctx.save_for_backward(lm_exp, am_exp, total)
        ctx.dtypes = lm.dtype, am.dtype
        return (total.log() + lm_max + am_max.transpose(1, 2)).to(am.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        lm_exp, am_exp, total = ctx.saved_tensors
        weight = grad.double() / total
        grad_lm = torch.matmul(weight, am_exp).mul_(lm_exp)
        grad_am = torch.matmul(weight.transpose(1, 2), lm_exp).mul_(am_exp)
        return grad_lm.to(ctx.dtypes[0]), grad_am.to(ctx.dtypes[1])


def _pick(values: Tensor, symbols: Tensor) -> Tensor:
    """values (B, T, C) at each label's class -> (B, S, T)."""
    index = symbols.unsqueeze(1).expand(-1, values.shape[1], -1)
    return torch.gather(values, 2, index).transpose(1, 2)


def rnnt_loss_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    return_grad: bool = False,
    recursions: Recursions = TORCH,
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    """Loss of the additive joiner, mixed with a prediction-network-only and an encoder-only model.

    Args:
      lm: (B, S+1, C) unnormalised output of the prediction network.
      am: (B, T, C) unnormalised output of the encoder.
      symbols: (B, S) int64 labels, padding arbitrary but within 0..C-1.
      termination_symbol: id of blank.
      lm_only_scale, am_only_scale: weights of the two extra log-probabilities; their sum must be below 1.
        With am_only_scale > 0 the average prediction runs over padding and over the whole batch, as in k2.
      boundary: (B, 4) int64 rows [0, 0, S_b, T_b]; None = full length.
      rnnt_type, delay_penalty, reduction: see the module; "mean" is over utterances.
      return_grad: also return the arc occupations, ((B, S, T+1 or T), (B, S+1, T)), detached.
      recursions: what walks through the lattice; ``backend`` chooses.
    """
    check_additive(
        lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale,
        boundary, rnnt_type, delay_penalty, reduction,
    )  # fmt: skip
    batch, states, _ = lm.shape
    frames, labels, blank = am.shape[1], states - 1, termination_symbol
    num_labels, num_frames = _sizes(boundary, batch, labels, frames, am.device)
    if am.dtype in (torch.float16, torch.bfloat16):
        am = am.float()
    lm = lm.to(am.dtype)
    symbols = symbols.long()

    normaliser = _AdditiveNormaliser.apply(lm, am)
    lm_label = torch.gather(lm[:, :-1], 2, symbols.unsqueeze(2))  # (B, S, 1)
    px = lm_label + _pick(am, symbols) - normaliser[:, :-1]
    py = lm[:, :, blank, None] + am[:, None, :, blank] - normaliser
    if lm_only_scale > 0 or am_only_scale > 0:
        joint = 1.0 - lm_only_scale - am_only_scale
        px, py = joint * px, joint * py
    if lm_only_scale > 0:
        lm_total = torch.logsumexp(lm, dim=2, keepdim=True)  # (B, S+1, 1)
        px = px + lm_only_scale * (lm_label - lm_total[:, :-1])
        py = py + lm_only_scale * (lm[:, :, blank, None] - lm_total)
    if am_only_scale > 0:
        tiny = torch.finfo(am.dtype).tiny
        unigram = (torch.softmax(lm, dim=2).mean(dim=(0, 1)) + tiny).log()
        am_only = torch.log_softmax(am + unigram, dim=2)
        px = px + am_only_scale * _pick(am_only, symbols)
        py = py + am_only_scale * am_only[:, None, :, blank]
    scores, gx, gy = _score(px, py, num_labels, num_frames, rnnt_type, delay_penalty, return_grad, recursions)
    loss = _reduce(scores, reduction)
    return (loss, (gx, gy)) if return_grad else loss


def rnnt_loss_simple(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    return_grad: bool = False,
    recursions: Recursions = TORCH,
) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
    """Loss of the additive joiner lm + am: ``rnnt_loss_smoothed`` with both scales 0."""
    return rnnt_loss_smoothed(
        lm,
        am,
        symbols,
        termination_symbol,
        0.0,
        0.0,
        boundary,
        rnnt_type,
        delay_penalty,
        reduction,
        return_grad,
        recursions,
    )


# ---------------------------------------------------------------------------------- losses from logits
class _BlankAndLabel(torch.autograd.Function):
    """log_softmax at two classes per position. logits (..., C), labels (...) -> blank (...), label (...).

    The gradient has two entries and a multiple of the softmax per position, so it is written in one pass
    from the kept log-probabilities; the logits themselves are not kept.
    """

    @staticmethod
    def forward(ctx, logits, labels, blank):
        half = logits.dtype in (torch.float16, torch.bfloat16)
        log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32 if half else None)
        ctx.save_for_backward(log_probs, labels)
        ctx.blank, ctx.dtype = blank, logits.dtype
        label = torch.gather(log_probs, -1, labels.unsqueeze(-1)).squeeze(-1)
        return log_probs[..., blank].clone(), label

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_blank, grad_label):
        log_probs, labels = ctx.saved_tensors
        grad = torch.exp(log_probs).mul_(-(grad_blank + grad_label).unsqueeze(-1))
        grad[..., ctx.blank] += grad_blank
        grad.scatter_add_(-1, labels.unsqueeze(-1), grad_label.unsqueeze(-1))
        return grad.to(ctx.dtype), None, None


def rnnt_loss(
    logits: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    recursions: Recursions = TORCH,
) -> Tensor:
    """Unpruned loss of any joiner.

    Args:
      logits: (B, T, S+1, C) unnormalised joiner output.
      symbols, termination_symbol, boundary, rnnt_type, delay_penalty, reduction: as ``rnnt_loss_smoothed``.
    """
    check_joint(
        logits, symbols, termination_symbol, None, boundary, rnnt_type, delay_penalty, reduction
    )  # fmt: skip
    batch, frames, states, _ = logits.shape
    num_labels, num_frames = _sizes(boundary, batch, states - 1, frames, logits.device)
    # The last state has no label: any class will do there, its column is cut off below.
    labels = F.pad(symbols.long(), (0, 1))[:, None].expand(batch, frames, states)
    py, px = _BlankAndLabel.apply(logits, labels, termination_symbol)
    px, py = px[:, :, :-1].transpose(1, 2), py.transpose(1, 2)
    scores, _, _ = _score(px, py, num_labels, num_frames, rnnt_type, delay_penalty, False, recursions)
    return _reduce(scores, reduction)


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str = "mean",
    recursions: Recursions = TORCH,
) -> Tensor:
    """Loss over the states kept by ``get_rnnt_prune_ranges``.

    Args:
      logits: (B, T, R, C) unnormalised joiner output at the kept states.
      ranges: (B, T, R) int64, rows s_t .. s_t + R - 1.
      symbols, termination_symbol, boundary, rnnt_type, delay_penalty, reduction: as ``rnnt_loss_smoothed``.
    """
    check_joint(
        logits, symbols, termination_symbol, ranges, boundary, rnnt_type, delay_penalty, reduction
    )  # fmt: skip
    batch, frames, size, _ = logits.shape
    num_labels, num_frames = _sizes(boundary, batch, symbols.shape[1], frames, logits.device)
    padded = F.pad(symbols.long(), (0, 1))
    label_at = torch.gather(padded, 1, ranges.reshape(batch, -1)).reshape(batch, frames, size)
    py, px = _BlankAndLabel.apply(logits, label_at, termination_symbol)
    if rnnt_type == "constrained":
        px = px + F.pad(py[:, :, 1:], (0, 1), value=-torch.inf)
    if delay_penalty > 0:
        px = px + _delay(num_frames, frames, delay_penalty, px.dtype)[:, :, None]
    forbidden = ranges >= num_labels[:, None, None]
    if rnnt_type == "regular":
        forbidden = forbidden | (torch.arange(frames, device=px.device) >= num_frames[:, None])[..., None]
    px = px.masked_fill(forbidden, -torch.inf)
    regular = rnnt_type == "regular"
    start = ranges[:, :, 0]
    scores = band_score(px, py, start, num_labels, num_frames, regular, recursions.band)
    return _reduce(scores, reduction)
