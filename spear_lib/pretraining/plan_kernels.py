"""Which operators start a kernel on a GPU, and the bytes that it reads and writes (ours).

An operator is judged by what it does, not by its name: it starts a kernel if it writes to an argument (its
schema says so) or returns a tensor with memory of its own. So views and aliases (transpose, split, detach,
also ``_unsafe_view``, whose schema hides it) start none, nor do questions to a tensor (``prim.device``,
``sym_size``, ``promote_types``), nor changes of shape in place (``squeeze_``, told by their tag).
Compositions (``linear``, ``matmul``) never arrive here: torch takes them apart before its dispatch modes see
them.

Where a GPU does it otherwise: an operator is one kernel here, but the backward pass of a convolution, sorting
and large sums are several; indexing counts its source whole, not the places that it touches; a matrix product
that is larger than the cache reads its inputs more than once.
"""

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


class Work(NamedTuple):
    """What one kernel does."""

    flops: float
    """Floating-point operations of a matrix product or convolution; of others 0."""
    bytes: int
    """Read and written."""


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
    return Work(flops, sum(map(touched_bytes, read + written)))


def _given(operator: Any, args: tuple, kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Every given argument with its entry of the schema."""
    for position, argument in enumerate(operator._schema.arguments):
        if position < len(args):
            yield argument, args[position]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]
