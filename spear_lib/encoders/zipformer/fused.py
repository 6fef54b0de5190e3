"""What the fused kernels of a Zipformer are compared on before they run: small inputs of its widths (ours).

Shapes: B utterances, T frames, C channels. All go through the functions that the modules call, forward and
backward, so what is compared is what runs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from spear_lib.encoders.base import MASKED_SCORE
from spear_lib.encoders.step_context import Schedule, StepContext
from spear_lib.encoders.zipformer.activations import pointwise_network, swoosh, swoosh_linear
from spear_lib.encoders.zipformer.attention import attention_weights, average, product
from spear_lib.encoders.zipformer.config import ZipformerConfig
from spear_lib.encoders.zipformer.convolution import convolve, gated
from spear_lib.encoders.zipformer.modules import add, bias_norm, fork, interpolate
from spear_lib.encoders.zipformer.positions import PositionalEncoding
from spear_lib.encoders.zipformer.regularisers import BalancerLimits, apply_limits
from spear_lib.encoders.zipformer.whitening import whiten
from spear_lib.kernels import Kernel
from spear_lib.kernels.choice import autocast_of
from spear_lib.runtime import keyed_random

_FRAMES = 75  # of two utterances; no multiple of any block


class _Inputs:
    """The same random tensors at every call, rounded to one number format and computed with in another."""

    def __init__(self, device: torch.device, values: torch.dtype, computed: torch.dtype) -> None:
        self.device, self.values, self.computed = device, values, computed
        self.generator = torch.Generator().manual_seed(1)
        self.leaves: list[Tensor] = []

    def constant(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        """A tensor without gradient."""
        x = torch.randn(shape, generator=self.generator) * scale + shift
        return x.to(self.values).to(self.device, self.computed)

    def leaf(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        """A tensor whose gradient is compared."""
        self.leaves.append(self.constant(*shape, scale=scale, shift=shift).requires_grad_())
        return self.leaves[-1]

    def autocast(self) -> torch.autocast:
        """That of a run."""
        return autocast_of(self.device, self.computed)

    def results(self, *outputs: Tensor) -> list[Tensor]:
        """The outputs, and the gradients of the leaves where those of the outputs are random."""
        with torch.enable_grad():
            grads = [self.constant(*output.shape).to(output.dtype) for output in outputs]
            found = torch.autograd.grad(outputs, self.leaves, grads)
        return [*(output.detach() for output in outputs), *found]


def _sample_swoosh(config: ZipformerConfig, inputs: _Inputs) -> list[Tensor]:
    """Both kinds, with dropout and without, and the convolutional front end's network."""
    hidden, dim = 5 * max(config.per_stack("feedforward_dim")) // 4, max(config.per_stack("encoder_dim"))
    few = config.frontend_channels[-1]
    multiplier = (inputs.constant(2, 1, hidden).abs() > 0.3) / 0.9
    x = inputs.leaf(2, _FRAMES, hidden, scale=4.0)
    weight, bias = inputs.leaf(dim, hidden, scale=hidden**-0.5), inputs.leaf(dim)
    y = swoosh_linear(x, weight, bias, "L", multiplier.to(torch.promote_types(x.dtype, torch.float32)))
    image = inputs.leaf(2, 7, 5, few, scale=3.0)
    network = (inputs.leaf(3 * few, few), inputs.leaf(3 * few), inputs.leaf(few, 3 * few), inputs.leaf(few))
    return inputs.results(y, swoosh(image, "R"), pointwise_network(swoosh(image, "L"), *network))


