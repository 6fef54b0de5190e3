"""The reference's training step as a sequence of operations, written from the specification.

``ReferenceEncoder`` computes what our encoder with ``padding: reference`` computes, from the same weights,
by the steps that the specification describes (zipformer.md, scaling.md): time-major activations, scores that
are filled, softmax in float32, residuals, masks and bypasses one by one, regularisers that call the autograd
engine in their backward pass, and k2's Swoosh (reference_functions.py). ``ReferenceScaledAdam`` copies
parameters one by one out of its stacks. Where the specification leaves the order open, the plain one was
taken. It is no copy of the reference, and was not compared with its speed.

Coins: Balancers act in their share of the calls, Whiten in 2.5 %, its share below the limit.

Legend: B utterances, T frames, D channels, H heads.
"""

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from reference_functions import (
    Balance,
    BiasNormByAutograd,
    Limit,
    ScaleGradient,
    Softmax,
    Swoosh,
    SwooshLinear,
    White,
)
from torch import Tensor, nn

from spear_lib.encoders.zipformer import SpearEncoder
from spear_lib.encoders.zipformer.attention import SelfAttention
from spear_lib.encoders.zipformer.convolution import ConvolutionModule
from spear_lib.encoders.zipformer.layer import FeedForward, ZipformerLayer
from spear_lib.encoders.zipformer.modules import BiasNorm, Bypass, Downsample
from spear_lib.encoders.zipformer.positions import positional_table
from spear_lib.encoders.zipformer.regularisers import Balancer, BalancerLimits, Limiter
from spear_lib.encoders.zipformer.stack import DownsampledStack, Stack
from spear_lib.encoders.zipformer.whitening import Whiten
from spear_lib.optim import ScaledAdam
from spear_lib.optim.stacks import Stack as EqualTensors

WHITEN_PROBABILITY = 0.025


