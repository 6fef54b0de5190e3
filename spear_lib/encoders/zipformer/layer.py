"""One Zipformer layer and its feed-forward module.

Shapes: B utterances, T frames of the stack, D channels, H heads.
"""

import torch
from torch import Tensor, nn

from spear_lib.encoders.step_context import Schedule, StepContext
from spear_lib.encoders.zipformer.activations import swoosh_linear
from spear_lib.encoders.zipformer.attention import (
    NonlinAttention,
    RelPositionMultiheadAttentionWeights,
    SelfAttention,
    constant_attention,
)
from spear_lib.encoders.zipformer.convolution import ConvolutionModule
from spear_lib.encoders.zipformer.modules import BiasNorm, Bypass, add, fork, scaled_linear
from spear_lib.encoders.zipformer.regularisers import Balancer
from spear_lib.encoders.zipformer.whitening import Whiten


class FeedForward(nn.Module):
    """Linear, SwooshL, dropout shared over time, linear (Zipformer)."""

    def __init__(
        self, context: StepContext, dim: int, hidden: int, balancer: bool, whiten: bool, stochastic: bool
    ):
        super().__init__()
        self.context = context
        self.stochastic = stochastic
        self.in_proj = nn.Linear(dim, hidden)
        self.hidden_balancer = Balancer(context, -1, 0.3, 1.0, 0.75, 5.0, enabled=balancer)
        self.out_proj = scaled_linear(hidden, dim, 0.1)
        self.out_whiten = Whiten(
            context, Schedule((0, 7.5), (20000, 15.0), default=7.5), 0.01, enabled=whiten
        )
        self.dropout = Schedule((0, 0.3), (20000, 0.1))
        self.draws = context.new_draws(hidden, self.dropout, scaled=True)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        multiplier = None
        if self.training and self.stochastic:
            rate = self.dropout(self.context.batch_count)
            multiplier = self.context.dropout(self.draws, rate).unsqueeze(1)
        hidden = self.hidden_balancer(self.in_proj(x))
        return self.out_whiten(
            swoosh_linear(hidden, self.out_proj.weight, self.out_proj.bias, "L", multiplier)
        )


