"""Attention weights shared by three consumers, relative positions, self- and non-linear attention.

Shapes: B utterances, T frames, D channels, H heads, P width of the positional encoding. Offsets are source
minus target frame.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spear_lib.encoders.step_context import Schedule, StepContext
from spear_lib.encoders.zipformer.modules import scaled_linear
from spear_lib.encoders.zipformer.regularisers import PENALTY_LIMIT, Balancer, score_penalty
from spear_lib.encoders.zipformer.whitening import Whiten
from spear_lib.kernels import fused
from spear_lib.runtime.devices import on_host, recording

_WIDEST_HEAD = 128  # of queries, that the kernels hold at once
_PENALTY_PROBABILITY = 0.1
_PENALTY = 1.0e-4


def _relative_view(buffer: Tensor) -> Tensor:
    """View (B, H, T, T) of a contiguous buffer (B, H, T, 2 T - 1): element (i, j) is column T - 1 - i + j."""
    batch, heads, num_frames, width = buffer.shape
    strides = (heads * num_frames * width, num_frames * width, width - 1, 1)
    offset = buffer.storage_offset() + num_frames - 1
    return buffer.as_strided((batch, heads, num_frames, num_frames), strides, offset)


def _chunks(query: Tensor) -> list[slice]:
    """Parts of the batch to work on: all of it, or on a CPU single utterances, whose scores fit its cache."""
    batch = query.shape[0]
    if not on_host(query):
        return [slice(0, batch)]
    return [slice(index, index + 1) for index in range(batch)]


def _wide(x: Tensor) -> torch.dtype:
    """The number format of what must not be rounded to half precision."""
    return torch.promote_types(x.dtype, torch.float32)


def _adjacent(x: Tensor) -> Tensor:
    """x with its last axis side by side in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


class _FusedWeightsFunction(torch.autograd.Function):
    """``_AttentionWeightsFunction`` by kernels that never write a score."""

    @staticmethod
    def forward(ctx, query, key, position_query, position_key, mask, use_position, penalty_size):
        query, key, position_query = map(_adjacent, (query, key, position_query))
        positions = _adjacent(position_key.to(query.dtype))
        limit = PENALTY_LIMIT if penalty_size else None
        weights, signs = torch.ops.spear.attention_weights(
            query, key, position_query, positions, mask, use_position, limit
        )
        ctx.use_position, ctx.penalty_size, ctx.position_dtype = (
            use_position,
            penalty_size,
            position_key.dtype,
        )
        ctx.save_for_backward(query, key, position_query, positions, weights, signs)
        return weights, weights.view_as(weights), weights[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_weights, grad_again, grad_first):
        query, key, position_query, positions, weights, signs = ctx.saved_tensors
        grad, grad_position_query = torch.ops.spear.attention_scores_gradient(
            weights,
            grad_weights.contiguous(),
            grad_again.contiguous(),
            grad_first.contiguous(),
            positions,
            signs,
            float(ctx.penalty_size),
            ctx.use_position,
        )
        grad_query = torch.ops.spear.head_average(grad, key, False).transpose(1, 2)
        grad_key = torch.ops.spear.head_average(grad, query, True).transpose(1, 2)
        if ctx.use_position:
            by_utterance = torch.ops.spear.attention_positions_gradient(grad, position_query)
            grad_position_key = by_utterance.sum(dim=0, dtype=ctx.position_dtype).transpose(0, 1)
        else:
            grad_position_key = torch.zeros_like(positions, dtype=ctx.position_dtype)
        grad_position_query = grad_position_query.transpose(1, 2)
        return grad_query, grad_key, grad_position_query, grad_position_key, None, None, None