def _sample_balancer(config: ZipformerConfig, inputs: _Inputs) -> list[Tensor]:
    """Channels that are too positive, too small, too large, and one in order; a slice of wider rows."""
    dim = max(config.per_stack("encoder_dim"))
    x = inputs.leaf(2, _FRAMES, 2 * dim)
    scale = torch.tensor([0.01, 1.0, 30.0, 1.0], device=x.device, dtype=x.dtype).repeat(-(-dim // 4))[:dim]
    shift = torch.tensor([0.0, 1.5, 0.0, 0.1], device=x.device, dtype=x.dtype).repeat(-(-dim // 4))[:dim]
    limits = BalancerLimits.of((0.4, 0.6), (0.2, 4.0), 0.5)
    whole = apply_limits(x[..., :dim] * scale + shift, -1, limits)
    return inputs.results(apply_limits(x[..., dim:], -1, limits), whole)


def _sample_whiten(config: ZipformerConfig, inputs: _Inputs) -> list[Tensor]:
    """Correlated channels far from zero, in one group and, as a slice of wider rows, in one for each head;
    with the metric above the limit and below it."""
    dim, heads = max(config.per_stack("encoder_dim")), max(config.per_stack("num_heads"))
    width = heads * max(config.per_stack("query_head_dim"))
    mixing = inputs.constant(dim, dim, scale=0.5 * dim**-0.5) + torch.eye(dim, device=inputs.device)
    x = torch.matmul(inputs.constant(3, 3 * _FRAMES, dim), mixing.to(inputs.computed)) + 2.0
    x = x.to(inputs.values).to(inputs.computed).requires_grad_()
    keys = inputs.leaf(2, _FRAMES, 2 * width, shift=-1.0)
    inputs.leaves.append(x)
    apart = whiten(keys[..., width:], heads, 1.0, 0.5)
    return inputs.results(whiten(x, 1, 1.0, 0.5), apart, whiten(keys[..., :width], heads, 1e6, 0.5))


def _sample_attention(config: ZipformerConfig, inputs: _Inputs) -> list[Tensor]:
    """Padding and scores beyond the penalty's limit, as slices of wider rows; then without positions."""
    heads, dim = max(config.per_stack("num_heads")), max(config.per_stack("query_head_dim"))
    width = max(config.per_stack("pos_head_dim"))
    rows = inputs.leaf(2, _FRAMES, heads * (2 * dim + width), scale=4.0 * dim**-0.25)
    query, key, by_position = (
        part.view(2, _FRAMES, heads, -1).transpose(1, 2)
        for part in rows.split([heads * dim, heads * dim, heads * width], dim=-1)
    )
    positions = inputs.leaf(heads, 2 * _FRAMES - 1, width)
    hidden = torch.arange(_FRAMES, device=rows.device) >= torch.tensor([[_FRAMES], [50]], device=rows.device)
    mask = hidden[:, None, None].to(rows.dtype) * MASKED_SCORE
    both = attention_weights(query, key, by_position, positions, mask, penalty=0.5)
    values = inputs.leaf(2, _FRAMES, heads * 12).view(2, _FRAMES, heads, 12).transpose(1, 2)
    averaged = average(inputs.leaf(2, heads, _FRAMES, _FRAMES, scale=1 / _FRAMES), values)
    plain = attention_weights(query, key, by_position, positions, use_position=False)
    return inputs.results(*both, *plain, averaged)


def _sample_gated(config: ZipformerConfig, inputs: _Inputs) -> list[Tensor]:
    """With padding and a Balancer on some of the gates, and without either; slices of wider rows."""
    dim = max(config.per_stack("encoder_dim"))
    projected, plain = inputs.leaf(2, _FRAMES, 2 * dim), inputs.leaf(2, _FRAMES, 2 * dim, scale=3.0)
    valid = torch.arange(_FRAMES, device=plain.device) < torch.tensor([[_FRAMES], [50]], device=plain.device)
    limits = BalancerLimits.of((0.5, 1.0), (1.1, 4.0), 0.5)
    values, gates = inputs.leaf(2, _FRAMES, 2 * dim).chunk(2, dim=-1)
    products = product(values, gates), product(values, gates, tanh=True)
    return inputs.results(gated(projected, valid.unsqueeze(-1), limits), gated(plain), *products)


def _sample_depthwise(config: ZipformerConfig, inputs: _Inputs) -> list[Tensor]:
    """More frames than one tile has, and fewer than the kernel is long."""
    dim, kernel = max(config.per_stack("encoder_dim")), max(config.per_stack("cnn_module_kernel"))
    weight, bias = inputs.leaf(dim, 1, kernel, scale=kernel**-0.5), inputs.leaf(dim)
    long, short = inputs.leaf(2, 2 * _FRAMES, dim), inputs.leaf(3, 4, dim)
    return inputs.results(convolve(long, weight, bias), convolve(short, weight, bias))


def _sample_residual(config: ZipformerConfig, inputs: _Inputs) -> list[Tensor]:
    """As under autocast: a float32 stream, branches in half precision, one of two utterances dropped."""
    dim, wide = max(config.per_stack("encoder_dim")), torch.promote_types(inputs.computed, torch.float32)
    x, branch = inputs.leaf(2, _FRAMES, dim), inputs.leaf(2, _FRAMES, dim)
    mask = torch.tensor([1.0, 0.0], device=x.device).view(2, 1, 1)
    with inputs.autocast():
        first, *others, read, also = fork(x.to(wide))
        h, sum_read = add(first, branch, mask.to(wide))
        last, _ = add(h, branch, is_read=False)
    total = sum(others, last) + read.to(wide) * 0.5
    return inputs.results(total, *(each.to(inputs.computed) for each in (sum_read, also)))


def _sample_bypass(config: ZipformerConfig, inputs: _Inputs) -> list[Tensor]:
    """One scale for all, and an own one for each utterance, as with skipped layers; float32 and half meet."""
    dim = max(config.per_stack("encoder_dim"))
    wide = torch.promote_types(inputs.computed, torch.float32)
    x, h = inputs.leaf(2, _FRAMES, dim), inputs.leaf(2, _FRAMES, dim)
    common, own = inputs.leaf(dim, scale=0.3, shift=0.5), inputs.leaf(2, 1, dim, scale=0.3, shift=0.5)
    with inputs.autocast():
        kept = torch.tensor([[1.0], [0.0]], device=x.device, dtype=wide)
        first, read = interpolate(x.to(wide), h, common.to(wide), kept, is_read=True)
    return inputs.results(first, read.to(inputs.computed), interpolate(x, h, own.to(wide))[0])


def _sample_bias_norm(config: ZipformerConfig, inputs: _Inputs) -> list[Tensor]:
    """Every width of the stacks."""
    outputs = []
    for dim in sorted(set(config.per_stack("encoder_dim"))):
        x, bias, log_scale = inputs.leaf(2, _FRAMES, dim), inputs.leaf(dim, scale=0.2), inputs.leaf(1)
        outputs.append(bias_norm(x, bias, log_scale.squeeze(0)))
    return inputs.results(*outputs)


def _sample_draws(config: ZipformerConfig, inputs: _Inputs) -> list[Tensor]:
    """Draws of utterances, masks of some of them, and positions of which some are dropped."""
    context = StepContext()
    context.new_draws(5)
    where, scaled = context.new_draws(67, Schedule(0.3)), context.new_draws(13, Schedule(0.2), scaled=True)
    positions = PositionalEncoding(context, config.pos_dim).train()
    context.begin(0.0, 1 << 61, keyed_random.keys("draws", ids=["a", "b", "c"], device=inputs.device))
    context.prepare(inputs.device)
    table = positions(inputs.constant(2, _FRAMES, 3))
    masks = context.keep(where, 0.3), context.dropout(scaled, 0.2), context.keep(where, 0.1)
    return [each.to(inputs.computed) for each in (context.draws(where), *masks, table)]


_SAMPLES: dict[str, Callable[[ZipformerConfig, _Inputs], list[Tensor]]] = {
    "swoosh": _sample_swoosh,
    "balancer": _sample_balancer,
    "whiten": _sample_whiten,
    "attention": _sample_attention,
    "gated": _sample_gated,
    "depthwise": _sample_depthwise,
    "residual": _sample_residual,
    "bypass": _sample_bypass,
    "bias_norm": _sample_bias_norm,
    "draws": _sample_draws,
}


def zipformer_kernels(config: ZipformerConfig) -> list[Kernel]:
    """The kernels of an encoder, to be compared at its widths."""

    def bound(sample: Callable) -> Callable:
        def run(device: torch.device, values: torch.dtype, computed: torch.dtype) -> list[Tensor]:
            return sample(config, _Inputs(device, values, computed))

        return run

    return [Kernel(name, bound(sample)) for name, sample in _SAMPLES.items()]
