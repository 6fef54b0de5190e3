"""Working copies of a module's weights, made and taken back in a few launches (ours).

Under autocast every weight is converted to half precision by a kernel of its own, its gradient back by
another, and a third adds the gradient to what there is already: DDP's buckets, or earlier batches of the
step. Here the parameters of a module go through one function in the forward pass, so that each of the three
is one launch for some sixty tensors. The values are autocast's: rounded once each way.

Nothing is kept of a copy that autograd does not keep anyway, and with activation checkpointing they are made
again with the activations.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spear_lib.kernels.choice import Kernel, autocast_of, fused

NAME = "weights"
_CONVERTED = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Modules whose parameters autocast converts; others are used as they are."""


class _CopiesFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtypes: list[torch.dtype], *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.parameters = parameters
        converted = [dtype != each.dtype for dtype, each in zip(dtypes, parameters)]
        copies = [
            torch.empty_like(each, dtype=dtype) if new else each.view_as(each)
            for dtype, each, new in zip(dtypes, parameters, converted)
        ]
        _copy(copies, parameters, converted)
        needed = ctx.needs_input_grad[1:]
        ctx.mark_non_differentiable(*(copy for copy, need in zip(copies, needed) if not need))
        return tuple(copies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *changes: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [need and change is not None for need, change in zip(ctx.needs_input_grad[1:], changes)]
        converted = [
            ok and change.dtype != each.dtype for ok, change, each in zip(given, changes, ctx.parameters)
        ]
        grads = [
            torch.empty_like(each) if new else change if ok else None
            for ok, new, change, each in zip(given, converted, changes, ctx.parameters)
        ]
        _copy(grads, changes, converted)
        # Added here, a gradient is none to autograd: what waits for the parameter (DDP) is told all the same.
        there = [index for index, ok in enumerate(given) if ok and ctx.parameters[index].grad is not None]
        if there:
            sums, added = [ctx.parameters[index].grad for index in there], [grads[index] for index in there]
            torch._foreach_add_(sums, added)
            for index in there:
                grads[index] = None
        return None, *grads


def _copy(targets: Any, sources: Any, chosen: list[bool]) -> None:
    """Conversions of the chosen ones, in as few launches as there are."""
    pairs = [pair for *pair, wanted in zip(targets, sources, chosen) if wanted]
    if pairs:
        torch._foreach_copy_(*map(list, zip(*pairs)))


def _places(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, bool]]:
    """The parameters of a module: where they are kept, under which name, and whether autocast converts it."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                yield part._parameters, name, isinstance(part, _CONVERTED)


@contextmanager
def _copies_in(module: nn.Module) -> Iterator[None]:
    places = list(_places(module))
    parameters = [kept[name] for kept, name, _ in places]
    kind = parameters[0].device.type
    half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    dtypes = [
        half if half and converted and each.dtype == torch.float32 else each.dtype
        for each, (_, _, converted) in zip(parameters, places)
    ]
    copies = _CopiesFunction.apply(dtypes, *parameters)
    try:
        for (kept, name, _), copy in zip(places, copies):
            kept[name] = copy
        yield
    finally:
        for (kept, name, _), parameter in zip(places, parameters):
            kept[name] = parameter


def on_working_copies(module: nn.Module, *arguments: Any) -> Any:
    """``module(*arguments)``; where gradients are wanted and the kernel ``weights`` is chosen, computed on
    working copies of its parameters."""
    first = next(module.parameters(), None) if torch.is_grad_enabled() else None
    if first is None or not fused(NAME, first):
        return module(*arguments)
    with _copies_in(module):
        return module(*arguments)


def zero_gradients(parameters: Iterable[Tensor]) -> None:
    """Sets the gradients that are there to zero, where they are: the next ones are added to them."""
    grads = [each.grad for each in parameters if each.grad is not None]
    if grads:
        torch._foreach_zero_(grads)


def _sample(device: torch.device, values: torch.dtype, computed: torch.dtype) -> list[Tensor]:
    """A small network of every kind of weight, twice: the second time gradients are there already."""
    generator = torch.Generator().manual_seed(1)
    layers = nn.Linear(24, 40), nn.Conv1d(40, 40, 5, padding=2, groups=40), nn.PReLU(40), nn.Conv1d(40, 7, 1)
    network = nn.Sequential(layers[0], nn.Unflatten(1, (40, 1)), *layers[1:], nn.Flatten())
    parameters = list(network.parameters())
    for each in parameters:
        each.data = (torch.randn(each.shape, generator=generator) * 0.3).to(values)
    wide = torch.promote_types(computed, torch.float32)
    network.to(device, wide)
    inputs = torch.randn(50, 24, generator=generator).to(values).to(device, wide)
    outputs = []
    with torch.enable_grad(), autocast_of(device, computed):
        for _ in range(2):
            outputs.append(on_working_copies(network, inputs).to(wide))
            outputs[-1].square().sum().backward()
    found = [*(output.detach() for output in outputs), *(each.grad for each in parameters)]
    return [each.to(computed) for each in found]


WEIGHTS = Kernel(NAME, _sample)
