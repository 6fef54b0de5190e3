"""The one geometry of all clients: features of audio of any length, T = ceil(duration x rate) frames (ours).

The encoder runs on the audio as it is: zeros around it would change the inner frames. What it lacks at the
two ends is made by repeating its first and last frame, so that frame j stands for the j-th stretch of 20 ms
(40 ms at 25 Hz) and inner frames equal ``extract``'s bit for bit. At 50 Hz the encoder's frame j is centred
at 20 j + 45 ms, the frame here at 20 j + 5 ms; at 25 Hz 40 j + 55 and 40 j + 15 ms.

Audio shorter than the encoder's shortest is filled up with zeros. Audio longer than ``max_seconds`` runs in
windows with context on both sides; they start where the groups of down-sampled stacks start, and every frame
is taken from exactly one of them.

Legend: B utterances, N samples (16 kHz), V frames of the encoder, T frames here, D channels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.encoders.base import check_waveforms
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.interfaces.upstreams import upstream_id

LAYERS = ("output", "all", "concat", "weighted")
"""What can be asked for beside numbers of layers: the encoder's output, all states one by one, all side by
side, or their learned weighted mean."""
HIDDEN_RATE = 50


@dataclass
class AlignedOutput:
    """Frames and beyond an utterance's length are copies of its last frame."""

    states: list[Tensor]
    """The states that were asked for, (B, T, D) each."""
    lengths: Tensor
    """(B,) int64 frames: ceil(samples / hop)."""


class Window(NamedTuple):
    """A stretch of audio that runs by itself, in samples, and the part of it whose frames are taken."""

    start: int
    stop: int
    first: int
    last: int | None
    """None: to the end."""


