"""Convolutional front end: log-mel frames at 100 Hz to embeddings at 50 Hz.

Shapes: B utterances, F fbank frames, M mel bins, T = (F - 7) // 2 frames, C channels, W frequency positions.
"""

import torch
from torch import Tensor, nn

from spear_lib.encoders.step_context import Schedule, StepContext
from spear_lib.encoders.zipformer.activations import pointwise_network, swoosh
from spear_lib.encoders.zipformer.config import ZipformerConfig
from spear_lib.encoders.zipformer.cpu_convolutions import first_conv2d
from spear_lib.encoders.zipformer.modules import BiasNorm, scale_initialisation
from spear_lib.encoders.zipformer.regularisers import Balancer, ScaleGrad
from spear_lib.encoders.zipformer.whitening import Whiten

MIN_FBANK_FRAMES = 9


def embedding_frames(num_fbank_frames: int | Tensor) -> int | Tensor:
    """Frames at 50 Hz that come out of ``num_fbank_frames`` (int or integer tensor); 0 where too short."""
    frames = (num_fbank_frames - 7) // 2
    return frames.clamp(min=0) if isinstance(frames, Tensor) else max(0, frames)


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution from (B, T, W, C) to (B, T', W', C'): the channels-last layout of the library."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvNeXt(nn.Module):
    """Depthwise 7 x 7 convolution and a three times wider pointwise network, with a residual (Zipformer)."""

    def __init__(self, context: StepContext, channels: int, config: ZipformerConfig):
        super().__init__()
        self.context = context
        self.stochastic = config.stochastic
        hidden = 3 * channels
        self.depthwise_conv = nn.Conv2d(channels, channels, 7, groups=channels, padding=3)
        self.pointwise_conv1 = nn.Conv2d(channels, hidden, 1)
        self.pointwise_conv2 = nn.Conv2d(hidden, channels, 1)
        scale_initialisation(self.pointwise_conv2, 0.01)
        self.hidden_balancer = Balancer(context, -1, 0.3, 1.0, 0.75, 5.0, enabled=config.balancer)
        self.out_balancer = Balancer(context, -1, 0.4, 0.6, 1.0, 6.0, enabled=config.balancer)
        self.out_whiten = Whiten(context, 5.0, 0.01, enabled=config.whiten)
        self.layerdrop_rate = Schedule((0, 0.2), (20000, 0.015))
        self.draw = context.new_draws(rate=self.layerdrop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, W, C) -> (B, T, W, C)."""
        h = _convolve(self.depthwise_conv, x)
        # Channels last: the pointwise convolutions are plain matrix products.
        requires_grad = torch.is_grad_enabled() and (
            h.requires_grad or self.pointwise_conv1.weight.requires_grad
        )
        h = pointwise_network(
            h,
            self.pointwise_conv1.weight.flatten(1),
            self.pointwise_conv1.bias,
            self.pointwise_conv2.weight.flatten(1),
            self.pointwise_conv2.bias,
            self.hidden_balancer.limits(requires_grad),
        )
        if self.training and self.stochastic:
            rate = self.layerdrop_rate(self.context.batch_count)
            h = h * self.context.keep(self.draw, rate).view(-1, 1, 1, 1)
        return self.out_whiten(self.out_balancer(x + h))


class ConvolutionalFrontEnd(nn.Module):
    """Three convolutions, ConvNeXt, projection and BiasNorm (Zipformer; ``encoder_embed``)."""

    def __init__(self, context: StepContext, config: ZipformerConfig):
        super().__init__()
        self.context = context
        self.config = config
        first, second, third = config.frontend_channels
        enabled = config.balancer
        # The numbers are those of the published checkpoints; the missing ones are activations.
        self.conv = nn.ModuleDict(
            {
                "0": nn.Conv2d(1, first, 3, padding=(0, 1)),
                "1": ScaleGrad(0.2),
                "2": Balancer(context, -1, 0.05, 0.95, 0.2, 1.0, enabled=enabled),
                "4": nn.Conv2d(first, second, 3, stride=2),
                "5": Balancer(context, -1, 0.05, 0.95, 0.2, 4.0, enabled=enabled),
                "7": nn.Conv2d(second, third, 3, stride=(1, 2)),
                "8": Balancer(context, -1, 0.05, 0.95, 0.2, 4.0, enabled=enabled),
            }
        )
        self.convnext = ConvNeXt(context, third, config)
        dim = config.per_stack("encoder_dim")[0]
        width = ((config.num_mel_bins - 1) // 2 - 1) // 2
        self.out = nn.Linear(third * width, dim)
        limit = Schedule((0, 4.0), (20000, 8.0), default=4.0)
        self.out_whiten = Whiten(context, limit, 0.02, enabled=config.whiten)
        self.out_norm = BiasNorm(context, dim, config.limit_gradients)
        self.dropout = Schedule((0, 0.3), (20000, 0.1))
        self.draws = context.new_draws(dim, self.dropout, scaled=True)

    def convolve(self, fbank: Tensor) -> Tensor:
        """fbank (B, F, M) -> output of the three convolutions (B, T, W, C)."""
        conv = self.conv
        x = conv["1"](first_conv2d(fbank, conv["0"].weight, conv["0"].bias))
        x = swoosh(conv["2"](x), "R")
        x = swoosh(conv["5"](_convolve(conv["4"], x)), "R")
        return swoosh(conv["8"](_convolve(conv["7"], x)), "R")

    def project(self, x: Tensor) -> Tensor:
        """x (B, T, W, C) -> (B, T, D); the published column order of ``out`` is channel-major."""
        batch, num_frames, width, channels = x.shape
        return self.out(x.transpose(2, 3).reshape(batch, num_frames, channels * width))

    def forward(self, fbank: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """fbank (B, F, M), lengths (B,) in frames -> embeddings (B, T, D), lengths (B,) in 50 Hz frames."""
        x = self.convolve(fbank)
        lengths = torch.div(lengths - 7, 2, rounding_mode="floor").clamp(min=0)
        if self.config.padding == "exact":
            valid = torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1)
            x = x * valid[:, :, None, None].to(x.dtype)
        x = self.out_norm(self.out_whiten(self.project(self.convnext(x))))
        if self.training and self.config.stochastic:
            rate = self.dropout(self.context.batch_count)
            x = x * self.context.dropout(self.draws, rate).unsqueeze(1)
        return x, lengths