class _AttentionWeightsFunction(torch.autograd.Function):
    """softmax(q k' + relative positional term) with only the weights kept for the backward pass."""

    @staticmethod
    def forward(ctx, query, key, position_query, position_key, mask, use_position, penalty_size):
        batch, heads, num_frames, _ = query.shape
        weights = query.new_empty(batch, heads, num_frames, num_frames)
        penalty = torch.empty_like(weights) if penalty_size else None
        positions = position_key.to(query.dtype).transpose(1, 2)
        chunks = _chunks(query)
        buffer = None
        with torch.autocast(query.device.type, enabled=False):
            for part in chunks:
                scores = torch.matmul(query[part], key[part].transpose(2, 3))
                if use_position:
                    if buffer is None:
                        buffer = query.new_empty(*scores.shape[:3], 2 * num_frames - 1)
                    torch.matmul(position_query[part], positions, out=buffer)
                    scores.add_(_relative_view(buffer))
                if penalty is not None:
                    penalty[part] = score_penalty(scores, penalty=penalty_size)
                if mask is not None:
                    # Added rather than filled in: exp gives exactly 0 either way, and this is one cheap pass.
                    scores.add_(mask if mask.shape[0] == 1 else mask[part])
                if scores.dtype == _wide(scores):
                    torch.softmax(scores, dim=-1, out=weights[part])
                else:
                    weights[part] = torch.softmax(scores, dim=-1, dtype=_wide(scores))
        ctx.use_position = use_position
        ctx.save_for_backward(query, key, position_query, position_key, weights, penalty)
        # The first head once more, so that its own consumer does not need a gradient of all heads.
        return weights, weights[:, 0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_weights, grad_first):
        query, key, position_query, position_key, weights, penalty = ctx.saved_tensors
        num_frames = query.shape[2]
        grad_query, grad_key = torch.empty_like(query), torch.empty_like(key)
        # A zero, not None, without positions: every parameter gets a gradient in every step, as DDP needs.
        grad_position_query = torch.zeros_like(position_query)
        wide = _wide(query)
        grad_position_key = torch.zeros_like(position_key, dtype=wide)
        positions = position_key.to(query.dtype)
        buffer = None
        for part in _chunks(query):
            grad = grad_weights[part].to(wide, copy=True)
            grad[:, 0] += grad_first[part]
            grad = torch.ops.aten._softmax_backward_data(grad, weights[part].to(wide), -1, wide)
            if penalty is not None:
                grad.add_(penalty[part])
            grad = grad.to(query.dtype)
            grad_query[part] = torch.matmul(grad, key[part])
            grad_key[part] = torch.matmul(grad.transpose(2, 3), query[part])
            if not ctx.use_position:
                continue
            if buffer is None:  # what lies outside the view stays zero
                buffer = grad.new_zeros(*grad.shape[:3], 2 * num_frames - 1)
            _relative_view(buffer).copy_(grad)
            # Both transposed: few rows and many columns are the shape that matrix products do fast.
            product = torch.matmul(positions.transpose(1, 2), buffer.transpose(2, 3))
            grad_position_query[part] = product.transpose(2, 3)
            product = torch.matmul(position_query[part].transpose(2, 3), buffer)
            grad_position_key += product.sum(dim=0, dtype=wide).transpose(1, 2)
        grad_position_key = grad_position_key.to(position_key.dtype)
        return grad_query, grad_key, grad_position_query, grad_position_key, None, None, None


