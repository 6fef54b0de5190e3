"""The fused operations of encoders: their schemas, and the shapes of their results (ours).

Inputs are contiguous unless it says otherwise; results are.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from spear_lib.kernels.library import like, operation


# ------------------------------------------------------------------------------- Swoosh, for any x (..., C)
@operation("swoosh(Tensor x, Tensor? multiplier, str kind, ScalarType dtype) -> Tensor", "swoosh")
def _swoosh(x: Tensor, multiplier: Tensor | None, kind: str, dtype: torch.dtype) -> Tensor:
    """swoosh(x) times multiplier (B, 1, C), whose last axis is contiguous, or None; rounded once, to
    ``dtype``."""
    return like(x, dtype)


@operation("swoosh_gradient(Tensor x, Tensor grad, Tensor? multiplier, str kind) -> Tensor", "swoosh")
def _swoosh_gradient(x: Tensor, grad: Tensor, multiplier: Tensor | None, kind: str) -> Tensor:
    """grad (as x) times the derivative, in the format of x."""
    return like(x)


@operation("swoosh_both(Tensor x, Tensor grad, Tensor? multiplier, str kind) -> (Tensor, Tensor)", "swoosh")
def _swoosh_both(x: Tensor, grad: Tensor, multiplier: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    """The gradient in the format of x, and the value in the format of grad, in one sweep."""
    return like(x), like(grad)


# ------------------------------------------------- Balancer, for rows x (n, C) whose last axis is contiguous
MOMENT_GROUPS = 128
"""Groups of rows at most, whose sums are added up afterwards: always in the same order."""
MOMENT_ROWS = 64


@operation("channel_moments(Tensor x) -> Tensor", "balancer")
def _channel_moments(x: Tensor) -> Tensor:
    """(P, 2, C) float32: sums of x and of x^2 over P groups of rows."""
    groups = min(MOMENT_GROUPS, max(1, -(-x.shape[0] // MOMENT_ROWS)))
    return x.new_empty((groups, 2, x.shape[1]), dtype=torch.float32)


@operation("balancer_coefficients(Tensor sums, int count, float[] limits) -> Tensor", "balancer")
def _balancer_coefficients(sums: Tensor, count: int, limits: list[float]) -> Tensor:
    """(2, C) float32, offset and slope, of sums (P, 2, C) over ``count`` rows in all; limits are min_mean,
    max_mean, min_rms, max_rms and grad_scale of a Balancer."""
    return sums.new_empty(sums.shape[1:])


@operation("balancer_gradient(Tensor x, Tensor grad, Tensor coefficients) -> Tensor", "balancer")
def _balancer_gradient(x: Tensor, grad: Tensor, coefficients: Tensor) -> Tensor:
    """grad + |grad| (offset + slope x), (n, C) in the format of grad."""
    return like(grad)


# --------------------------------- attention weights; B utterances, H heads, T frames, D and P wide heads
@operation(
    "attention_weights(Tensor query, Tensor key, Tensor position_query, Tensor positions, Tensor? mask, "
    "bool use_position, float? limit) -> (Tensor, Tensor)",
    "attention",
)
def _attention_weights(
    query: Tensor,
    key: Tensor,
    position_query: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    use_position: bool,
    limit: float | None,
) -> tuple[Tensor, Tensor]:
    """softmax(q k' + positions' term + mask), (B, H, T, T); with a limit also (B, H, T, T) int8, -1 or 1
    where a score before the mask lies beyond it, else empty.

    query, key (B, H, T, D), position_query (B, H, T, P), positions (H, 2 T - 1, P), of the offsets source
    minus target: the last axis contiguous. mask: (B or 1, 1, T or 1, T).
    """
    weights = query.new_empty((*query.shape[:3], query.shape[2]))
    return weights, query.new_empty((0,) if limit is None else weights.shape, dtype=torch.int8)


@register_flop_formula(torch.ops.spear.attention_weights)
def _attention_weights_flops(
    query: torch.Size, key: torch.Size, position_query: torch.Size, *others: Any, out_shape: Any = None
) -> int:
    """Scores are computed twice: for the softmax's sum, and for what is written."""
    batch, heads, frames, dim = query
    return 2 * 2 * batch * heads * frames**2 * (dim + position_query[3])


