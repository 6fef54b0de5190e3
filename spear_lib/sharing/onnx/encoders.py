"""Zipformer encoders as graphs: whole utterances in one run, and chunk by chunk (ours).

The streaming form is the one that the online recogniser of sherpa-onnx reads for ``model_type: zipformer2``:
every step takes T fbank frames, ``decode_chunk_len`` after those of the step before, with everything that the
encoder remembers as inputs and outputs. Of each layer, in order of computation and in this order:

    cached_key (l, N, H d_k), cached_nonlin_attn (1, N, l, 3 D / 4), cached_val1 (l, N, H d_v),
    cached_val2 (l, N, H d_v), cached_conv1 (N, D, K // 2), cached_conv2 (N, D, K // 2)

then ``embed_states`` (N, 128, 3, W) and ``processed_lens`` (N,) int64. Streams are joined along N.

Legend: N streams or utterances, T fbank frames (10 ms), F mel bins, U encoder frames, D encoder channels, l
frames of left context, H heads, K kernel, W frequency positions of the front end.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.encoders.zipformer import SpearEncoder
from spear_lib.encoders.zipformer.streaming import LayerState, StreamingEncoder, StreamingState
from spear_lib.sharing.onnx.files import Graph, check_equal
from spear_lib.sharing.onnx.runtime import OnnxPart, OnnxStreamingEncoder

_VERIFIED_SIZES = ((1, 9), (1, 16), (2, 77), (3, 300), (2, 1001))  # (N, T)
_EMBED_CHANNELS = 128  # of embed_states, fixed in the program of sherpa-onnx; it reads no metadata for them
_LAYER_STATES = ("key", "nonlin_attn", "val1", "val2", "conv1", "conv2")


class EncoderGraph(Protocol):
    """One way to run an encoder."""

    def graph(self, facts: dict[str, Any]) -> Graph:
        """What is recorded, with ``facts`` as further metadata."""

    def verify(self, part: OnnxPart, tolerance: float) -> float:
        """Largest difference of the file to PyTorch; RuntimeError above ``tolerance`` (``check_equal``)."""


def check_encoder(encoder: nn.Module) -> None:
    """Raises ValueError where ``encoder`` is none that can be exported."""
    if not isinstance(encoder, SpearEncoder):
        raise ValueError(
            f"the encoder is a {type(encoder).__name__}: only Zipformer encoders, which read log-mel "
            "features, can be exported (sherpa-onnx has no front end for the others)"
        )


def layer_names(encoder: SpearEncoder) -> list[str]:
    """Names of the outputs of single layers: layer_01, layer_02, ..."""
    return [f"layer_{number:02d}" for number in range(1, len(encoder.hidden_dims) + 1)]


def _metadata(encoder: SpearEncoder, comment: str, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "zipformer2",
        "version": "1",
        "model_author": "spear_lib",
        "comment": comment,
        "feature_dim": encoder.config.num_mel_bins,
        "sample_rate": encoder.sample_rate,
        "frame_rate": encoder.frame_rate,
        "first_frame_center_ms": encoder.first_frame_center_ms,
        **facts,
    }


def _fbank(random: torch.Generator, *shape: int) -> Tensor:
    """Random numbers of about the size of log-mel energies."""
    return 3.0 * torch.randn(*shape, generator=random) - 8.0


class _Whole(nn.Module):
    def __init__(self, encoder: SpearEncoder, project: nn.Module, layers: bool):
        super().__init__()
        self.encoder, self.project, self.layers = encoder, project, layers

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, ...]:
        embedded, lengths = self.encoder.encoder_embed(x, x_lens)
        encoded, lengths, hidden, _ = self.encoder.encoder(embedded, lengths)
        return self.project(encoded), lengths, *(hidden if self.layers else ())


class WholeUtterances:
    """x (N, T, F), x_lens (N,) -> encoder_out (N, U, D), encoder_out_lens (N,), and layers where wanted.

    Args:
      project: what follows the encoder in the same file.
      layers: also the output of every layer, layer_01 ... (N, V, D_i), V frames at 50 Hz.
    """

    def __init__(self, encoder: SpearEncoder, project: nn.Module, layers: bool = False):
        check_encoder(encoder)
        self.encoder, self.project, self.layers = encoder, project, layers

    def graph(self, facts: dict[str, Any]) -> Graph:
        names = layer_names(self.encoder) if self.layers else []
        random = torch.Generator().manual_seed(0)
        return Graph(
            _Whole(self.encoder, self.project, self.layers),
            {
                "x": torch.randn(2, 203, self.encoder.config.num_mel_bins, generator=random),
                "x_lens": torch.tensor([203, 150]),
            },
            ["encoder_out", "encoder_out_lens", *names],
            {
                "x": {0: "N", 1: "T"},
                "x_lens": {0: "N"},
                "encoder_out": {0: "N", 1: "U"},
                "encoder_out_lens": {0: "N"},
                **{name: {0: "N", 1: "V"} for name in names},
            },
            _metadata(self.encoder, "offline Zipformer encoder of spear_lib", facts),
        )

    @torch.no_grad()
    def verify(self, part: OnnxPart, tolerance: float) -> float:
        """Over several sizes of batches, with padding."""
        encoder, path, largest = self.encoder, part.path, 0.0
        random = torch.Generator().manual_seed(1)
        for batch, frames in _VERIFIED_SIZES:
            fbank = _fbank(random, batch, frames, encoder.config.num_mel_bins)
            lengths = torch.randint(9, frames + 1, (batch,), generator=random)
            lengths[0] = frames
            expected = encoder(fbank, lengths)
            found, found_lengths, *layers = part(x=fbank, x_lens=lengths)
            if found_lengths.tolist() != expected.lengths.tolist():
                raise RuntimeError(
                    f"{path.name} gives lengths {found_lengths.tolist()}, not {expected.lengths}"
                )
            ours = self.project(expected.encoder_out)
            for row, length in enumerate(expected.lengths.tolist()):
                place = f"{path.name} (batch of {batch}, {frames} frames)"
                largest = max(largest, check_equal(place, ours[row, :length], found[row, :length], tolerance))
                frames_50 = int(lengths[row] - 7) // 2
                for name, mine, other in zip(layer_names(encoder), expected.hidden_states, layers):
                    mine, other = mine[row, :frames_50], other[row, :frames_50]
                    largest = max(largest, check_equal(f"{place}, {name}", mine, other, tolerance))
        return largest


def to_sherpa(state: StreamingState) -> list[Tensor]:
    """The tensors of ``state`` in the order and the shapes of the module's head."""
    tensors = []
    for layer in state.layers:
        tensors += [
            layer.keys.transpose(0, 1),
            layer.gated.unsqueeze(0),
            layer.values1.transpose(0, 1),
            layer.values2.transpose(0, 1),
            layer.convolution1.transpose(1, 2),
            layer.convolution2.transpose(1, 2),
        ]
    embed = state.front_end.permute(0, 3, 1, 2)  # (N, C, 3, W)
    unused = _EMBED_CHANNELS - embed.shape[1]
    return [*tensors, F.pad(embed, (0, 0, 0, 0, 0, unused)), state.processed]


