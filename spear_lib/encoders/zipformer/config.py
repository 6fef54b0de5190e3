"""Shape and training behaviour of the SPEAR Zipformer encoder."""

from dataclasses import dataclass, replace
from typing import ClassVar

_PER_STACK = (
    "downsampling_factor",
    "num_encoder_layers",
    "encoder_dim",
    "feedforward_dim",
    "encoder_unmasked_dim",
    "num_heads",
    "query_head_dim",
    "pos_head_dim",
    "value_head_dim",
    "cnn_module_kernel",
    "checkpoint_activations",
)
_TUPLES = (*_PER_STACK, "frontend_channels", "chunk_size", "left_context_frames")


_TRAINING = (
    "balancer",
    "whiten",
    "limit_gradients",
    "stochastic",
    "constant_attention",
    "checkpoint_activations",
    "warmup_batches",
)
_STRUCTURE = ("downsampling_factor", "num_heads", "query_head_dim", "pos_head_dim", "value_head_dim")


@dataclass(frozen=True)
class ZipformerConfig:
    """Settings of one encoder; the defaults are SPEAR Base (paper Table 8).

    Fields that describe stacks take one value per stack, or a single value that holds for all stacks.
    """

    num_mel_bins: int = 128
    """Mel bins of the input log-mel features (paper §4: 128)."""
    frontend_channels: tuple[int, ...] = (8, 32, 128)
    """Channels of the three front-end convolutions; the ConvNeXt hidden width is three times the last
    (published models: 8, 32, 128; narrower ones for small models are ours)."""
    downsampling_factor: tuple[int, ...] = (1, 2, 4, 8, 4, 2, 1)
    """Down-sampling of each stack relative to 50 Hz (paper Table 8)."""
    num_encoder_layers: tuple[int, ...] = (1, 2, 3, 3, 1, 1, 1)
    """Layers in each stack (paper Table 8)."""
    encoder_dim: tuple[int, ...] = (512,)
    """Model width of each stack (paper Table 8)."""
    feedforward_dim: tuple[int, ...] = (1536,)
    """Width of the second feed-forward module (paper Table 8); the first has 3/4 and the third 5/4 of it."""
    encoder_unmasked_dim: tuple[int, ...] = (256,)
    """Channels that the training-time feature mask never drops (reference)."""
    num_heads: tuple[int, ...] = (8,)
    """Attention heads (paper Table 8)."""
    query_head_dim: tuple[int, ...] = (32,)
    """Width of one query/key head (Zipformer)."""
    pos_head_dim: tuple[int, ...] = (4,)
    """Width of one positional query head (Zipformer)."""
    value_head_dim: tuple[int, ...] = (12,)
    """Width of one value head (Zipformer)."""
    pos_dim: int = 48
    """Width of the relative positional encoding (Zipformer)."""
    cnn_module_kernel: tuple[int, ...] = (31, 31, 15, 15, 15, 31, 31)
    """Kernel of the depthwise convolutions in frames of the stack, odd (paper Table 8)."""
    causal: bool = False
    """Causal convolutions and chunked attention, for streaming models (ours; published models: false)."""
    chunk_size: tuple[int, ...] = (-1,)
    """Attention chunk sizes in 50 Hz frames, -1 = whole utterance; training draws one per step,
    evaluation uses the first. Only with causal."""
    left_context_frames: tuple[int, ...] = (-1,)
    """Left context in 50 Hz frames, -1 = unlimited; drawn like chunk_size. Only with causal."""
    output_downsampling_factor: int = 1
    """1: output at 50 Hz, 2: at 25 Hz (paper §4: 50 Hz)."""
    padding: str = "exact"
    """exact: the output of an utterance does not depend on its batch mates (ours). reference: padding leaks
    in as in the published training code, for parity."""
    balancer: bool = True
    """Balancers shape the gradients in training (Zipformer)."""
    whiten: bool = True
    """Whiteners shape the gradients in training (Zipformer)."""
    limit_gradients: bool = True
    """Parameter limiters and the attention score penalty in training (Zipformer)."""
    stochastic: bool = True
    """Dropouts, layer and branch skipping, feature masks in training (Zipformer)."""
    constant_attention: bool = False
    """In some training calls the non-linear attention averages over time with equal weights (Zipformer). The
    code that trained the published SPEAR models meant to do so too, but tests for "not training" where
    "training" was meant, so it never happened: false repeats those models, true is what Zipformer does."""
    checkpoint_activations: tuple[bool, ...] = (False,)
    """Stacks whose layers keep only their inputs in training and are computed again in the backward pass: the
    same gradients, a third more time, half the memory (ours; meant for XLarge on one device)."""
    warmup_batches: float = 4000.0
    """Batch count at which the layer-skip warm-up ends (Zipformer)."""

    TRAINING: ClassVar[tuple[str, ...]] = _TRAINING
    """Fields that say how it trains, and nothing of what it computes."""

    def __post_init__(self):
        for name in _TUPLES:
            value = getattr(self, name)
            kind = bool if name == "checkpoint_activations" else int
            value = (value,) if isinstance(value, int) else tuple(kind(item) for item in value)
            object.__setattr__(self, name, value)
        if len(self.frontend_channels) != 3:
            raise ValueError(f"frontend_channels needs 3 numbers, got {list(self.frontend_channels)}")
        stacks = len(self.downsampling_factor)
        for name in _PER_STACK:
            length = len(getattr(self, name))
            if length not in (1, stacks):
                raise ValueError(
                    f"{name} has {length} values but downsampling_factor describes {stacks} stacks; "
                    f"give {stacks} values, or one for all stacks"
                )
        if self.num_mel_bins < 7:
            raise ValueError(f"num_mel_bins is {self.num_mel_bins}; the front end needs at least 7")
        if self.output_downsampling_factor not in (1, 2):
            raise ValueError(
                f"output_downsampling_factor is {self.output_downsampling_factor}; use 1 (50 Hz) or 2"
            )
        if self.padding not in ("exact", "reference"):
            raise ValueError(f"padding is {self.padding!r}; use 'exact' or 'reference'")
        for kernel in self.cnn_module_kernel:
            if kernel % 2 == 0:
                raise ValueError(f"cnn_module_kernel {kernel} is even; use an odd number")
        if self.pos_dim % 2:
            raise ValueError(f"pos_dim {self.pos_dim} is odd; use an even number")
        for width, unmasked in zip(self.per_stack("encoder_dim"), self.per_stack("encoder_unmasked_dim")):
            if unmasked > width:
                raise ValueError(f"encoder_unmasked_dim {unmasked} exceeds encoder_dim {width}; lower it")
        if not self.causal and (self.chunk_size != (-1,) or self.left_context_frames != (-1,)):
            raise ValueError("chunk_size and left_context_frames need causal: true")
        for size in self.chunk_size:
            for factor in self.downsampling_factor:
                if size != -1 and (size <= 0 or size % factor):
                    raise ValueError(
                        f"chunk_size {size} is not a multiple of the down-sampling factor {factor}"
                    )

    @property
    def num_stacks(self) -> int:
        """Number of stacks."""
        return len(self.downsampling_factor)

    def per_stack(self, name: str) -> tuple[int, ...]:
        """The values of field ``name``, one per stack."""
        value = getattr(self, name)
        return value * self.num_stacks if len(value) == 1 else value

    def structure(self) -> list:
        """The settings that change the output but no shape: part of an encoder's identity."""
        facts: list = [self.per_stack(name) for name in _STRUCTURE]
        return facts + [self.pos_dim, self.causal, self.chunk_size, self.left_context_frames]

    @classmethod
    def base(cls, **changes) -> "ZipformerConfig":
        """SPEAR Base, 93,289,489 parameters (paper Table 8: 94M); ``changes`` replace single fields."""
        return replace(cls(), **changes)

    @classmethod
    def large(cls, **changes) -> "ZipformerConfig":
        """SPEAR Large, 326,951,472 parameters (paper Table 8: 327M)."""
        large = cls(
            num_encoder_layers=(1, 2, 2, 3, 1, 1, 1),
            encoder_dim=(1024,),
            feedforward_dim=(3072,),
            encoder_unmasked_dim=(512,),
        )
        return replace(large, **changes)

    @classmethod
    def xlarge(cls, **changes) -> "ZipformerConfig":
        """SPEAR XLarge, 596,973,362 parameters (paper Table 8: 600M)."""
        xlarge = cls(
            num_encoder_layers=(1, 2, 3, 4, 1, 1, 1),
            encoder_dim=(1280,),
            feedforward_dim=(3840,),
            encoder_unmasked_dim=(768,),
        )
        return replace(xlarge, **changes)

    @classmethod
    def mini(cls, **changes) -> "ZipformerConfig":
        """A small encoder that trains on two CPU cores, 2,052,237 parameters (ours).

        All layers run at 25 Hz or less and the front end is narrow: forward and backward in training take
        one second per 200 seconds of audio (two cores of an AMD EPYC, AVX-512, batches of 16 s). With layers
        at 50 Hz, factors (1, 2, 4, 2, 1), it is 120 seconds of audio at 3.0 M parameters.
        """
        mini = cls(
            frontend_channels=(4, 8, 16),
            downsampling_factor=(2, 4, 2),
            num_encoder_layers=(1, 2, 1),
            encoder_dim=(128,),
            feedforward_dim=(384,),
            encoder_unmasked_dim=(96,),
            num_heads=(4,),
            query_head_dim=(16,),
            cnn_module_kernel=(31, 15, 31),
        )
        return replace(mini, **changes)
