"""What self-distillation needs of each kind of encoder: layers of student and teacher, side by side.

A view is all that the task knows of an encoder. A new kind gets a class here and a line in ``view_of``.

Legend: B utterances, T frames of a layer, D its channels.
"""

import copy
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear_lib.data.batch import Batch
from spear_lib.encoders.kinds import Encoder
from spear_lib.encoders.spidr import SpidrEncoder
from spear_lib.encoders.spidr.extractor import standardise
from spear_lib.encoders.spidr.layers import SpidrTransformer, run_blocks
from spear_lib.encoders.step_context import StepContext
from spear_lib.encoders.zipformer import SpearEncoder
from spear_lib.features.masking import student_mask


class LayerPair(NamedTuple):
    """One layer of student and teacher on the same audio."""

    student: Tensor
    """(B, T, D) what the head of this codebook reads."""
    teacher: Tensor
    """(B, T, D) what is clustered; no gradient."""
    valid: Tensor
    """(B, T) bool."""
    masked: Tensor
    """(B, T) bool, valid frames that the student did not see; without a mask all valid ones."""
    duration: int = 1
    """Of a frame, in 20 ms."""


class Seen(NamedTuple):
    """One forward of student and teacher."""

    pairs: list[LayerPair]
    encoder_out: Tensor
    """(B, T', D') of the student."""
    lengths: Tensor
    """(B,) valid frames of encoder_out."""
    unused: Tensor
    """0 as a float32 scalar that depends on what no pair does: every trained parameter needs a gradient in
    every step, for DDP."""


class View(Protocol):
    """An encoder as self-distillation sees it."""

    names: list[str]
    """Of the layers, as in the names of metrics ("layer_05")."""
    dims: list[int]
    """Channels of each."""
    copied: tuple[str, ...]
    """Beginnings of the names of parameters that the teacher takes over at once."""

    def student(self) -> nn.Module:
        """The part of the encoder that the teacher is a second one of."""

    def new_teacher(self) -> nn.Module:
        """The teacher at the start of training, without gradients."""

    def heads(self, codebook_size: int) -> nn.ModuleList | None:
        """New heads (D -> codebook_size), or None where the encoder has its own."""

    def untrained(self) -> list[nn.Parameter]:
        """Parameters of the encoder that the objective does not reach."""

    def forward(self, teacher: nn.Module, batch: Batch) -> Seen:
        """Student on what ``batch.time_mask`` leaves, teacher on everything."""


class SpidrView:
    """Feed-forward outputs of the last layers; the teacher is a Transformer on the student's own frames."""

    copied = ("pos_conv_embed.",)

    def __init__(self, encoder: SpidrEncoder):
        config = encoder.config
        self.encoder = encoder
        self.compiled = False
        self.run_blocks = run_blocks
        self.names = [f"layer_{layer:02d}" for layer in config.head_layers]
        self.dims = [config.hidden_dim] * config.num_codebooks

    def compile(self) -> None:
        """From here on the blocks of both Transformers run as torch.compile makes them, as one graph for all
        lengths. Not the positions: with convolutions inside, each length would have its own."""
        self.compiled = True
        self.run_blocks = torch.compile(run_blocks, dynamic=True)

    def student(self) -> nn.Module:
        return self.encoder.student

    def new_teacher(self) -> nn.Module:
        """A copy of the student whose blocks have new linear layers (spec spidr §3)."""
        teacher = SpidrTransformer(StepContext(), self.encoder.config)
        redrawn = {name: value.clone() for name, value in teacher.state_dict().items()}
        teacher.load_state_dict(self.encoder.student.state_dict())
        linear = [name for name, module in teacher.named_modules() if isinstance(module, nn.Linear)]
        with torch.no_grad():
            for name, parameter in teacher.named_parameters():
                if name.rpartition(".")[0] in linear:
                    parameter.copy_(redrawn[name])
        return teacher.requires_grad_(False)

    def heads(self, codebook_size: int) -> None:
        size = self.encoder.config.codebook_size
        if codebook_size != size:
            raise ValueError(
                f"objective.codebook_size is {codebook_size}, but the heads of the encoder tell {size} codes "
                "apart: set both to the same number (spidr.codebook_size)"
            )

    def untrained(self) -> list[nn.Parameter]:
        """Behind the last feed-forward output comes one norm; DinoSR uses it (spec spidr §2.5)."""
        if self.encoder.config.heads_on == "output":
            return []
        return list(self.encoder.student.layers[-1].final_layer_norm.parameters())

    def forward(self, teacher: nn.Module, batch: Batch) -> Seen:
        encoder = self.encoder
        encoder.take_step(len(batch.num_samples), batch.waveforms.device)
        waveforms = standardise(batch.waveforms, batch.num_samples)
        x, lengths, valid = encoder.project(waveforms, batch.num_samples)
        all_valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if valid is None else valid
        masked = None
        if batch.time_mask is not None:
            masked = encoder.masked_frames(batch.time_mask, x.shape[1]) & all_valid
        if self.compiled:  # a batch without padding needs no graph of its own
            valid = all_valid
        hidden_states, output = encoder.student(encoder.hide(x, masked), valid, self.run_blocks)
        with torch.no_grad():
            targets, _ = teacher(x.detach(), valid, self.run_blocks)
        scored = all_valid if masked is None else masked
        inputs = encoder.head_inputs(hidden_states, output)
        pairs = [
            LayerPair(student, target, all_valid, scored)
            for student, target in zip(inputs, targets[-len(inputs) :])
        ]
        return Seen(pairs, output, lengths, x.new_zeros((), dtype=torch.float32))