def from_sherpa(tensors: list[Tensor] | tuple[Tensor, ...], channels: int) -> StreamingState:
    """The state of ``tensors``; ``channels``: those of the front end's last convolution."""
    *layers, embed, processed = tensors
    states = []
    for start in range(0, len(layers), len(_LAYER_STATES)):
        keys, gated, values1, values2, convolution1, convolution2 = layers[start : start + len(_LAYER_STATES)]
        states.append(
            LayerState(
                keys.transpose(0, 1),
                gated.squeeze(0),
                values1.transpose(0, 1),
                values2.transpose(0, 1),
                convolution1.transpose(1, 2),
                convolution2.transpose(1, 2),
            )
        )
    return StreamingState(embed[:, :channels].permute(0, 2, 3, 1), states, processed)


class _Step(nn.Module):
    def __init__(self, streaming: StreamingEncoder, project: nn.Module):
        super().__init__()
        self.streaming, self.encoder, self.project = streaming, streaming.encoder, project
        self.channels = streaming.encoder.config.frontend_channels[-1]

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        lengths = torch.full_like(states[-1], self.streaming.block_frames)
        output, state = self.streaming.step(x, lengths, from_sherpa(states, self.channels))
        return self.project(output.encoder_out), *to_sherpa(state)


class Chunks:
    """x (N, T, F) and the states of the module's head -> encoder_out (N, U, D) and new states.

    Blocks are always whole: a stream ends with silence, as ``T`` frames are what the recogniser waits for.

    Args:
      project: what follows the encoder in the same file.

    Raises:
      ValueError: what the form cannot express: unlimited left context, a wide front end.
    """

    def __init__(self, streaming: StreamingEncoder, project: nn.Module):
        check_encoder(streaming.encoder)
        config = streaming.encoder.config
        if streaming.left_context_frames < 0:
            raise ValueError(
                "left_context_frames is -1 (everything): the state of a streaming file has a fixed size; "
                "give left_context_frames, one of those of its training"
            )
        if config.frontend_channels[-1] > _EMBED_CHANNELS:
            raise ValueError(
                f"the front end has {config.frontend_channels[-1]} channels: sherpa-onnx keeps a state of "
                f"{_EMBED_CHANNELS} and no more; such an encoder can only be exported for whole utterances"
            )
        self.streaming, self.project = streaming, project

    def graph(self, facts: dict[str, Any]) -> Graph:
        streaming, encoder = self.streaming, self.streaming.encoder
        config = encoder.config
        num_layers = sum(config.per_stack("num_encoder_layers"))
        names = [f"{name}_{layer}" for layer in range(num_layers) for name in _LAYER_STATES]
        states = [*(f"cached_{name}" for name in names), "embed_states", "processed_lens"]
        # Attention states are (l, N, ...), the others (N, ...).
        batch_axis = {
            name: 0 if name.startswith(("cached_conv", "embed", "processed")) else 1 for name in states
        }
        examples = to_sherpa(streaming.initial_state(2))
        random = torch.Generator().manual_seed(0)
        fbank = torch.randn(2, streaming.block_frames, config.num_mel_bins, generator=random)
        axes = {"x": {0: "N"}, "encoder_out": {0: "N"}}
        for name, axis in batch_axis.items():
            axes[name] = axes[f"new_{name}"] = {axis: "N"}

        def numbers(values: Any) -> str:
            return ",".join(str(value) for value in values)

        left = [streaming.left_context_frames // factor for factor in config.downsampling_factor]
        shapes = {
            "decode_chunk_len": streaming.block_shift,
            "T": streaming.block_frames,
            "num_encoder_layers": numbers(config.per_stack("num_encoder_layers")),
            "encoder_dims": numbers(config.per_stack("encoder_dim")),
            "cnn_module_kernels": numbers(config.per_stack("cnn_module_kernel")),
            "left_context_len": numbers(left),
            "query_head_dims": numbers(config.per_stack("query_head_dim")),
            "value_head_dims": numbers(config.per_stack("value_head_dim")),
            "num_heads": numbers(config.per_stack("num_heads")),
        }
        return Graph(
            _Step(streaming, self.project),
            {"x": fbank, **dict(zip(states, examples, strict=True))},
            ["encoder_out", *(f"new_{name}" for name in states)],
            axes,
            _metadata(encoder, "streaming Zipformer encoder of spear_lib", {**shapes, **facts}),
        )

    @torch.no_grad()
    def verify(self, part: OnnxPart, tolerance: float) -> float:
        """Over streams that join at different times, until every left context is full; states as well."""
        streaming, path, largest = self.streaming, part.path, 0.0
        channels = streaming.encoder.config.frontend_channels[-1]
        theirs = OnnxStreamingEncoder(part)
        random = torch.Generator().manual_seed(1)
        for batch in (1, 3):
            state = streaming.initial_state(batch)
            tensors = theirs.initial_state(batch)
            for index in range(streaming.left_context_frames // streaming.chunk_size + 2):
                block = _fbank(random, batch, streaming.block_frames, streaming.encoder.config.num_mel_bins)
                lengths = torch.full((batch,), streaming.block_frames)
                output, state = streaming.step(block, lengths, state)
                encoded, tensors = theirs.step(block, tensors)
                place = f"{path.name} ({batch} streams, chunk {index})"
                ours = [self.project(output.encoder_out), *to_sherpa(state)]
                for mine, other in zip(ours, [encoded, *tensors], strict=True):
                    largest = max(largest, check_equal(place, mine, other, tolerance))
                if index == 0 and batch > 1:  # one stream begins anew
                    state = _one_anew(streaming, state)
                    tensors = to_sherpa(_one_anew(streaming, from_sherpa(tensors, channels)))
        return largest


def _one_anew(streaming: StreamingEncoder, state: StreamingState) -> StreamingState:
    """Three streams of which the last begins."""
    return StreamingState.concatenate([state.select([0, 1]), streaming.initial_state(1)])
