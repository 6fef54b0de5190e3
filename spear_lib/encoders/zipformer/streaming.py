"""Streaming: a causal encoder fed chunk by chunk, with everything it remembers in one explicit state.

A step takes one block of fbank frames of every stream and returns the encoder's next chunk. Its outputs are
those of the whole utterance run with the same chunk size and left context (``padding: exact``), so a model is
trained and evaluated on whole utterances and deployed with this (spec zipformer §14).

Shapes: B streams, S frames at 50 Hz per chunk, s = S / factor frames of a stack per chunk, L and l its left
context in the same units, M mel bins, K kernel, D channels, W x C frequency positions and channels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.encoders.base import MASKED_SCORE, EncoderOutput
from spear_lib.encoders.zipformer.activations import swoosh
from spear_lib.encoders.zipformer.encoder import SpearEncoder
from spear_lib.encoders.zipformer.front_end import MIN_FBANK_FRAMES
from spear_lib.encoders.zipformer.layer import ZipformerLayer
from spear_lib.encoders.zipformer.modules import upsample
from spear_lib.encoders.zipformer.positions import positional_table
from spear_lib.encoders.zipformer.stack import DownsampledStack, HiddenStates, adapt_width, assemble

_CONVOLUTION_FRAMES = 7  # fbank frames that the three front-end convolutions use up
_CONTEXT = 3  # frames at 50 Hz that ConvNeXt sees on either side


class LayerState(NamedTuple):
    """What one layer remembers; left contexts are l frames long, zeros before the first frame."""

    keys: Tensor
    """(B, l, H d_k) attention keys."""
    gated: Tensor
    """(B, l, 3 D / 4) gated values of the non-linear attention."""
    values1: Tensor
    """(B, l, H d_v) values of the first self-attention."""
    values2: Tensor
    """(B, l, H d_v) values of the second self-attention."""
    convolution1: Tensor
    """(B, K // 2, D) inputs of the first depthwise convolution."""
    convolution2: Tensor
    """(B, K // 2, D) inputs of the second depthwise convolution."""


@dataclass
class StreamingState:
    """What B streams remember between two steps. Steps return a new one and leave the old one as it is."""

    front_end: Tensor
    """(B, 3, W, C) inputs of ConvNeXt before the next frame."""
    layers: list[LayerState]
    """One per layer in order of computation."""
    processed: Tensor
    """(B,) int64, frames at 50 Hz behind each stream: how much of the left contexts is filled."""

    @classmethod
    def concatenate(cls, states: list["StreamingState"]) -> "StreamingState":
        """Streams of several states side by side, at whatever progress each of them is."""
        layers = []
        for parts in zip(*(state.layers for state in states)):
            joined = []
            for tensors in zip(*parts):
                longest = max(
                    tensor.shape[1] for tensor in tensors
                )  # they differ with unlimited context only
                joined.append(torch.cat([F.pad(t, (0, 0, longest - t.shape[1], 0)) for t in tensors]))
            layers.append(LayerState(*joined))
        front_end = torch.cat([state.front_end for state in states])
        return cls(front_end, layers, torch.cat([state.processed for state in states]))

    def select(self, rows: list[int] | Tensor) -> "StreamingState":
        """The streams ``rows``, in this order."""
        layers = [LayerState(*(tensor[rows] for tensor in layer)) for layer in self.layers]
        return StreamingState(self.front_end[rows], layers, self.processed[rows])


class StreamingEncoder:
    """Runs a causal ``SpearEncoder`` chunk by chunk.

        streaming = StreamingEncoder(encoder, chunk_size=32, left_context_frames=128)
        state = streaming.initial_state(batch_size=1)
        for start in range(0, num_frames - 8, streaming.block_shift):
            block = fbank[:, start : start + streaming.block_frames]  # shorter at the end of the stream
            output, state = streaming.step(block, torch.tensor([block.shape[1]]), state)

    Successive blocks overlap: the encoder looks 13 fbank frames (130 ms) ahead of a chunk. A stream has ended
    when a block begins less than 9 valid frames before its end.

    Args:
      encoder: causal, in evaluation mode.
      chunk_size: S, frames at 50 Hz per step; the first of ``config.chunk_size`` where None.
      left_context_frames: frames at 50 Hz that attention sees before a chunk, rounded down to whole chunks
        but at least one; -1 = all, with a state that grows. The first of the config where None.

    Attributes:
      block_frames: fbank frames of a block, 2 S + 13.
      block_shift: fbank frames from one block to the next, 2 S.
      left_context_frames: L as used, or -1.

    Raises:
      ValueError: not causal, or a chunk size that does not fit the stacks.
    """

    def __init__(
        self, encoder: SpearEncoder, chunk_size: int | None = None, left_context_frames: int | None = None
    ):
        config = encoder.config
        if not config.causal:
            raise ValueError(
                "streaming needs an encoder with causal: true, and this one sees whole utterances; train a "
                "causal one, or encode the whole utterance with encoder.forward"
            )
        size = config.chunk_size[0] if chunk_size is None else chunk_size
        left = config.left_context_frames[0] if left_context_frames is None else left_context_frames
        for factor in (*config.downsampling_factor, config.output_downsampling_factor):
            if size <= 0 or size % factor:
                raise ValueError(
                    f"chunk_size is {size}; streaming needs a positive multiple of every down-sampling "
                    f"factor {sorted({*config.downsampling_factor, config.output_downsampling_factor})}"
                )
        self.encoder = encoder
        self.chunk_size = size
        self.left_context_frames = -1 if left < 0 else max(1, left // size) * size
        self.block_shift = 2 * size
        self.block_frames = 2 * size + _CONVOLUTION_FRAMES + 2 * _CONTEXT

    def initial_state(self, batch_size: int) -> StreamingState:
        """The state before the first frame of ``batch_size`` streams, on the device of the encoder."""
        front_end = self.encoder.encoder_embed
        channels = self.encoder.config.frontend_channels[-1]
        zeros = self.encoder.mask_emb.new_zeros
        layers = []
        for stack in self.encoder.encoder.encoders:
            left = max(self.left_context_frames, 0) // stack.factor
            for layer in _layers(stack):
                attention, convolution = layer.self_attn_weights, layer.conv_module1.depthwise_conv
                widths = (
                    attention.num_heads * attention.query_head_dim,
                    layer.nonlin_attention.out_proj.in_features,
                    layer.self_attn1.in_proj.out_features,
                    layer.self_attn2.in_proj.out_features,
                )
                attended = [zeros(batch_size, left, width) for width in widths]
                shape = (batch_size, convolution.kernel // 2, layer.conv_module1.out_proj.out_features)
                layers.append(LayerState(*attended, zeros(shape), zeros(shape)))
        return StreamingState(
            zeros(batch_size, _CONTEXT, front_end.out.in_features // channels, channels),
            layers,
            zeros(batch_size, dtype=torch.int64),
        )

    @torch.no_grad()
    def step(
        self, fbank: Tensor, lengths: Tensor, state: StreamingState
    ) -> tuple[EncoderOutput, StreamingState]:
        """The next chunk of every stream.

        Args:
          fbank: (B, <= block_frames, M), the block of each stream; shorter blocks are padded.
          lengths: (B,) int64, valid fbank frames of each block. Fewer than ``block_frames`` mean that the
            stream ends there; a stream that has ended gives 0 frames.
          state: that of the step before, or ``initial_state``.

        Returns:
          output: frames at and beyond ``lengths`` are undefined; at most S of them (S / 2 at 25 Hz).
          state: for the next step.

        Raises:
          ValueError: shapes or lengths that do not fit.
          RuntimeError: the encoder is in training mode.
        """
        self._check(fbank, lengths, state)
        fbank = F.pad(fbank.to(self.encoder.mask_emb.dtype), (0, 0, 0, self.block_frames - fbank.shape[1]))
        available = torch.div(lengths - _CONVOLUTION_FRAMES, 2, rounding_mode="floor").clamp(min=0)
        x, front_end = self._embed(fbank, available, state.front_end)
        emitted = available.clamp(max=self.chunk_size)
        valid = (torch.arange(self.chunk_size, device=x.device) < emitted.unsqueeze(1)).unsqueeze(2)
        padding = {"valid": valid, "last": emitted - 1}
        old, new = iter(state.layers), []
        outputs, hidden_states = [], []
        config = self.encoder.config
        for stack, dim in zip(self.encoder.encoder.encoders, config.per_stack("encoder_dim")):
            x = adapt_width(x, dim)
            factor = stack.factor
            low = x if factor == 1 else stack.downsample(x, **padding)
            for layer in _layers(stack):
                low, layer_state = self._layer(
                    layer, low, valid[:, ::factor], next(old), state.processed, factor
                )
                new.append(layer_state)
                hidden_states.append((low, factor))
            x = low if factor == 1 else stack.out_combiner(x, upsample(low, factor, x.shape[1]))
            outputs.append(x)
        x = assemble(outputs)
        if config.output_downsampling_factor == 2:
            x = self.encoder.encoder.downsample_output(x, **padding)
        num_output = torch.div(
            emitted + config.output_downsampling_factor - 1,
            config.output_downsampling_factor,
            rounding_mode="floor",
        )
        output = EncoderOutput(x, num_output, HiddenStates(hidden_states, self.chunk_size))
        return output, StreamingState(front_end, new, state.processed + self.chunk_size)

    def encode(self, fbank: Tensor, lengths: Tensor) -> EncoderOutput:
        """Whole utterances in steps, as a check and an example: what ``encoder.forward`` gives, without its
        hidden states.

        Args:
          fbank: (B, F, M). lengths: (B,) int64, valid frames, at least 9.
        """
        state = self.initial_state(fbank.shape[0])
        chunks, total = [], torch.zeros_like(lengths)
        for start in range(0, max(1, fbank.shape[1] - MIN_FBANK_FRAMES + 1), self.block_shift):
            block = fbank[:, start : start + self.block_frames]
            output, state = self.step(block, (lengths - start).clamp(0, block.shape[1]), state)
            chunks.append(output.encoder_out)
            total = total + output.lengths
        return EncoderOutput(torch.cat(chunks, dim=1), total, [])

    def _check(self, fbank: Tensor, lengths: Tensor, state: StreamingState) -> None:
        if self.encoder.training:
            raise RuntimeError("streaming in training mode: call encoder.eval() first")
        bins = self.encoder.config.num_mel_bins
        if fbank.dim() != 3 or fbank.shape[2] != bins or fbank.shape[1] > self.block_frames:
            raise ValueError(
                f"a block of fbank must be (B, at most {self.block_frames}, {bins}) for chunks of "
                f"{self.chunk_size} frames, got shape {tuple(fbank.shape)}"
            )
        batch = fbank.shape[0]
        if lengths.shape != (batch,) or state.processed.shape != (batch,):
            raise ValueError(
                f"the block has {batch} streams, lengths {tuple(lengths.shape)} and the state "
                f"{tuple(state.processed.shape)}; give one length and one state per stream"
            )
        if lengths.device.type == "cpu" and not bool(((lengths >= 0) & (lengths <= fbank.shape[1])).all()):
            raise ValueError(
                f"lengths {lengths.tolist()} must lie in 0..{fbank.shape[1]}, the frames of the block"
            )

    def _embed(self, fbank: Tensor, available: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """The front end: fbank (B, 2 S + 13, M), available (B,) frames -> (B, S, D) and the new cache."""
        front_end = self.encoder.encoder_embed
        x = front_end.convolve(fbank)
        valid = torch.arange(x.shape[1], device=x.device) < available.unsqueeze(1)
        x = torch.cat([cache, x * valid[:, :, None, None].to(x.dtype)], dim=1)  # (B, S + 6, W, C)
        block = front_end.convnext
        conv = block.depthwise_conv
        h = F.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=(0, _CONTEXT), groups=conv.groups)
        h = F.linear(
            h.permute(0, 2, 3, 1), block.pointwise_conv1.weight.flatten(1), block.pointwise_conv1.bias
        )
        h = F.linear(swoosh(h, "L"), block.pointwise_conv2.weight.flatten(1), block.pointwise_conv2.bias)
        now = slice(_CONTEXT, _CONTEXT + self.chunk_size)
        embedding = front_end.out_norm(front_end.project(x[:, now] + h))
        return embedding, x[:, self.chunk_size : self.chunk_size + _CONTEXT]

    def _layer(
        self,
        layer: ZipformerLayer,
        x: Tensor,
        valid: Tensor,
        state: LayerState,
        processed: Tensor,
        factor: int,
    ) -> tuple[Tensor, LayerState]:
        """One layer (spec zipformer §5): x (B, s, D), valid (B, s, 1) bool -> (B, s, D) and its new state."""
        keep = self.left_context_frames // factor if self.left_context_frames > 0 else None
        weights, keys = _attention_weights(layer.self_attn_weights, x, valid, state.keys, processed // factor)
        h = x + layer.feed_forward1(x)

        nonlin = layer.nonlin_attention
        gate, values, output_gate = nonlin.in_proj(h).chunk(3, dim=-1)
        gated = torch.cat([state.gated, values * gate.tanh()], dim=1)
        h = h + nonlin.out_proj(torch.matmul(weights[:, 0], gated) * output_gate)

        values1 = torch.cat([state.values1, layer.self_attn1.in_proj(h)], dim=1)
        h = h + layer.self_attn1.out_proj(_attend(weights, values1))
        branch, convolved1 = _convolve(layer.conv_module1, h, valid, state.convolution1)
        h = h + branch
        h = layer.bypass_mid(x, h + layer.feed_forward2(h))
        values2 = torch.cat([state.values2, layer.self_attn2.in_proj(h)], dim=1)
        h = h + layer.self_attn2.out_proj(_attend(weights, values2))
        branch, convolved2 = _convolve(layer.conv_module2, h, valid, state.convolution2)
        h = h + branch
        h = layer.norm(h + layer.feed_forward3(h))
        attended = [_last(tensor, keep) for tensor in (keys, gated, values1, values2)]
        return layer.bypass(x, h), LayerState(*attended, convolved1, convolved2)


def _layers(stack: nn.Module) -> nn.ModuleList:
    return stack.encoder.layers if isinstance(stack, DownsampledStack) else stack.layers


def _last(x: Tensor, count: int | None) -> Tensor:
    """The last ``count`` frames of x (B, T, ...), all where None."""
    return x if count is None else x[:, x.shape[1] - count :]


def _attention_weights(
    module: nn.Module, x: Tensor, valid: Tensor, cached_keys: Tensor, filled: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights (B, H, s, l + s) over left context and chunk, and all keys (B, l + s, H d_k).

    filled: (B,) frames before the chunk; only as many of the cached ones are real.
    """
    batch, num_frames, _ = x.shape
    num_frames, left = int(num_frames), int(cached_keys.shape[1])  # constants of a recorded graph
    heads = module.num_heads
    width = heads * module.query_head_dim
    query, key, position_query = module.in_proj(x).split([width, width, heads * module.pos_head_dim], dim=-1)
    keys = torch.cat([cached_keys, key], dim=1)

    def by_head(tensor: Tensor) -> Tensor:
        return tensor.view(batch, tensor.shape[1], heads, -1).transpose(1, 2)

    table = positional_table(num_frames, module.linear_pos.in_features, x.device, left_context=left)
    positions = module.linear_pos(table.to(x.dtype)).view(-1, heads, module.pos_head_dim).permute(1, 2, 0)
    relative = torch.matmul(by_head(position_query), positions)  # (B, H, s, 2 s - 1 + l), by offset
    source = torch.arange(left + num_frames, device=x.device)
    target = torch.arange(num_frames, device=x.device).unsqueeze(1)
    index = (source - target + num_frames - 1).expand(batch, heads, -1, -1)
    scores = torch.matmul(by_head(query), by_head(keys).transpose(2, 3)) + relative.gather(3, index)
    seen = torch.cat([source[:left] >= left - filled.unsqueeze(1), valid.squeeze(2)], dim=1)
    scores = scores + (~seen[:, None, None]).to(scores.dtype) * MASKED_SCORE
    return scores.softmax(dim=-1), keys


def _attend(weights: Tensor, values: Tensor) -> Tensor:
    """weights (B, H, s, l + s), values (B, l + s, H d_v) -> (B, s, H d_v)."""
    batch, heads, num_frames, num_sources = weights.shape
    by_head = values.view(batch, num_sources, heads, -1).transpose(1, 2)
    return torch.matmul(weights, by_head).transpose(1, 2).reshape(batch, num_frames, -1)


def _convolve(module: nn.Module, x: Tensor, valid: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
    """One convolution module: x (B, s, D), cache (B, K // 2, D) -> (B, s, D) and the new cache."""
    values, gate = module.in_proj(x).chunk(2, dim=-1)
    values = values * gate.sigmoid() * valid.to(values.dtype)
    convolved = module.depthwise_conv(values, int(x.shape[1]), left=cache)
    new_cache = _last(torch.cat([cache, values], dim=1), cache.shape[1])
    return module.out_proj(swoosh(convolved, "R")), new_cache