class ReferenceEncoder(nn.Module):
    """Our encoder's weights under the reference's sequence of operations; whole utterances, not causal.

    Args:
      ours: whose parameters, schedules and limits are used; ``begin_step`` of it is not needed.
      seed: of the coins.
    """

    def __init__(self, ours: SpearEncoder, seed: int = 0) -> None:
        super().__init__()
        if ours.config.causal or len(set(ours.config.per_stack("encoder_dim"))) > 1:
            raise ValueError("the reference's sequence is written for encoders of one width, not causal")
        self.ours = ours
        self.batch_count = 0.0
        self.coins = random.Random(seed)

    def forward(self, fbank: Tensor, lengths: Tensor) -> Tensor:
        """fbank (B, F, M), lengths (B,) in frames -> encoder output (B, T, D)."""
        x = self._front_end(fbank)
        lengths = (lengths - 7) // 2
        padding = torch.arange(x.shape[1], device=x.device) >= lengths.unsqueeze(-1)
        x = x.permute(1, 0, 2)
        draws = None
        if self.training:
            draws = [(torch.rand(1, x.shape[1], 1, device=x.device) > 0.125).to(x.dtype) for _ in range(2)]
        for stack in self.ours.encoder.encoders:
            if isinstance(stack, DownsampledStack):
                factor = stack.factor
                low = self._stack(
                    stack.encoder, self._downsample(stack.downsample, x), padding[:, ::factor], draws
                )
                low = low.unsqueeze(1).expand(-1, factor, -1, -1).reshape(-1, *low.shape[1:])[: x.shape[0]]
                x = self._bypass(stack.out_combiner, x, low)
            else:
                x = self._stack(stack, x, padding, draws)
        if self.ours.config.output_downsampling_factor == 2:
            x = self._downsample(self.ours.encoder.downsample_output, x)
        return x.permute(1, 0, 2)

    # ------------------------------------------------------------------------------------- regularisers
    def _act(self, probability: float) -> bool:
        return self.training and self.coins.random() < probability

    def _balance(self, balancer: Balancer, x: Tensor, dim: int = -1) -> Tensor:
        count = self.batch_count
        if not (x.requires_grad and self._act(balancer.prob(count))):
            return x.view_as(x)
        positive = (balancer.min_positive(count), balancer.max_positive(count))
        absolute = (balancer.min_abs(count), balancer.max_abs(count))
        return Balance.apply(x, dim, BalancerLimits.of(positive, absolute, balancer.grad_scale))

    def _whiten(self, whiten: Whiten, x: Tensor) -> Tensor:
        if not (x.requires_grad and self._act(WHITEN_PROBABILITY)):
            return x.view_as(x)
        return White.apply(x, whiten.num_groups, whiten.limit(self.batch_count), whiten.grad_scale)

    def _limited(self, value: Tensor, limiter: Limiter | None) -> Tensor:
        if limiter is None or not self._act(limiter.probability):
            return value
        return Limit.apply(value, limiter.minimum(self.batch_count), limiter.maximum)

    def _norm(self, norm: BiasNorm, x: Tensor) -> Tensor:
        return BiasNormByAutograd.apply(x, norm.bias, self._limited(norm.log_scale, norm.limiter))

    def _bypass(self, bypass: Bypass, x: Tensor, h: Tensor) -> Tensor:
        scale = self._limited(bypass.bypass_scale, bypass.limiter)
        rate = bypass.skip_rate(self.batch_count) if self.training and bypass.skip_rate else 0.0
        if rate > 0.0:
            scale = scale * (torch.rand(x.shape[1], 1, device=x.device) > rate)
        return x + (h - x) * scale

    def _masked(self, branch: Tensor, rate: float) -> Tensor:
        if not self.training or rate == 0.0:
            return branch
        return branch * (torch.rand(branch.shape[1], 1, device=branch.device) > rate).to(branch.dtype)

    def _shared_mask(self, like: Tensor, rate: float) -> Tensor | None:
        """Inverted dropout with one draw for all frames of (T, B, C)."""
        if not self.training or rate == 0.0:
            return None
        return (torch.rand_like(like[:1]) > rate) * (1.0 / (1.0 - rate))

    # ------------------------------------------------------------------------------------------ modules
    def _front_end(self, fbank: Tensor) -> Tensor:
        front = self.ours.encoder_embed
        x = fbank.unsqueeze(1)
        for number, balancer in (("0", "2"), ("4", "5"), ("7", "8")):
            x = front.conv[number](x)
            if number == "0" and self.training:
                x = ScaleGradient.apply(x, front.conv["1"].scale)
            x = Swoosh.apply(self._balance(front.conv[balancer], x, 1), "R")
        block = front.convnext
        h = block.pointwise_conv1(block.depthwise_conv(x))
        h = block.pointwise_conv2(Swoosh.apply(self._balance(block.hidden_balancer, h, 1), "L"))
        if self.training:
            keep = torch.rand(x.shape[0], 1, 1, 1, device=x.device) > block.layerdrop_rate(self.batch_count)
            h = h * keep.to(h.dtype)
        x = self._balance(block.out_balancer, x + h, 1).transpose(1, 3)
        x = self._whiten(block.out_whiten, x).transpose(1, 3)
        batch, channels, num_frames, width = x.shape
        x = front.out(x.transpose(1, 2).reshape(batch, num_frames, channels * width))
        x = self._norm(front.out_norm, self._whiten(front.out_whiten, x))
        mask = None
        if self.training:
            rate = front.dropout(self.batch_count)
            mask = (torch.rand_like(x[:, :1]) > rate) * (1.0 / (1.0 - rate))
        return x if mask is None else x * mask

    def _downsample(self, downsample: Downsample, x: Tensor) -> Tensor:
        factor = downsample.factor
        missing = -x.shape[0] % factor
        x = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])], dim=0)
        weights = downsample.bias.softmax(dim=0).unsqueeze(-1).unsqueeze(-1)
        return (x.reshape(-1, factor, *x.shape[1:]) * weights).sum(dim=1)

    def _stack(self, stack: Stack, x: Tensor, padding: Tensor, draws: list[Tensor] | None) -> Tensor:
        table = positional_table(x.shape[0], stack.config.pos_dim, x.device).unsqueeze(0)
        if self.training:
            table = F.dropout(table, 0.15)
        mask = None
        if draws is not None and stack.unmasked < x.shape[2]:
            middle = stack.unmasked + (x.shape[2] - stack.unmasked) // 2
            mask = torch.ones(1, x.shape[1], x.shape[2], device=x.device)
            mask[..., stack.unmasked :] *= draws[0]
            mask[..., middle:] *= draws[1]
            x = x * mask
        for layer in stack.layers:
            x = self._layer(layer, x, table, padding)
            x = x if mask is None else x * mask
        return x

    def _layer(self, layer: ZipformerLayer, x: Tensor, table: Tensor, padding: Tensor) -> Tensor:
        count, start = self.batch_count, x
        weights = self._attention_weights(layer.self_attn_weights, x, table, padding)
        x = x + self._feed_forward(layer.feed_forward1, x)
        rate = layer.attention_skip_rate(count)
        branch = self._balance(layer.balancer_na, self._nonlinear(layer.nonlin_attention, x, weights[0:1]))
        x = x + self._masked(branch, rate)
        x = x + self._masked(self._self_attention(layer.self_attn1, x, weights), rate)
        branch = self._convolution(layer.conv_module1, x, padding)
        x = x + self._masked(branch, layer.conv_skip_rate(count))
        branch = self._balance(layer.balancer_ff2, self._feed_forward(layer.feed_forward2, x))
        x = x + self._masked(branch, layer.ff2_skip_rate(count))
        x = self._bypass(layer.bypass_mid, start, x)
        x = x + self._masked(self._self_attention(layer.self_attn2, x, weights), rate)
        branch = self._convolution(layer.conv_module2, x, padding)
        x = x + self._masked(branch, layer.conv_skip_rate(count))
        branch = self._balance(layer.balancer_ff3, self._feed_forward(layer.feed_forward3, x))
        x = x + self._masked(branch, layer.ff3_skip_rate(count))
        x = self._norm(layer.norm, self._balance(layer.balancer1, x))
        x = self._balance(layer.balancer2, self._bypass(layer.bypass, start, x))
        return self._whiten(layer.whiten, x)

    def _attention_weights(self, part: Any, x: Tensor, table: Tensor, padding: Tensor) -> Tensor:
        """(H, B, T, T)."""
        heads, width = part.num_heads, part.query_head_dim
        x = part.in_proj(x)
        query, key, place = x.split([heads * width, heads * width, heads * part.pos_head_dim], dim=-1)
        key = self._whiten(part.whiten_keys, self._balance(part.balance_keys, key))
        num_frames, batch = x.shape[:2]
        query = query.reshape(num_frames, batch, heads, width).permute(2, 1, 0, 3)
        place = place.reshape(num_frames, batch, heads, part.pos_head_dim).permute(2, 1, 0, 3)
        key = key.reshape(num_frames, batch, heads, width).permute(2, 1, 3, 0)
        scores = torch.matmul(query, key)
        if not self._act(part.pos_emb_skip_rate(self.batch_count)):
            table = part.linear_pos(table).reshape(1, -1, heads, part.pos_head_dim).permute(2, 0, 3, 1)
            places = torch.matmul(place, table)
            strides = (*places.stride()[:2], places.stride(2) - 1, places.stride(3))
            places = places.as_strided((heads, batch, num_frames, num_frames), strides, num_frames - 1)
            scores = scores + places
        dtype = scores.dtype
        scores = scores.masked_fill(padding.unsqueeze(1), -1000)
        return Softmax.apply(scores, dtype)

    def _self_attention(self, part: SelfAttention, x: Tensor, weights: Tensor) -> Tensor:
        num_frames, batch, _ = x.shape
        values = part.in_proj(x).reshape(num_frames, batch, part.num_heads, -1).permute(2, 1, 0, 3)
        x = torch.matmul(weights, values).permute(2, 1, 0, 3).contiguous().view(num_frames, batch, -1)
        return self._whiten(part.whiten, part.out_proj(x))

    def _nonlinear(self, part: Any, x: Tensor, weights: Tensor) -> Tensor:
        gate, x, output_gate = part.in_proj(x).chunk(3, dim=-1)
        x = self._whiten(part.whiten1, x) * self._balance(part.balancer, gate).tanh()
        x = torch.matmul(weights, x.permute(1, 0, 2).unsqueeze(0)).squeeze(0).permute(1, 0, 2)
        return self._whiten(part.whiten2, part.out_proj(x * output_gate))

    def _feed_forward(self, part: FeedForward, x: Tensor) -> Tensor:
        x = self._balance(part.hidden_balancer, part.in_proj(x))
        mask = self._shared_mask(x, part.dropout(self.batch_count))
        x = SwooshLinear.apply(x, part.out_proj.weight, part.out_proj.bias, "L", mask)
        return self._whiten(part.out_whiten, x)

    def _convolution(self, part: ConvolutionModule, x: Tensor, padding: Tensor) -> Tensor:
        x, gate = part.in_proj(x).chunk(2, dim=-1)
        x = (x * self._balance(part.balancer1, gate).sigmoid()).permute(1, 2, 0)
        x = part.depthwise_conv(x.masked_fill(padding.unsqueeze(1), 0.0))
        x = self._whiten(part.whiten, self._balance(part.balancer2, x, 1).permute(2, 0, 1))
        return SwooshLinear.apply(x, part.out_proj.weight, part.out_proj.bias, "R", None)


class _CopiedBack(EqualTensors):
    def scatter(self) -> None:
        for parameter, value in zip(self.tensors, self.params):
            parameter.detach().copy_(value)


class ReferenceScaledAdam(ScaledAdam):
    """Stacks are made anew and copied back tensor by tensor in each step (optim.md 1.6)."""

    def _stacks(self, index: int, group: dict[str, Any]) -> list[EqualTensors]:
        stacks = super()._stacks(index, group)
        for stack in stacks:
            stack.__class__ = _CopiedBack
        return stacks


def reference_loss(encoder_out: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor) -> Tensor:
    """Sum over frames of the cross-entropy's mean over codebooks, all logits at once (mvq.md 7).

    Args:
      encoder_out: (B, T, P). weight: (N, K, P). bias: (N, K). tokens: (B, T', N), T' >= T.
    """
    rows = encoder_out.reshape(-1, encoder_out.shape[-1])
    logits = F.linear(rows, weight.flatten(0, 1), bias.flatten()).view(-1, *bias.shape)
    targets = tokens[:, : encoder_out.shape[1]].reshape(-1)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=-100, reduction="none")
    return losses.sum() / math.prod(bias.shape[:1])