def attention_weights(
    query: Tensor,
    key: Tensor,
    position_query: Tensor,
    position_key: Tensor,
    mask: Tensor | None = None,
    use_position: bool = True,
    penalty: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """softmax(q k' + relative positional term + mask), (B, H, T, T), once for each of two consumers, and its
    first head, (B, T, T).

    Args:
      query, key: (B, H, T, D).
      position_query: (B, H, T, P).
      position_key: (H, 2 T - 1, P), of the offsets source minus target from -(T - 1) on.
      mask: added, broadcastable to (B, H, T, T).
      penalty: of ``score_penalty``, added to the scores' gradients (0: none).
    """
    fits = query.numel() > 0 and query.shape[3] <= _WIDEST_HEAD and (mask is None or mask.shape[1] == 1)
    arguments = query, key, position_query, position_key, mask, use_position, penalty
    if fits and fused("attention", query):
        return _FusedWeightsFunction.apply(*arguments)
    weights, first = _AttentionWeightsFunction.apply(*arguments)
    return weights, weights, first


def _recorded_weights(
    query: Tensor, key: Tensor, position_query: Tensor, position_key: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``attention_weights`` computes, without buffers and views of memory, for a graph."""
    batch, heads, num_frames, _ = query.shape
    by_offset = torch.matmul(position_query, position_key.transpose(1, 2))  # (B, H, T, 2 T - 1)
    # With one more column a row is 2 T long: read in rows of 2 T - 1, each begins one offset earlier.
    rows = F.pad(by_offset, (0, 1)).flatten(2)[..., num_frames - 1 : num_frames * (2 * num_frames) - 1]
    relative = rows.reshape(batch, heads, num_frames, 2 * num_frames - 1)[..., :num_frames]
    scores = torch.matmul(query, key.transpose(2, 3)) + relative
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    return weights, weights, weights[:, 0]


class RelPositionMultiheadAttentionWeights(nn.Module):
    """Attention weights of one layer (Zipformer)."""

    def __init__(
        self,
        context: StepContext,
        dim: int,
        pos_dim: int,
        num_heads: int,
        query_head_dim: int,
        pos_head_dim: int,
        balancer: bool,
        whiten: bool,
        limit_gradients: bool,
        stochastic: bool,
    ):
        super().__init__()
        self.context = context
        self.num_heads = num_heads
        self.query_head_dim = query_head_dim
        self.pos_head_dim = pos_head_dim
        self.limit_gradients = limit_gradients
        self.stochastic = stochastic
        outputs = num_heads * (2 * query_head_dim + pos_head_dim)
        self.in_proj = scaled_linear(dim, outputs, query_head_dim**-0.25)
        self.linear_pos = scaled_linear(pos_dim, num_heads * pos_head_dim, 0.05, bias=False)
        self.balance_keys = Balancer(context, -1, 0.4, 0.6, 0.0, 100.0, prob=0.025, enabled=balancer)
        limit = Schedule((0, 3.0), (20000, 6.0), default=3.0)
        self.whiten_keys = Whiten(context, limit, 0.025, num_groups=num_heads, enabled=whiten)
        self.pos_emb_skip_rate = Schedule((0, 0.5), (4000, 0.0))
        self.skip_coin = context.new_coin()
        self.penalty_coin = context.new_coin()

    def forward(self, x: Tensor, table: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of all heads (B, H, T, T), for each of two consumers, and of the first head (B, T, T); rows
        are targets.

        Args:
          x: (B, T, D).
          table: positional encodings (2 T - 1, P).
          mask: added to the scores, broadcastable to (B, H, T, T); MASKED_SCORE = source not seen.
        """
        batch, num_frames, _ = x.shape
        heads = self.num_heads
        projected = self.in_proj(x)
        width = heads * self.query_head_dim
        query, key, position_query = projected.split([width, width, heads * self.pos_head_dim], dim=-1)
        key = self.whiten_keys(self.balance_keys(key))
        # The table is float32, whatever an encoder was cast to.
        table = table.to(self.linear_pos.weight.dtype)
        position_key = self.linear_pos(table).view(-1, heads, self.pos_head_dim).transpose(0, 1)
        use_position, penalty = True, 0.0
        if self.training and self.stochastic:
            skip_rate = self.pos_emb_skip_rate(self.context.batch_count)
            use_position = self.context.coin(self.skip_coin) >= skip_rate
        penalise = self.training and self.limit_gradients and projected.requires_grad
        if penalise and self.context.coin(self.penalty_coin) < _PENALTY_PROBABILITY:
            penalty = _PENALTY * self.context.gradient_scale
        query = query.reshape(batch, num_frames, heads, -1).transpose(1, 2)
        key = key.reshape(batch, num_frames, heads, -1).transpose(1, 2)
        position_query = position_query.reshape(batch, num_frames, heads, -1).transpose(1, 2)
        if mask is not None and not fused("attention", query):
            mask = mask.to(query.dtype)
        if recording():
            return _recorded_weights(query, key, position_query, position_key, mask)
        return attention_weights(query, key, position_query, position_key, mask, use_position, penalty)


def constant_attention(weights: Tensor) -> Tensor:
    """Attention weights (..., T, T) made equal over the frames that each target sees."""
    seen = (weights > 0.0).to(weights.dtype)
    return seen / seen.sum(dim=-1, keepdim=True)


class _AverageFunction(torch.autograd.Function):
    """weights @ values, transposed: few rows and many columns are the shape that matrix products do fast."""

    @staticmethod
    def forward(ctx, weights, values):
        ctx.save_for_backward(weights, values)
        return torch.matmul(values.transpose(2, 3), weights.transpose(2, 3)).transpose(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weights, values = ctx.saved_tensors
        grad_weights = torch.matmul(grad, values.to(grad.dtype).transpose(2, 3))
        grad_values = torch.matmul(grad.transpose(2, 3), weights.to(grad.dtype)).transpose(2, 3)
        return grad_weights.to(weights.dtype), grad_values.to(values.dtype)


class _FusedAverageFunction(torch.autograd.Function):
    """weights @ values by kernels that read and write rows of frames, all heads side by side."""

    @staticmethod
    def forward(ctx, weights, values):
        weights, values = weights.contiguous(), _adjacent(values)
        ctx.save_for_backward(weights, values)
        return torch.ops.spear.head_average(weights, values, False).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (weights, values), grad = ctx.saved_tensors, _adjacent(grad)
        grad_values = torch.ops.spear.head_average(weights, grad, True).transpose(1, 2)
        return torch.ops.spear.head_products(grad, values), grad_values


def average(weights: Tensor, values: Tensor) -> Tensor:
    """weights (B, H, T, T) @ values (B, H, T, D)."""
    alike = weights.dtype == values.dtype and values.numel() > 0 and values.shape[3] <= _WIDEST_HEAD
    function = _FusedAverageFunction if alike and fused("attention", values) else _AverageFunction
    return function.apply(weights, values)


class SelfAttention(nn.Module):
    """Values averaged with given attention weights (Zipformer)."""

    def __init__(self, context: StepContext, dim: int, num_heads: int, value_head_dim: int, whiten: bool):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = nn.Linear(dim, num_heads * value_head_dim)
        self.out_proj = scaled_linear(num_heads * value_head_dim, dim, 0.05)
        limit = Schedule((0, 7.5), (20000, 22.5), default=7.5)
        self.whiten = Whiten(context, limit, 0.01, enabled=whiten)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x (B, T, D), weights (B, H, T, T) -> (B, T, D)."""
        batch, num_frames, _ = x.shape
        values = self.in_proj(x).view(batch, num_frames, self.num_heads, -1).transpose(1, 2)
        averaged = average(weights, values).transpose(1, 2).reshape(batch, num_frames, -1)
        return self.whiten(self.out_proj(averaged))


class _ProductFunction(torch.autograd.Function):
    """values x gates or values x tanh(gates), whose two gradients are one kernel."""

    @staticmethod
    def forward(ctx, values, gates, tanh):
        rows = [_adjacent(each.reshape(-1, each.shape[-1])) for each in (values, gates)]
        ctx.save_for_backward(*rows)
        ctx.tanh = tanh
        return torch.ops.spear.tanh_gated(*rows).view(values.shape) if tanh else values * gates

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        flat = grad.reshape(-1, grad.shape[-1]).contiguous()
        found = torch.ops.spear.product_gradients(*ctx.saved_tensors, flat, ctx.tanh)
        return *(each.view(grad.shape) for each in found), None


def product(values: Tensor, gates: Tensor, tanh: bool = False) -> Tensor:
    """values x gates, or values x tanh(gates); (B, T, C)."""
    if values.numel() > 0 and values.dtype == gates.dtype and fused("gated", values):
        return _ProductFunction.apply(values, gates, tanh)
    return values * (gates.tanh() if tanh else gates)


class NonlinAttention(nn.Module):
    """Gated average over frames with the weights of the first head (Zipformer)."""

    def __init__(self, context: StepContext, dim: int, hidden: int, balancer: bool, whiten: bool):
        super().__init__()
        self.in_proj = nn.Linear(dim, 3 * hidden)
        self.out_proj = scaled_linear(hidden, dim, 0.05)
        self.balancer = Balancer(
            context,
            -1,
            Schedule((0, 0.25), (20000, 0.05)),
            Schedule((0, 0.75), (20000, 0.95)),
            0.5,
            5.0,
            enabled=balancer,
        )
        self.whiten1 = Whiten(context, Schedule((0, 5.0), (20000, 10.0), default=5.0), 0.01, enabled=whiten)
        self.whiten2 = Whiten(context, Schedule((0, 5.0), (20000, 15.0), default=5.0), 0.01, enabled=whiten)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x (B, T, D), weights of one head (B, T, T) -> (B, T, D)."""
        gate, values, output_gate = self.in_proj(x).chunk(3, dim=-1)
        values = product(self.whiten1(values), self.balancer(gate), tanh=True)
        return self.whiten2(self.out_proj(product(torch.matmul(weights, values), output_gate)))
