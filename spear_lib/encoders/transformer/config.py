"""Shape and training behaviour of the Transformer encoder."""

from dataclasses import dataclass, replace
from typing import ClassVar


@dataclass(frozen=True)
class TransformerConfig:
    """Settings of one encoder; the defaults are WavLM Base (paper appendix F.3, 94 million parameters)."""

    type: str = "transformer"
    """What tells these settings from those of a Zipformer in files; always "transformer"."""
    conv_channels: int = 512
    """Channels of the seven convolutions of the waveform extractor (WavLM)."""
    hidden_dim: int = 768
    """Width of the layers (WavLM Base)."""
    num_layers: int = 12
    """Transformer layers (WavLM Base)."""
    num_heads: int = 12
    """Attention heads (WavLM Base)."""
    feedforward_dim: int = 3072
    """Width of the feed-forward networks (WavLM Base)."""
    position_kernel: int = 128
    """Frames seen by the convolution that encodes positions (WavLM)."""
    position_groups: int = 16
    """Groups of that convolution (WavLM)."""
    num_buckets: int = 320
    """Buckets of relative positions in the attention bias, both directions together (WavLM)."""
    max_distance: int = 800
    """Frames from which on all distances share a bucket (WavLM)."""
    dropout: float = 0.1
    """Dropout of the projected features, attention and feed-forward outputs, one draw per utterance and
    channel (rate: WavLM; shared over time as in our Zipformer: ours, it is keyed by utterance and cheap)."""
    layerdrop: float = 0.05
    """Probability per utterance that a layer is skipped (rate: WavLM Base; per utterance: ours)."""

    TRAINING: ClassVar[tuple[str, ...]] = ("dropout", "layerdrop")
    """Fields that say how it trains, and nothing of what it computes."""

    def __post_init__(self):
        if self.type != "transformer":
            raise ValueError(f"type is {self.type!r}; settings of a Transformer have 'transformer'")
        for name in ("conv_channels", "hidden_dim", "num_layers", "num_heads", "feedforward_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name, divisor in (("num_heads", self.num_heads), ("position_groups", self.position_groups)):
            if divisor < 1 or self.hidden_dim % divisor:
                raise ValueError(
                    f"hidden_dim {self.hidden_dim} is not a multiple of {name} {divisor}; change one of them"
                )
        if self.num_buckets < 4 or self.num_buckets % 4 or self.max_distance <= self.num_buckets // 4:
            raise ValueError(
                f"num_buckets {self.num_buckets} must be a multiple of 4 and max_distance "
                f"{self.max_distance} greater than a quarter of it"
            )
        for name in ("dropout", "layerdrop"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")

    def structure(self) -> list:
        """The settings that change the output but no shape: part of an encoder's identity."""
        return [self.type, self.num_heads, self.max_distance]

    @classmethod
    def base(cls, **changes) -> "TransformerConfig":
        """WavLM Base, 94,381,936 parameters; ``changes`` replace single fields."""
        return replace(cls(), **changes)

    @classmethod
    def mini(cls, **changes) -> "TransformerConfig":
        """A small encoder for tests and two CPU cores (ours)."""
        mini = cls(
            conv_channels=48,
            hidden_dim=128,
            num_layers=4,
            num_heads=4,
            feedforward_dim=512,
            position_kernel=32,
            position_groups=8,
        )
        return replace(mini, **changes)
