"""Stacks of layers at their own frame rates, and the encoder that chains them.

Shapes: B utterances, T frames at 50 Hz, D channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spear_lib.encoders.base import MASKED_SCORE
from spear_lib.encoders.step_context import Schedule, StepContext
from spear_lib.encoders.zipformer.config import ZipformerConfig
from spear_lib.encoders.zipformer.layer import ZipformerLayer
from spear_lib.encoders.zipformer.modules import Bypass, Downsample, upsample
from spear_lib.encoders.zipformer.positions import PositionalEncoding
from spear_lib.kernels.weights import on_working_copies
from spear_lib.runtime.devices import on_host


class HiddenStates(Sequence):
    """Outputs of all layers, (B, T, D) at 50 Hz each; repeated to 50 Hz only when read."""

    def __init__(self, items: list[tuple[Tensor, int]], num_frames: int):
        self.items = items
        self.num_frames = num_frames

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return HiddenStates(self.items[index], self.num_frames)
        x, factor = self.items[index]
        return upsample(x, factor, self.num_frames)


class _FrameMasks:
    """Padding and attention masks at every rate, built once per forward."""

    def __init__(self, lengths: Tensor, num_frames: int, chunk_size: int, left_context: int, exact: bool):
        self.lengths = lengths
        self.num_frames = num_frames
        self.chunk_size = chunk_size
        self.exact = exact
        frames = torch.arange(num_frames, device=lengths.device)
        # Without padding there is nothing to mask; only knowable without a device synchronisation on a CPU.
        full = on_host(lengths) and int(lengths.min()) == num_frames
        self.valid = None if full else frames < lengths.unsqueeze(1)
        self._attention: dict[int, Tensor | None] = {}
        self.chunk_mask = None
        if chunk_size > 0:
            left_chunks = 1_000_000 if left_context < 0 else max(1, left_context // chunk_size)
            chunk = torch.div(frames, chunk_size, rounding_mode="floor")
            ahead = chunk.unsqueeze(0) - chunk.unsqueeze(1)
            self.chunk_mask = (ahead > 0) | (ahead < -left_chunks)

    def valid_frames(self, factor: int) -> Tensor | None:
        """(B, T / factor, 1) bool, or None without padding."""
        return None if self.valid is None else self.valid[:, ::factor].unsqueeze(-1)

    def attention(self, factor: int) -> Tensor | None:
        """What is added to scores, broadcastable to (B, H, T / factor, T / factor), or None."""
        if factor not in self._attention:
            self._attention[factor] = self._make_attention(factor)
        return self._attention[factor]

    def _make_attention(self, factor: int) -> Tensor | None:
        unseen = None if self.valid is None else ~self.valid[:, None, None, ::factor]
        if self.chunk_mask is not None:
            chunks = self.chunk_mask[None, None, ::factor, ::factor]
            unseen = chunks if unseen is None else unseen | chunks
        return None if unseen is None else unseen.to(torch.float32) * MASKED_SCORE

    def chunk(self, factor: int) -> int | Tensor:
        """Frames per chunk of causal convolutions; (B,) int64 where each utterance is one chunk of its own.

        The reference cuts chunks at the end of the padded batch, so that their edges depend on it.
        """
        if self.chunk_size > 0:
            size = self.chunk_size // factor
            return size if self.exact else min(size, -(-self.num_frames // factor))
        if not self.exact or self.valid is None:
            return -1
        return torch.div(self.lengths + factor - 1, factor, rounding_mode="floor")

    def replicate(self) -> dict[str, Tensor]:
        """Arguments of Downsample that make it independent of padding."""
        if not self.exact or self.valid is None:
            return {}
        return {"valid": self.valid.unsqueeze(-1), "last": self.lengths - 1}


class _FeatureMasks:
    """Masks of channels, built once per forward for the stacks that have the same. draws: (B, 2) 0/1."""

    def __init__(self, draws: Tensor | None):
        self.draws = draws
        self._made: dict[tuple[int, int], Tensor] = {}

    def of(self, unmasked: int, dim: int) -> Tensor | None:
        """Channels kept for each utterance, (B, 1, D) 0/1 float32, or None."""
        if self.draws is None or unmasked == dim:
            return None
        if (unmasked, dim) not in self._made:
            middle = unmasked + (dim - unmasked) // 2
            first = self.draws[:, :1]
            both = first * self.draws[:, 1:]
            ones = torch.ones_like(first)
            parts = [
                ones.expand(-1, unmasked),
                first.expand(-1, middle - unmasked),
                both.expand(-1, dim - middle),
            ]
            self._made[unmasked, dim] = torch.cat(parts, dim=1).unsqueeze(1)
        return self._made[unmasked, dim]


class Stack(nn.Module):
    """Layers of one stack at its own rate."""

    def __init__(self, context: StepContext, config: ZipformerConfig, index: int):
        super().__init__()
        self.context = context
        self.config = config
        dim = config.per_stack("encoder_dim")[index]
        factor = config.downsampling_factor[index]
        num_layers = config.per_stack("num_encoder_layers")[index]
        self.factor = factor
        self.unmasked = config.per_stack("encoder_unmasked_dim")[index]
        self.checkpoint_activations = config.per_stack("checkpoint_activations")[index]
        self.encoder_pos = PositionalEncoding(context, config.pos_dim, config.stochastic)
        start = config.warmup_batches * (index + 1) / (config.num_stacks + 1)
        end = config.warmup_batches * (index + 2) / (config.num_stacks + 1)
        step = (end - start) / num_layers
        layers = []
        for number in range(num_layers):
            skip_rate = Schedule(
                (start + number * step, 0.5), (start + (number + 1) * step, 0.035 * factor**0.5)
            )
            layer = ZipformerLayer(
                context,
                dim,
                config.per_stack("feedforward_dim")[index],
                config.per_stack("num_heads")[index],
                config.per_stack("query_head_dim")[index],
                config.per_stack("pos_head_dim")[index],
                config.per_stack("value_head_dim")[index],
                config.pos_dim,
                config.per_stack("cnn_module_kernel")[index],
                causal=config.causal,
                skip_rate=skip_rate,
                balancer=config.balancer,
                whiten=config.whiten,
                limit_gradients=config.limit_gradients,
                stochastic=config.stochastic,
                constant_attention=config.constant_attention,
            )
            if layers:
                # As published models: all layers of a stack start as copies of the first.
                layer.load_state_dict(layers[0].state_dict())
            layers.append(layer)
        self.layers = nn.ModuleList(layers)

    def _compute(self, layer: ZipformerLayer, x: Tensor, *arguments) -> Tensor:
        """``layer(x, *arguments)``, which with ``checkpoint_activations`` keeps nothing but its input."""
        if not (self.checkpoint_activations and self.training and torch.is_grad_enabled()):
            return on_working_copies(layer, x, *arguments)
        step = self.context.step_key

        def compute(x: Tensor) -> Tensor:
            if self.context.step_key != step:
                raise RuntimeError(
                    "checkpoint_activations: begin_step was called between a forward pass and its backward "
                    "pass, so that the layers cannot be computed again; call backward first"
                )
            return on_working_copies(layer, x, *arguments)

        # Random draws are functions of the step: the second pass repeats them without a generator's state.
        return checkpoint(compute, x, use_reentrant=False, preserve_rng_state=False)

    def forward(
        self,
        x: Tensor,
        masks: _FrameMasks,
        features: _FeatureMasks,
        hidden_states: list[tuple[Tensor, int]],
    ) -> Tensor:
        """x (B, T', D) -> (B, T', D); appends every layer's output to ``hidden_states``."""
        table = self.encoder_pos(x)
        attention_mask = masks.attention(self.factor)
        valid = masks.valid_frames(self.factor)
        chunk_size = masks.chunk(self.factor) if self.config.causal else -1
        feature_mask = features.of(self.unmasked, x.shape[2])
        if feature_mask is not None:
            x = x * feature_mask
        for layer in self.layers:
            x = self._compute(layer, x, table, attention_mask, valid, chunk_size)
            hidden_states.append((x, self.factor))
            if feature_mask is not None:
                x = x * feature_mask
        return x


