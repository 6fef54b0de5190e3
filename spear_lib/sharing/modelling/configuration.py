"""Settings of a SPEAR model in transformers."""

from typing import Any

from transformers import PretrainedConfig


class SpearConfig(PretrainedConfig):
    """Settings of a model. Those of stacks are numbers with commas, one for each stack or one for all."""

    model_type = "spear"

    def __init__(
        self,
        num_mel_bins: int = 128,
        frontend_channels: str = "8,32,128",
        downsampling_factor: str = "1,2,4,8,4,2,1",
        num_encoder_layers: str = "1,2,3,3,1,1,1",
        encoder_dim: str = "512",
        feedforward_dim: str = "1536",
        encoder_unmasked_dim: str = "256",
        num_heads: str = "8",
        query_head_dim: str = "32",
        pos_head_dim: str = "4",
        value_head_dim: str = "12",
        pos_dim: int = 48,
        cnn_module_kernel: str = "31,31,15,15,15,31,31",
        causal: bool = False,
        chunk_size: str = "-1",
        left_context_frames: str = "-1",
        output_downsampling_factor: int = 1,
        padding: str = "exact",
        pooling: str = "mean",
        vocab_size: int = 0,
        **kwargs: Any,
    ):
        settings = {name: value for name, value in locals().items() if name not in ("self", "kwargs")}
        super().__init__(**kwargs)
        for name, value in settings.items():
            if not name.startswith("_"):
                setattr(self, name, value)

    def per_stack(self, name: str) -> list[int]:
        """The values of setting ``name``, one for each stack."""
        values, stacks = numbers(getattr(self, name)), len(numbers(self.downsampling_factor))
        return values * stacks if len(values) == 1 else values

    @property
    def hidden_size(self) -> int:
        """Channels of encoder_out."""
        return max(self.per_stack("encoder_dim"))

    @property
    def frame_rate(self) -> int:
        """Of encoder_out in Hz; hidden states always have 50 Hz."""
        return 50 // self.output_downsampling_factor

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples per output frame."""
        return 320 * self.output_downsampling_factor


def numbers(value: Any) -> list[int]:
    """ "1,2" or 1 or [1, 2] as a list of numbers."""
    if isinstance(value, str):
        value = value.split(",")
    return [int(item) for item in value] if isinstance(value, (list, tuple)) else [int(value)]
