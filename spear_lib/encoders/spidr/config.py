"""Shape and training behaviour of SpidR's encoder."""

from dataclasses import dataclass, replace

HEADS_ON = ("layers", "output")


@dataclass(frozen=True)
class SpidrConfig:
    """Settings of one encoder; the defaults are the published SpidR base (spec spidr §2, 90 million
    parameters)."""

    type: str = "spidr"
    """What tells these settings from those of other kinds in files; always "spidr"."""
    conv_channels: int = 512
    """Channels of the seven convolutions of the waveform extractor (reference)."""
    hidden_dim: int = 768
    """Width of the layers (reference)."""
    num_layers: int = 12
    """Transformer layers (reference)."""
    num_heads: int = 12
    """Attention heads (reference)."""
    feedforward_dim: int = 3072
    """Width of the feed-forward networks (reference)."""
    position_kernel: int = 95
    """Frames seen by the convolutions that encode positions, all of them together (reference)."""
    position_depth: int = 5
    """How many such convolutions follow each other (reference)."""
    position_groups: int = 16
    """Groups of each of them (reference)."""
    qkv_bias: bool = False
    """Queries, keys and values have biases (True: the original DinoSR)."""
    num_codebooks: int = 8
    """Heads; one for each of the last layers (reference)."""
    codebook_size: int = 256
    """Codes that a head tells apart (reference)."""
    heads_on: str = "layers"
    """layers: a head reads the feed-forward output of its own layer (SpidR); output: all read the output of
    the last block (DinoSR)."""
    dropout: float = 0.1
    """Dropout before the first block and after attention and feed-forward, one draw per utterance, frame and
    channel (rate: reference; keyed by utterance: ours)."""
    attention_dropout: float = 0.1
    """Dropout of attention weights, one draw per utterance, head and source frame, the same for all target
    frames (rate: reference; the sharing is ours: it needs no T x T draws and keeps the fast kernels)."""
    layerdrop: float = 0.0
    """Probability per utterance that a block has no effect on the next one; its feed-forward output is
    computed all the same (reference: 0, DinoSR 0.05; per utterance: ours)."""

    def __post_init__(self):
        if self.type != "spidr":
            raise ValueError(f"type is {self.type!r}; settings of a SpidR encoder have 'spidr'")
        for name in (
            "conv_channels",
            "hidden_dim",
            "num_layers",
            "num_heads",
            "feedforward_dim",
            "position_depth",
            "codebook_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name, divisor in (("num_heads", self.num_heads), ("position_groups", self.position_groups)):
            if divisor < 1 or self.hidden_dim % divisor:
                raise ValueError(
                    f"hidden_dim {self.hidden_dim} is not a multiple of {name} {divisor}; change one of them"
                )
        if not 1 <= self.num_codebooks <= self.num_layers:
            raise ValueError(
                f"num_codebooks is {self.num_codebooks}; each has a layer, so it goes from 1 to "
                f"num_layers = {self.num_layers}"
            )
        if self.heads_on not in HEADS_ON:
            raise ValueError(f"heads_on is {self.heads_on!r}; use {' or '.join(HEADS_ON)}")
        for name in ("dropout", "attention_dropout", "layerdrop"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")

    @property
    def head_layers(self) -> list[int]:
        """Layers of the codebooks, counted from 1: the last ``num_codebooks``."""
        return list(range(self.num_layers - self.num_codebooks + 1, self.num_layers + 1))

    @property
    def convolution_kernel(self) -> int:
        """Frames seen by one of the convolutions that encode positions."""
        return max(3, self.position_kernel // self.position_depth)

    def structure(self) -> list:
        """The settings that change the output but no shape: part of an encoder's identity."""
        return [self.type, self.num_heads, self.heads_on]

    @classmethod
    def base(cls, **changes) -> "SpidrConfig":
        """The published SpidR base; ``changes`` replace single fields."""
        return replace(cls(), **changes)

    @classmethod
    def mini(cls, **changes) -> "SpidrConfig":
        """A small encoder for tests and two CPU cores (ours)."""
        mini = cls(
            conv_channels=48,
            hidden_dim=128,
            num_layers=4,
            num_heads=4,
            feedforward_dim=512,
            position_kernel=45,
            position_depth=3,
            position_groups=8,
            num_codebooks=3,
            codebook_size=64,
        )
        return replace(mini, **changes)