@operation(
    "attention_scores_gradient(Tensor weights, Tensor grad, Tensor grad_again, Tensor grad_first, "
    "Tensor positions, Tensor signs, float penalty, bool use_position) -> (Tensor, Tensor)",
    "attention",
)
def _attention_scores_gradient(
    weights: Tensor,
    grad: Tensor,
    grad_again: Tensor,
    grad_first: Tensor,
    positions: Tensor,
    signs: Tensor,
    penalty: float,
    use_position: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the scores (B, H, T, T) and of position_query (B, T, H, P).

    grad, grad_again: of the weights (B, H, T, T), from two consumers; grad_first (B, T, T): of the first head
    once more.
    """
    batch, heads, frames, _ = weights.shape
    return like(weights), weights.new_empty((batch, frames, heads, positions.shape[2]))


@operation("attention_positions_gradient(Tensor grad_scores, Tensor position_query) -> Tensor", "attention")
def _attention_positions_gradient(grad_scores: Tensor, position_query: Tensor) -> Tensor:
    """(B, 2 T - 1, H, P) float32: the gradient of ``positions``, of each utterance."""
    batch, heads, frames, width = position_query.shape
    return grad_scores.new_empty((batch, 2 * frames - 1, heads, width), dtype=torch.float32)


@operation("head_average(Tensor weights, Tensor values, bool transposed) -> Tensor", "averaging")
def _head_average(weights: Tensor, values: Tensor, transposed: bool) -> Tensor:
    """(B, T, H, D): weights (B, H, T, T) of each head, or those transposed, times values (B, H, T, D), whose
    last axis is contiguous."""
    return values.new_empty((values.shape[0], values.shape[2], values.shape[1], values.shape[3]))


@operation("head_products(Tensor x, Tensor y) -> Tensor", "averaging")
def _head_products(x: Tensor, y: Tensor) -> Tensor:
    """(B, H, T, T): products of the frames of x with those of y, (B, H, T, D), last axis contiguous."""
    return x.new_empty((*x.shape[:3], x.shape[2]))


@register_flop_formula([torch.ops.spear.head_average, torch.ops.spear.head_products])
def _head_flops(x: torch.Size, y: torch.Size, *others: Any, out_shape: Any = None) -> int:
    return 2 * y.numel() * y[2]


# ------------------------------------------------------- gated linear unit, for rows (n, 2 C): values, gates
@operation("gated(Tensor projected, Tensor? valid) -> Tensor", "gating")
def _gated(projected: Tensor, valid: Tensor | None) -> Tensor:
    """(n, C): values x sigmoid(gates), 0 where valid (n,) bool is False."""
    return projected.new_empty((projected.shape[0], projected.shape[1] // 2))


@operation(
    "gated_gradient(Tensor projected, Tensor? valid, Tensor grad, Tensor? coefficients) -> Tensor", "gating"
)
def _gated_gradient(
    projected: Tensor, valid: Tensor | None, grad: Tensor, coefficients: Tensor | None
) -> Tensor:
    """(n, 2 C); coefficients (2, C) float32: of a Balancer on the gates."""
    return like(projected)


@operation("tanh_gated(Tensor values, Tensor gates) -> Tensor", "gating")
def _tanh_gated(values: Tensor, gates: Tensor) -> Tensor:
    """values x tanh(gates), for rows (n, C) whose last axis is contiguous."""
    return like(values)


@operation(
    "product_gradients(Tensor values, Tensor gates, Tensor grad, bool tanh) -> (Tensor, Tensor)", "gating"
)
def _product_gradients(values: Tensor, gates: Tensor, grad: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """Gradients of values x gates, or of ``tanh_gated``; rows as there, grad contiguous."""
    return like(values), like(gates)


# ---------------------------------------- depthwise convolution with zero padding K // 2, for x (B, T, C)
DEPTHWISE_PARTS = 64


@operation("depthwise(Tensor x, Tensor weight, Tensor bias) -> Tensor", "depthwise")
def _depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """weight (C, 1, K), bias (C,) -> (B, T, C) in the format of x."""
    return like(x)


@operation("depthwise_gradient(Tensor grad, Tensor weight) -> Tensor", "depthwise")
def _depthwise_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of x."""
    return like(grad)


@operation("depthwise_weights_gradient(Tensor x, Tensor grad, int kernel) -> Tensor", "depthwise")
def _depthwise_weights_gradient(x: Tensor, grad: Tensor, kernel: int) -> Tensor:
    """(P, C K + C) float32: the gradients of weight and of bias over P parts of the frames."""
    parts = min(DEPTHWISE_PARTS, -(-x.shape[0] * x.shape[1] // 512))
    return x.new_empty((parts, x.shape[2] * (kernel + 1)), dtype=torch.float32)


@register_flop_formula([torch.ops.spear.depthwise, torch.ops.spear.depthwise_gradient])
def _depthwise_flops(x: torch.Size, weight: torch.Size, *others: Any, out_shape: Any = None) -> int:
    return 2 * x.numel() * weight[-1]


@register_flop_formula(torch.ops.spear.depthwise_weights_gradient)
def _depthwise_weights_flops(x: torch.Size, grad: torch.Size, kernel: int, out_shape: Any = None) -> int:
    return 2 * x.numel() * kernel


# --------------------------------------------------------------- residuals, bypass, BiasNorm, for x (B, T, C)
SUM_GROUPS = 16
"""Parts of an utterance at most, over which sums are made first."""
NORM_GROUPS = 256


@operation(
    "residual(Tensor x, Tensor branch, Tensor? mask, ScalarType? dtype) -> (Tensor, Tensor)", "residual"
)
def _residual(
    x: Tensor, branch: Tensor, mask: Tensor | None, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """x + branch mask in the format of x, and once more in ``dtype`` (None: empty); mask (B,) float32, with
    any stride."""
    return like(x), like(x, dtype) if dtype else x.new_empty(0)


@operation(
    "residual_gradient(Tensor grad, Tensor? rounded, Tensor? mask, ScalarType dtype) -> (Tensor, Tensor)",
    "residual",
)
def _residual_gradient(
    grad: Tensor, rounded: Tensor | None, mask: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Gradients of x and, in ``dtype``, of the branch, from those of both results."""
    return like(grad), like(grad, dtype)


@operation(
    "bypass(Tensor x, Tensor h, Tensor scale, Tensor? mask, ScalarType? dtype) -> (Tensor, Tensor)",
    "residual",
)
def _bypass(
    x: Tensor, h: Tensor, scale: Tensor, mask: Tensor | None, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """x + (h - x) scale mask in the format of x, and once more in ``dtype`` (None: empty); scale (1 or B, C)
    and mask (B,) float32, with any stride."""
    return like(x), like(x, dtype) if dtype else x.new_empty(0)


@operation(
    "bypass_gradient(Tensor x, Tensor h, Tensor scale, Tensor? mask, Tensor grad, Tensor? rounded) "
    "-> (Tensor, Tensor, Tensor)",
    "residual",
)
def _bypass_gradient(
    x: Tensor, h: Tensor, scale: Tensor, mask: Tensor | None, grad: Tensor, rounded: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """From those of both results the gradients of x, of h, and of scale as sums (B, P, C) float32 over P
    parts of every utterance."""
    parts = min(SUM_GROUPS, -(-x.shape[1] // 32))
    return like(x), like(h), x.new_empty((x.shape[0], parts, x.shape[2]), dtype=torch.float32)


MOST_GRADIENTS = 5


@operation("sum_of_gradients(Tensor[] grads, ScalarType dtype) -> Tensor", "residual")
def _sum_of_gradients(grads: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The sum of two to five tensors of one shape, whatever their formats, in ``dtype``."""
    return like(grads[0], dtype)


@operation("bias_norm(Tensor x, Tensor bias, Tensor log_scale) -> Tensor", "residual")
def _bias_norm(x: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
    """BiasNorm of rows x (n, C), float32."""
    return like(x, torch.float32)


@operation(
    "bias_norm_gradient(Tensor x, Tensor bias, Tensor log_scale, Tensor grad) -> (Tensor, Tensor)", "residual"
)
def _bias_norm_gradient(x: Tensor, bias: Tensor, log_scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of x, and (P, C + 1) float32: those of bias and log_scale over P groups of rows."""
    groups = min(NORM_GROUPS, -(-x.shape[0] // 4))
    return like(x), x.new_empty((groups, x.shape[1] + 1), dtype=torch.float32)


# --------------------------------- Whiten, for rows x (n, G d) of G groups whose last axis is contiguous
WHITENING_ROWS, WHITENING_BLOCK = 64, 64
"""Rows and channels at once."""
_WHITENING_PARTS, _WHITENING_PROGRAMS = 64, 512


def whitening_parts(rows: int, groups: int, dim: int) -> int:
    """Parts of the rows whose products are added up first: enough to keep a device busy."""
    blocks = groups * (-(-dim // WHITENING_BLOCK)) ** 2
    return max(1, min(_WHITENING_PARTS, 256 // blocks, -(-rows // WHITENING_ROWS)))


def whitening_programs(rows: int, groups: int) -> int:
    """Programs for the rows of a group, each with two sums to leave behind."""
    return max(1, min(_WHITENING_PROGRAMS // groups, -(-rows // WHITENING_ROWS)))


@operation("whitening_products(Tensor x, int groups, bool precise) -> (Tensor, Tensor)", "whitening")
def _whitening_products(x: Tensor, groups: int, precise: bool) -> tuple[Tensor, Tensor]:
    """Products of deviations from some centre (S, G, d, d) float32, of which the upper half is written, and
    sums of deviations over S parts of the rows, with the centre behind (S + 1, G d) float32; ``precise``:
    float32 throughout, else as precise as half formats."""
    dim = x.shape[1] // groups
    parts = whitening_parts(x.shape[0], groups, dim)
    products = x.new_empty((parts, groups, dim, dim), dtype=torch.float32)
    return products, x.new_empty((parts + 1, x.shape[1]), dtype=torch.float32)


@register_flop_formula(torch.ops.spear.whitening_products)
def _whitening_products_flops(x: torch.Size, groups: int, *others: Any, out_shape: Any = None) -> int:
    return x[0] * x[1] * (x[1] // groups)  # half of a product


@operation(
    "whitening_statistics(Tensor products, Tensor sums, int rows) -> (Tensor, Tensor, Tensor)", "whitening"
)
def _whitening_statistics(products: Tensor, sums: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Covariances (G, d, d), unnormalised; means (G d,); (P, 2): sums over blocks of the covariances of the
    squares and of the diagonal."""
    _, groups, dim, _ = products.shape
    sides = -(-dim // WHITENING_BLOCK)
    squares = products.new_empty((groups * sides * sides, 2))
    return products.new_empty((groups, dim, dim)), products.new_empty(groups * dim), squares


@operation(
    "whitening_change(Tensor x, Tensor grad, Tensor covariance, Tensor mean, Tensor squares, float limit, "
    "bool precise) -> (Tensor, Tensor)",
    "whitening",
)
def _whitening_change(
    x: Tensor, grad: Tensor, covariance: Tensor, mean: Tensor, squares: Tensor, limit: float, precise: bool
) -> tuple[Tensor, Tensor]:
    """The gradient of the metric in the format of x, up to a factor, and (P, 2): sums of its squares and of
    those of grad, (n, G d) contiguous. Not written where the metric is below the limit."""
    groups = covariance.shape[0]
    norms = x.new_empty((groups * whitening_programs(x.shape[0], groups), 2), dtype=torch.float32)
    return like(x), norms


@register_flop_formula(torch.ops.spear.whitening_change)
def _whitening_change_flops(
    x: torch.Size, grad: torch.Size, covariance: torch.Size, *others: Any, out_shape: Any = None
) -> int:
    return 2 * x[0] * x[1] * covariance[1]


@operation(
    "whitening_gradient(Tensor grad, Tensor change, Tensor norms, Tensor squares, float limit, "
    "float grad_scale) -> Tensor",
    "whitening",
)
def _whitening_gradient(
    grad: Tensor, change: Tensor, norms: Tensor, squares: Tensor, limit: float, grad_scale: float
) -> Tensor:
    """grad, and where the metric is at least the limit the change so scaled that its norm is ``grad_scale``
    times that of grad; in the format of grad."""
    return like(grad)