class ZipformerView:
    """Outputs of the last layers of chosen stacks, each at its own rate; the teacher is a whole encoder
    (ours).

    A frame of a slower stack counts as masked when at least half of its 50 Hz frames are.
    """

    copied = ()

    def __init__(self, encoder: SpearEncoder, stacks: list[int]):
        config = encoder.config
        self.encoder = encoder
        chosen = stacks or list(range(1, config.num_stacks + 1))
        wrong = [stack for stack in chosen if not 1 <= stack <= config.num_stacks]
        if wrong or len(set(chosen)) != len(chosen):
            raise ValueError(
                f"objective.stacks is {chosen}: different numbers from 1 to {config.num_stacks}, the stacks "
                "of this encoder"
            )
        layers = config.per_stack("num_encoder_layers")
        self.places = [sum(layers[:stack]) - 1 for stack in chosen]
        self.names = [f"stack_{stack}" for stack in chosen]
        self.dims = [config.per_stack("encoder_dim")[stack - 1] for stack in chosen]

    def student(self) -> nn.Module:
        return self.encoder

    def new_teacher(self) -> nn.Module:
        """A copy of the encoder; nothing is drawn again."""
        return copy.deepcopy(self.encoder).requires_grad_(False)

    def heads(self, codebook_size: int) -> nn.ModuleList:
        return nn.ModuleList(nn.Linear(dim, codebook_size) for dim in self.dims)

    def untrained(self) -> list[nn.Parameter]:
        return []

    def forward(self, teacher: nn.Module, batch: Batch) -> Seen:
        output = self.encoder.extract(batch.waveforms, batch.num_samples, batch.time_mask, batch.channel_mask)
        with torch.no_grad():
            targets = teacher.extract(batch.waveforms, batch.num_samples).hidden_states
        num_frames = output.hidden_states.num_frames
        lengths = self.encoder.hidden_length(batch.num_samples)
        valid = torch.arange(num_frames, device=lengths.device) < lengths.unsqueeze(1)
        masked = valid
        if batch.time_mask is not None:
            masked = student_mask(batch.time_mask, num_frames) & valid
        pairs = []
        for place in self.places:
            student, factor = output.hidden_states.items[place]
            here = valid[:, ::factor]
            hidden = _slower(masked, factor) & here
            pairs.append(LayerPair(student, targets.items[place][0], here, hidden, factor))
        unused = 0.0 * output.encoder_out.float().sum()
        return Seen(pairs, output.encoder_out, output.lengths, unused)


def _slower(masked: Tensor, factor: int) -> Tensor:
    """(B, T) bool -> (B, T / factor rounded up) bool: frames of which at least half are masked."""
    if factor == 1:
        return masked
    padded = F.pad(masked, (0, -masked.shape[1] % factor)).unflatten(1, (-1, factor))
    return 2 * padded.sum(dim=2) >= factor


def view_of(encoder: Encoder, stacks: list[int]) -> View:
    """The view of an encoder.

    Args:
      stacks: of a Zipformer, counted from 1; none: all.

    Raises:
      ValueError: a kind that has none.
    """
    if isinstance(encoder, SpidrEncoder):
        if stacks:
            raise ValueError(
                "objective.stacks is for a Zipformer; a spidr encoder has its codebooks on its last "
                "spidr.num_codebooks layers"
            )
        return SpidrView(encoder)
    if isinstance(encoder, SpearEncoder):
        return ZipformerView(encoder, stacks)
    raise ValueError(
        f"self-distillation knows no layers of a {encoder.encoder_type} encoder: use encoder_type spidr or "
        "zipformer"
    )