class ZipformerLayer(nn.Module):
    """Shared attention weights, three feed-forwards, two convolutions, two bypasses (Zipformer)."""

    def __init__(
        self,
        context: StepContext,
        dim: int,
        feedforward_dim: int,
        num_heads: int,
        query_head_dim: int,
        pos_head_dim: int,
        value_head_dim: int,
        pos_dim: int,
        kernel: int,
        causal: bool = False,
        skip_rate: Schedule | None = None,
        balancer: bool = True,
        whiten: bool = True,
        limit_gradients: bool = True,
        stochastic: bool = True,
        constant_attention: bool = False,
    ):
        super().__init__()
        self.context = context
        self.stochastic = stochastic
        # Unused, but in every published checkpoint; frozen, so that DDP does not wait for its gradient.
        self.bypass_scale = nn.Parameter(torch.full((dim,), 0.5), requires_grad=False)
        self.bypass = Bypass(context, dim, skip_rate, limit_gradients, stochastic)
        self.bypass_mid = Bypass(context, dim, None, limit_gradients, stochastic)
        self.self_attn_weights = RelPositionMultiheadAttentionWeights(
            context,
            dim,
            pos_dim,
            num_heads,
            query_head_dim,
            pos_head_dim,
            balancer,
            whiten,
            limit_gradients,
            stochastic,
        )
        self.self_attn1 = SelfAttention(context, dim, num_heads, value_head_dim, whiten)
        self.self_attn2 = SelfAttention(context, dim, num_heads, value_head_dim, whiten)
        widths = (3 * feedforward_dim // 4, feedforward_dim, 5 * feedforward_dim // 4)
        self.feed_forward1 = FeedForward(context, dim, widths[0], balancer, whiten, stochastic)
        self.feed_forward2 = FeedForward(context, dim, widths[1], balancer, whiten, stochastic)
        self.feed_forward3 = FeedForward(context, dim, widths[2], balancer, whiten, stochastic)
        self.nonlin_attention = NonlinAttention(context, dim, 3 * dim // 4, balancer, whiten)
        self.conv_module1 = ConvolutionModule(context, dim, kernel, causal, balancer, whiten)
        self.conv_module2 = ConvolutionModule(context, dim, kernel, causal, balancer, whiten)
        self.norm = BiasNorm(context, dim, limit_gradients)
        self.balancer_na = Balancer(
            context, -1, 0.3, 0.7, Schedule((0, 0.004), (4000, 0.02)), 100.0, prob=0.05, enabled=balancer
        )
        self.balancer_ff2 = Balancer(
            context, -1, 0.3, 0.7, Schedule((0, 0.0), (4000, 0.1)), 2.0, prob=0.05, enabled=balancer
        )
        self.balancer_ff3 = Balancer(
            context, -1, 0.3, 0.7, Schedule((0, 0.0), (4000, 0.2)), 4.0, prob=0.05, enabled=balancer
        )
        self.balancer1 = Balancer(context, -1, 0.45, 0.55, 0.2, 4.0, enabled=balancer)
        self.balancer2 = Balancer(context, -1, 0.45, 0.55, 0.1, 4.0, enabled=balancer)
        self.whiten = Whiten(context, Schedule((0, 4.0), (20000, 12.0), default=4.0), 0.01, enabled=whiten)
        self.attention_skip_rate = Schedule((0, 0.2), (4000, 0.05), (16000, 0.0))
        self.conv_skip_rate = Schedule((0, 0.2), (4000, 0.05), (16000, 0.0))
        self.ff2_skip_rate = Schedule((0, 0.1), (4000, 0.01), (50000, 0.0))
        self.ff3_skip_rate = Schedule((0, 0.1), (4000, 0.01), (50000, 0.0))
        self.constant_attention_rate = Schedule((0, 0.25), (4000, 0.025))
        # The test that the SPEAR copy inverts, see ZipformerConfig.constant_attention.
        self.constant_coin = context.new_coin() if constant_attention and stochastic else None
        self.attention_draw = context.new_draws(rate=self.attention_skip_rate)
        self.conv_draws = tuple(context.new_draws(rate=self.conv_skip_rate) for _ in range(2))
        self.feedforward_draws = (
            context.new_draws(rate=self.ff2_skip_rate),
            context.new_draws(rate=self.ff3_skip_rate),
        )

    def _mask(self, rate: Schedule, draw: slice) -> Tensor | None:
        """0/1 mask (B, 1, 1) of one branch, or None where nothing is dropped."""
        if not (self.training and self.stochastic):
            return None
        probability = rate(self.context.batch_count)
        return self.context.keep(draw, probability).unsqueeze(-1) if probability > 0.0 else None

    def forward(
        self,
        x: Tensor,
        table: Tensor,
        mask: Tensor | None = None,
        valid: Tensor | None = None,
        chunk_size: int | Tensor = -1,
    ) -> Tensor:
        """One layer.

        Args:
          x: (B, T, D).
          table: positional encodings (2 T - 1, P).
          mask: added to attention scores, broadcastable to (B, H, T, T); MASKED_SCORE = not seen.
          valid: (B, T, 1) bool, False on padding, or None without padding.
          chunk_size: frames of the stack per chunk, or (B,) own lengths, for causal convolutions.

        Returns:
          (B, T, D).
        """
        x, middle, last, read, also = fork(x)
        weights, again, first_head = self.self_attn_weights(read, table, mask)
        if self.training and self.constant_coin is not None:
            rate = self.constant_attention_rate(self.context.batch_count)
            if self.context.coin(self.constant_coin) < rate:
                first_head = constant_attention(first_head)
        attention_mask = self._mask(self.attention_skip_rate, self.attention_draw)
        h, read = add(x, self.feed_forward1(also))
        branch = self.balancer_na(self.nonlin_attention(read, first_head))
        h, read = add(h, branch, attention_mask)
        h, read = add(h, self.self_attn1(read, weights), attention_mask)
        branch = self.conv_module1(read, valid, chunk_size)
        h, read = add(h, branch, self._mask(self.conv_skip_rate, self.conv_draws[0]))
        branch = self.balancer_ff2(self.feed_forward2(read))
        h, _ = add(h, branch, self._mask(self.ff2_skip_rate, self.feedforward_draws[0]), is_read=False)
        h, read = self.bypass_mid.both(middle, h)
        h, read = add(h, self.self_attn2(read, again), attention_mask)
        branch = self.conv_module2(read, valid, chunk_size)
        h, read = add(h, branch, self._mask(self.conv_skip_rate, self.conv_draws[1]))
        branch = self.balancer_ff3(self.feed_forward3(read))
        h, _ = add(h, branch, self._mask(self.ff3_skip_rate, self.feedforward_draws[1]), is_read=False)
        h = self.norm(self.balancer1(h))
        return self.whiten(self.balancer2(self.bypass(last, h)))
