"""ScaledAdam's step of a stack of equal tensors: one sweep over parameters, moments and gradients."""

import triton
import triton.language as tl
from torch import Tensor

from spear_lib.kernels.operations import DOT_BLOCK

_BLOCK = 1024


@triton.jit(do_not_specialize=["parts"])
def _dots(params, grads, factor, sums, size, parts, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    tensor = tl.program_id(1).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    for step in tl.static_range(STEPS):
        place = (tl.program_id(0) * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        at = tensor * size + place
        value = tl.load(params + at, mask=place < size, other=0.0)
        total += value * tl.load(grads + at, mask=place < size, other=0.0)
    tl.store(sums + tensor * parts + tl.program_id(0), tl.sum(total, axis=0) * tl.load(factor))


@triton.jit
def _step(
    params, delta, squares, grads, factor, rate, size_step, size, beta1, beta2, correction, eps,
    SIZED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tensor = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    at = tensor * size + place
    param = tl.load(params + at, mask=inside, other=0.0)
    grad = tl.load(grads + at, mask=inside, other=0.0) * tl.load(factor)
    change = tl.load(delta + at, mask=inside, other=0.0) * beta1
    square = tl.load(squares + at, mask=inside, other=0.0) * beta2 + (1.0 - beta2) * grad * grad
    if SIZED:
        change += (1.0 - beta1) * param * tl.load(size_step + tensor)
    change += tl.load(rate + tensor) * grad / (tl.sqrt(square) * correction + eps)
    tl.store(squares + at, square, mask=inside)
    tl.store(delta + at, change, mask=inside)
    tl.store(params + at, param + change, mask=inside)


def scaled_adam_dots(params: Tensor, grads: Tensor, factor: Tensor) -> Tensor:
    """See ``operations``."""
    number, size = params.shape[0], params[0].numel()
    parts = triton.cdiv(size, DOT_BLOCK)
    sums = params.new_empty((number, parts))
    steps = DOT_BLOCK // _BLOCK
    _dots[(parts, number)](params, grads, factor, sums, size, parts, BLOCK=_BLOCK, STEPS=steps)
    return sums


def scaled_adam_step_(
    params: Tensor,
    delta: Tensor,
    squares: Tensor,
    grads: Tensor,
    factor: Tensor,
    rate: Tensor,
    size_step: Tensor | None,
    numbers: list[float],
) -> None:
    """See ``operations``."""
    number, size = params.shape[0], params[0].numel()
    grid = triton.cdiv(size, _BLOCK), number
    sized = rate if size_step is None else size_step  # some address, which is not read
    _step[grid](
        params, delta, squares, grads, factor, rate, sized, size, *numbers,
        SIZED=size_step is not None, BLOCK=_BLOCK,
    )  # fmt: skip