class DownsampledStack(nn.Module):
    """A stack at a lower rate, combined with its input (Zipformer)."""

    def __init__(self, context: StepContext, config: ZipformerConfig, index: int):
        super().__init__()
        self.factor = config.downsampling_factor[index]
        self.downsample = Downsample(self.factor)
        self.encoder = Stack(context, config, index)
        dim = config.per_stack("encoder_dim")[index]
        self.out_combiner = Bypass(context, dim, None, config.limit_gradients, config.stochastic)

    def forward(
        self,
        x: Tensor,
        masks: _FrameMasks,
        features: _FeatureMasks,
        hidden_states: list[tuple[Tensor, int]],
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        low = self.downsample(x, **masks.replicate())
        low = self.encoder(low, masks, features, hidden_states)
        return self.out_combiner(x, upsample(low, self.factor, x.shape[1]))


def adapt_width(x: Tensor, dim: int) -> Tensor:
    """The first ``dim`` channels of x, or x with zero channels appended."""
    return x[..., :dim] if x.shape[-1] >= dim else F.pad(x, (0, dim - x.shape[-1]))


def assemble(outputs: list[Tensor]) -> Tensor:
    """The output of the last stack, with the extra channels of wider earlier stacks appended."""
    x = outputs[-1]
    for output in reversed(outputs[:-1]):
        if output.shape[-1] > x.shape[-1]:
            x = torch.cat([x, output[..., x.shape[-1] :]], dim=-1)
    return x


class Zipformer(nn.Module):
    """All stacks and the optional output down-sampling (``encoder`` of the checkpoints)."""

    def __init__(self, context: StepContext, config: ZipformerConfig):
        super().__init__()
        self.context = context
        self.config = config
        self.feature_draws = context.new_draws(2)
        self.chunk_coin = context.new_coin()
        self.left_coin = context.new_coin()
        self.encoders = nn.ModuleList(
            Stack(context, config, index) if factor == 1 else DownsampledStack(context, config, index)
            for index, factor in enumerate(config.downsampling_factor)
        )
        if config.output_downsampling_factor == 2:
            self.downsample_output = Downsample(2)

    def _chunking(self) -> tuple[int, int]:
        """Chunk size and left context of this call, in 50 Hz frames."""
        config = self.config
        if not (self.training and self.context.step_key is not None):
            return config.chunk_size[0], config.left_context_frames[0]
        sizes, lefts = config.chunk_size, config.left_context_frames
        size = sizes[int(self.context.coin(self.chunk_coin) * len(sizes))]
        return size, lefts[int(self.context.coin(self.left_coin) * len(lefts))]

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        chunk_size: int | None = None,
        left_context_frames: int | None = None,
    ) -> tuple[Tensor, Tensor, HiddenStates, list[Tensor]]:
        """Run all stacks.

        Args:
          x: embeddings (B, T, D) at 50 Hz.
          lengths: (B,) valid frames.
          chunk_size, left_context_frames: in 50 Hz frames, instead of those of the config (causal).

        Returns:
          output (B, T', D), its lengths (B,), hidden states of all layers, outputs of all stacks (B, T, D_i).
        """
        num_frames = x.shape[1]
        size, left = self._chunking()
        size = size if chunk_size is None else chunk_size
        left = left if left_context_frames is None else left_context_frames
        masks = _FrameMasks(lengths, num_frames, size, left, self.config.padding == "exact")
        draws = None
        if self.training and self.config.stochastic:
            draws = (self.context.draws(self.feature_draws) < 0.875).to(torch.float32)
        features = _FeatureMasks(draws)
        hidden_states: list[tuple[Tensor, int]] = []
        outputs: list[Tensor] = []
        for stack, dim in zip(self.encoders, self.config.per_stack("encoder_dim")):
            x = stack(adapt_width(x, dim), masks, features, hidden_states)
            outputs.append(x)
        x = assemble(outputs)
        if self.config.output_downsampling_factor == 2:
            x = self.downsample_output(x, **masks.replicate())
            lengths = torch.div(lengths + 1, 2, rounding_mode="floor")
        return x, lengths, HiddenStates(hidden_states, num_frames), outputs