def plan_windows(num_samples: int, longest: int, context: int, grid: int) -> list[Window]:
    """The windows of ``num_samples`` samples; one for audio up to ``longest``.

    Args:
      longest: samples of the longest window.
      context: samples at both sides of the taken part, at least.
      grid: windows and taken parts start at multiples of it.
    """
    if num_samples <= longest:
        return [Window(0, num_samples, 0, None)]
    context = -(-context // grid) * grid
    step = (longest - 2 * context) // grid * grid
    windows, first = [], 0
    while True:
        stop = first + step + context
        windows.append(Window(max(0, first - context), min(stop, num_samples), first, first + step))
        if stop >= num_samples:
            return [*windows[:-1], windows[-1]._replace(last=None)]
        first += step


class AlignedEncoder(nn.Module):
    """An encoder in the geometry of this file. It stays in evaluation mode, whatever the client calls;
    gradients reach it.

    Args:
      encoder: what ``load_upstream`` or ``load_encoder`` return.
      layers: one of LAYERS; the number of a hidden state, negative from the last; or several numbers.
      max_seconds: longest audio that runs in one piece.
      context_seconds: at both sides of a window of longer audio.

    Attributes:
      num_states: states there are: hidden states, and the output where it is none of them and at their rate.
      state_dims: channels of each state of the result.
      output_dim: channels of the only state of the result, or of its widest one.
      frame_rate: frames per second.
      hop_samples: samples per frame.
      first_center_ms: centre of frame 0 in ms.

    Raises:
      ValueError: layers that the encoder has not, or that cannot be combined.
    """

    def __init__(
        self,
        encoder: nn.Module,
        layers: str | int | Sequence[int] = "output",
        max_seconds: float = 60.0,
        context_seconds: float = 2.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.dims = list(encoder.hidden_dims)
        if not encoder.ends_with_hidden_state and encoder.frame_rate == HIDDEN_RATE:
            self.dims.append(encoder.output_dim)
        self.num_states = len(self.dims)
        self.layers = layers
        self.indices = self._read_layers(layers)
        self.frame_rate = encoder.frame_rate if self.indices is None else HIDDEN_RATE
        center = encoder.first_frame_center_ms if self.indices is None else encoder.hidden_first_center_ms
        self.hop_samples = round(SAMPLE_RATE / self.frame_rate)
        hop_ms = 1000 / self.frame_rate
        self.shift = int(center // hop_ms)
        self.first_center_ms = center - self.shift * hop_ms
        wide = [encoder.output_dim] if self.indices is None else [self.dims[index] for index in self.indices]
        self.state_dims = [sum(wide)] if layers == "concat" else wide
        if layers == "weighted":
            if len(set(wide)) > 1:
                raise ValueError(
                    f"layers is 'weighted', but the states have {sorted(set(wide))} channels: use 'concat', "
                    "or one layer"
                )
            self.state_dims = wide[:1]
            self.weights = nn.Parameter(torch.zeros(self.num_states))
        self.output_dim = max(self.state_dims)
        self.longest = round(max_seconds * SAMPLE_RATE)
        self.context = round(context_seconds * SAMPLE_RATE)
        self.grid = encoder.grouped_frames * SAMPLE_RATE // HIDDEN_RATE
        if self.longest < 2 * self.context + 4 * self.grid:
            raise ValueError(
                f"max_seconds is {max_seconds} with {context_seconds} s of context on both sides: make it "
                f"{2 * context_seconds + 4 * self.grid / SAMPLE_RATE:g} or more"
            )
        self.train(False)

    def _read_layers(self, layers: str | int | Sequence[int]) -> list[int] | None:
        """Numbers of the states, None for the output alone."""
        if layers == "output":
            return None
        if layers in LAYERS:
            return list(range(self.num_states))
        chosen = [layers] if isinstance(layers, int) else layers
        if isinstance(layers, str):
            try:
                chosen = [int(number) for number in layers.split(",")]
            except ValueError as error:
                raise ValueError(
                    f"layers is {layers!r}: use {', '.join(LAYERS)}, or numbers of layers (3 or 3,6,9)"
                ) from error
        wrong = [index for index in chosen if not -self.num_states <= index < self.num_states]
        if wrong or not chosen:
            raise ValueError(
                f"layers is {layers}: the encoder has states 0..{self.num_states - 1}, negative from the last"
            )
        return [index % self.num_states for index in chosen]

    def state_label(self, number: int) -> str:
        """What tables call the state of that place among those given out: " (state 3)"; an output nothing."""
        return "" if self.indices is None else f" (state {self.indices[number]})"

    def train(self, mode: bool = True) -> "AlignedEncoder":
        """``mode`` is that of the layer weights; the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    @property
    def state_names(self) -> list[str]:
        """A name for each state of the result: "output", "layer_03", "concat" or "weighted"."""
        if isinstance(self.layers, str) and self.layers in ("output", "concat", "weighted"):
            return [self.layers]
        count = len(self.encoder.hidden_dims)
        return [f"layer_{index:02d}" if index < count else "output" for index in self.indices]

    def identity(self) -> str:
        """16 hexadecimal digits that differ wherever the features may: weights, layers, geometry."""
        config = getattr(self.encoder, "config", None)
        facts = (
            upstream_id(self.encoder),
            str(self.layers),
            getattr(config, "padding", None),
            getattr(self.encoder, "fbank_backend", None),
            (self.longest, self.context, self.grid, self.shift),
            self.weights.tolist() if self.layers == "weighted" else None,
        )
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def num_frames(self, num_samples: int) -> int:
        """T of so many samples: ceil(num_samples / hop_samples)."""
        return -(-num_samples // self.hop_samples)

    def forward(
        self, waveforms: Tensor | Sequence[Tensor], lengths: Tensor | Sequence[int] | None = None
    ) -> AlignedOutput:
        """Features of a batch.

        Args:
          waveforms: (B, N), (B, 1, N) or (N,) float in [-1, 1] at 16 kHz, or a list of 1-D tensors.
          lengths: (B,) samples of each utterance; all of it by default.

        Raises:
          ValueError: other shapes, or an utterance without samples.
        """
        waveforms, sizes = self.batch(waveforms, lengths)
        states, counts = self.encoder_frames(waveforms, sizes)
        device = waveforms.device
        frames = torch.tensor([self.num_frames(size) for size in sizes], device=device)
        index = torch.arange(int(max(frames.tolist())), device=device) - self.shift
        last = torch.tensor(counts, device=device).unsqueeze(1) - 1
        index = torch.minimum(index.clamp(min=0).unsqueeze(0), last)  # (B, T)
        states = [state.gather(1, index.unsqueeze(2).expand(-1, -1, state.shape[2])) for state in states]
        return AlignedOutput(states, frames)

    def means(
        self, waveforms: Tensor | Sequence[Tensor], lengths: Tensor | Sequence[int] | None = None
    ) -> list[Tensor]:
        """One vector (B, D) per utterance and state: the mean of the encoder's own frames, none twice."""
        waveforms, sizes = self.batch(waveforms, lengths)
        states, counts = self.encoder_frames(waveforms, sizes)
        counts = torch.tensor(counts, device=waveforms.device).unsqueeze(1)
        valid = torch.arange(states[0].shape[1], device=waveforms.device) < counts
        # Where: frames beyond the length are undefined, and undefined times zero may be undefined.
        wide = [state.to(torch.promote_types(state.dtype, torch.float32)) for state in states]
        return [torch.where(valid.unsqueeze(2), state, 0.0).sum(1) / counts for state in wide]

    def batch(
        self, waveforms: Tensor | Sequence[Tensor], lengths: Tensor | Sequence[int] | None
    ) -> tuple[Tensor, list[int]]:
        """The audio as (B, N) on the encoder's device, and the samples of each utterance."""
        if not isinstance(waveforms, Tensor):
            rows = [torch.as_tensor(row).reshape(-1) for row in waveforms]
            if not rows or lengths is not None:
                raise ValueError("give a list of one or more waveforms without lengths, or a padded batch")
            lengths = [len(row) for row in rows]
            waveforms = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        if waveforms.dim() == 1:
            waveforms = waveforms.unsqueeze(0)
        elif waveforms.dim() == 3 and waveforms.shape[1] == 1:
            waveforms = waveforms.squeeze(1)
        check_waveforms(waveforms)
        sizes = [waveforms.shape[1]] * len(waveforms) if lengths is None else [int(size) for size in lengths]
        wrong = [size for size in sizes if not 1 <= size <= waveforms.shape[1]]
        if wrong or len(sizes) != len(waveforms) or not sizes:
            raise ValueError(
                f"{len(waveforms)} waveforms of {waveforms.shape[1]} samples have the lengths {sizes[:8]}: "
                "give one length per waveform, of 1 sample at least, within the padded audio"
            )
        parameter = next(self.encoder.parameters(), None)
        return waveforms.to(waveforms.device if parameter is None else parameter.device), sizes

    def encoder_frames(self, waveforms: Tensor, sizes: list[int]) -> tuple[list[Tensor], list[int]]:
        """The encoder's own frames of a ``batch``: states (B, V, D), valid frames of each utterance."""
        shortest = self.encoder.min_samples
        waveforms = F.pad(waveforms, (0, max(0, shortest - waveforms.shape[1])))
        if min(sizes) < shortest:
            inside = torch.arange(waveforms.shape[1], device=waveforms.device)
            behind = inside >= torch.tensor(sizes, device=waveforms.device).unsqueeze(1)
            waveforms = waveforms.masked_fill(behind, 0.0)
        sizes = [max(size, shortest) for size in sizes]
        length_of = self.encoder.output_length if self.indices is None else self.encoder.hidden_length
        counts = [int(length_of(size)) for size in sizes]
        plans = [plan_windows(size, self.longest, self.context, self.grid) for size in sizes]
        if max(map(len, plans)) == 1:
            return self._combine(self._run(waveforms, sizes)), counts
        found: list[Tensor] = []
        for number in range(max(map(len, plans))):
            # Windows of one number start at the same sample, unless an utterance runs in one piece.
            for whole in (True, False):
                rows = [r for r, plan in enumerate(plans) if number < len(plan) and (len(plan) == 1) == whole]
                if not rows:
                    continue
                windows = [plans[row][number] for row in rows]
                start = windows[0].start
                ends = [window.stop - start for window in windows]
                states = self._run(waveforms[rows, start : start + max(ends)], ends)
                if not found:
                    found = [state.new_zeros(len(sizes), max(counts), state.shape[2]) for state in states]
                for position, (row, window) in enumerate(zip(rows, windows)):
                    first = window.first // self.hop_samples
                    last = counts[row] if window.last is None else window.last // self.hop_samples
                    skip = start // self.hop_samples
                    for whole_state, state in zip(found, states):
                        whole_state[row, first:last] = state[position, first - skip : last - skip]
        return self._combine(found), counts

    def _run(self, waveforms: Tensor, sizes: list[int]) -> list[Tensor]:
        output = self.encoder.extract(waveforms, torch.tensor(sizes, device=waveforms.device))
        if self.indices is None:
            return [output.encoder_out]
        hidden = output.hidden_states
        return [hidden[index] if index < len(hidden) else output.encoder_out for index in self.indices]

    def _combine(self, states: list[Tensor]) -> list[Tensor]:
        if self.layers == "concat":
            return [torch.cat(states, dim=2)]
        if self.layers == "weighted":
            return [sum(weight * state for weight, state in zip(self.weights.softmax(0), states))]
        return states
