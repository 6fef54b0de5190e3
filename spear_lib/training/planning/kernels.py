"""Which operators start a kernel on a GPU, and the bytes that it reads and writes (ours).

An operator is judged by what it does, not by its name: it starts a kernel if it writes to an argument (its
schema says so) or returns a tensor with memory of its own. So views and aliases (transpose, split, detach,
also ``_unsafe_view``, whose schema hides it) start none, nor do questions to a tensor (``prim.device``,
``sym_size``, ``promote_types``), nor changes of shape in place (``squeeze_``, told by their tag).
Compositions (``linear``, ``matmul``) never arrive here: torch takes them apart before its dispatch modes see
them.

An operator is one kernel, but for those of which CUDA starts several (``_launches``): the backward pass of a
convolution, ``eye``, ``cat`` of many and ``_foreach_`` operators on many tensors. An operator of another
library (``torch.library``, a fused kernel) is one kernel too, and moves its arguments and its results.

Where a GPU does it otherwise: sorting and finding the places of a mask are several kernels; a copy in one
piece is the copy engine's; indexing counts its source whole, not the places that it touches; a matrix product
that is larger than the cache reads its inputs more than once, and one with few rows may be split and summed.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten

# New memory whose contents nobody wrote; no schema says so.
_ALLOCATIONS = {
    _aten.empty,
    _aten.empty_like,
    _aten.empty_strided,
    _aten.new_empty,
    _aten.new_empty_strided,
}
# In place, and what was there is not read; of ``out=`` arguments the schema says so.
_OVERWRITES = {_aten.copy_, _aten.fill_, _aten.zero_, _aten._foreach_copy_, _aten._foreach_zero_}
# New tensors of a constant, which ask another only for its shape.
_FILLS = {
    _aten.full_like,
    _aten.ones_like,
    _aten.zeros_like,
    _aten.new_full,
    _aten.new_ones,
    _aten.new_zeros,
}


# Of CUDA's kernels over lists of tensors: what one launch takes at most (ATen, MultiTensorApply).
_FOREACH_TENSORS = (110, 64, 48, 36, 30)
"""Tensors, by the number of lists."""
_FOREACH_BLOCKS, _FOREACH_CHUNK = 320, 65536
"""Blocks, and numbers that each works on."""
_CAT_TENSORS = 128


class Work(NamedTuple):
    """What one operator does on a device."""

    flops: float
    """Floating-point operations of a matrix product or convolution; of others 0."""
    bytes: int
    """Read and written."""
    kernels: int = 1
    """How many it starts."""
    name: str = ""
    """The operator, as aten::mul; of another library under that library's name."""


def tensors(values: Any) -> list[Tensor]:
    """The tensors in ``values``, however they are nested."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def touched_bytes(tensor: Tensor) -> int:
    """Bytes of memory behind ``tensor``: an expanded axis (stride 0) is one element long."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        elements *= size if stride or not size else 1
    # Windows that overlap (as_strided, unfold) have more elements than memory.
    return min(elements * tensor.element_size(), tensor.untyped_storage().nbytes())


def kernel_work(operator: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> Work | None:
    """What ``operator`` (an OpOverload) did when it made ``result``; None where no kernel starts."""
    packet = operator._overloadpacket
    if packet in _ALLOCATIONS or torch.Tag.inplace_view in operator.tags:
        return None
    read, written = [], []
    for argument, value in _given(operator, args, kwargs):
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes:
            written += tensors(value)
        if not (packet in _FILLS or writes and (argument.is_out or packet in _OVERWRITES)):
            read += tensors(value)
    known = {tensor.untyped_storage()._cdata for tensor in (*read, *written)}
    written += [tensor for tensor in tensors(result) if tensor.untyped_storage()._cdata not in known]
    if not written:
        return None
    count: Callable | None = flop_registry.get(packet)
    flops = float(count(*args, **kwargs, out_val=result)) if count else 0.0
    if packet is _aten.convolution_backward:
        flops, size, kernels = _convolution_backward(args, result)
    else:
        # What is given twice (x * x) comes from memory once.
        once = {id(tensor): tensor for tensor in read}.values()
        size = sum(map(touched_bytes, (*once, *written)))
        kernels = _launches(operator, args, read, written)
    return Work(flops, size, kernels, packet._qualified_op_name)


def _convolution_backward(args: tuple, result: tuple[Tensor | None, ...]) -> tuple[float, int, int]:
    """Arithmetic, bytes and number of the kernels: one for each gradient asked for (input, weight, bias).

    torch's own count of the arithmetic takes every group for a whole convolution.
    """
    grad, x, weight = args[:3]
    product = 2.0 * (x if args[7] else grad).numel() * weight[0].numel()  # args[7]: transposed
    flops = product * sum(written is not None for written in result[:2])
    size = kernels = 0
    for read, written in zip(((grad, weight), (grad, x), (grad,)), result):
        if written is not None:
            kernels += 1
            size += sum(map(touched_bytes, (*read, written)))
    return flops, size, kernels


def _launches(operator: Any, args: tuple, read: list[Tensor], written: list[Tensor]) -> int:
    """Kernels that CUDA starts for ``operator``."""
    packet = operator._overloadpacket
    if packet is _aten.eye:
        return 2  # zeros, then the diagonal
    if packet in (_aten.cat, _aten.stack):
        return math.ceil(len(args[0]) / _CAT_TENSORS)
    if packet._qualified_op_name.startswith("aten::_foreach_"):
        first = args[0]
        lists = round(len({id(each) for each in (*read, *written)}) / len(first))
        at_once = _FOREACH_TENSORS[min(lists, len(_FOREACH_TENSORS)) - 1]
        blocks = sum(math.ceil(each.numel() / _FOREACH_CHUNK) for each in first)
        return max(math.ceil(len(first) / at_once), math.ceil(blocks / _FOREACH_BLOCKS))
    return 1


def _given(operator: Any, args: tuple, kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Every given argument with its entry of the schema."""
    for position, argument in enumerate(operator._schema.arguments):
        if position < len(args):
            yield argument, args[position]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]
