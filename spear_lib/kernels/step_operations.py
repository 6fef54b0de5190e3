"""The fused operations of a training step beside the encoder's: optimiser, draws, classifiers (ours).

Schemas and shapes of results, as ``operations``.
"""

import torch
from torch import Tensor

from spear_lib.kernels.library import like, operation

# ----------------------------- ScaledAdam, for lists of contiguous float32 tensors of any number of elements
ADAM_CHUNK = 8192


@operation("scaled_adam_sums(Tensor[] params, Tensor[] grads) -> Tensor", "scaled_adam")
def _scaled_adam_sums(params: list[Tensor], grads: list[Tensor]) -> Tensor:
    """(chunks, 3): sums over each chunk of each tensor of params^2, params x grads and grads^2."""
    return params[0].new_empty((sum(-(-each.numel() // ADAM_CHUNK) for each in params), 3))


@operation("scaled_adam_totals(Tensor sums, int[] sizes) -> Tensor", "scaled_adam")
def _scaled_adam_totals(sums: Tensor, sizes: list[int]) -> Tensor:
    """(3, n): the sums of each tensor; it has ``sizes`` elements."""
    return sums.new_empty((3, len(sizes)))


@operation(
    "scaled_adam_update_(Tensor(a!)[] params, Tensor(b!)[] deltas, Tensor(c!)[] squares, Tensor[] grads, "
    "Tensor factor, Tensor rms, Tensor? size_step, float[] numbers) -> ()",
    "scaled_adam",
)
def _scaled_adam_update_(
    params: list[Tensor],
    deltas: list[Tensor],
    squares: list[Tensor],
    grads: list[Tensor],
    factor: Tensor,
    rms: Tensor,
    size_step: Tensor | None,
    numbers: list[float],
) -> None:
    """One step in place: moments, the change and the parameters.

    factor: (), of the gradients. rms, size_step: (n,), of the tensors and of their change in size. numbers:
    the two betas, the bias correction of the squares' root, eps, the least RMS, and what the RMS is
    multiplied by for the rate.
    """


# ------------------------------------------------------------------------------------- draws and masks
@operation("keyed_uniform(Tensor keys, int[] sites, int count) -> Tensor", "draws")
def _keyed_uniform(keys: Tensor, sites: list[int], count: int) -> Tensor:
    """(..., count) float32 of int64 keys (...): runtime.keyed_random.uniform of a site's constants."""
    return keys.new_empty((*keys.shape, count), dtype=torch.float32)


@operation("keep_all(Tensor draws, int[] counts, float[] probabilities, float[] values) -> Tensor", "draws")
def _keep_all(draws: Tensor, counts: list[int], probabilities: list[float], values: list[float]) -> Tensor:
    """Of draws (B, N), of which ``counts`` belong together: the value of their part where they are at least
    its probability, else 0."""
    return like(draws)


@operation(
    "table_dropout(Tensor table, int key, int[] sites, float probability, float value, Tensor like) "
    "-> Tensor",
    "draws",
)
def _table_dropout(
    table: Tensor, key: int, sites: list[int], probability: float, value: float, like: Tensor
) -> Tensor:
    """table (2 T - 1, P) float32, kept times value or dropped by draws keyed by key + offset, in the format
    of ``like``, which is empty (in a plan the table has data and the result has none)."""
    return like.new_empty(table.shape)


# ----------------------------- N classifiers of K classes each, for F frames
LOSS_ROWS = 64


@operation(
    "cross_entropies_(Tensor(a!) logits, Tensor(b!) loss, Tensor(c!) correct, Tensor targets, "
    "Tensor weights, bool train) -> Tensor",
    "cross_entropy",
)
def _cross_entropies_(
    logits: Tensor, loss: Tensor, correct: Tensor, targets: Tensor, weights: Tensor, train: bool
) -> Tensor:
    """loss (F, N) float32 and correct (F, N) bool of logits (F, N, K) and targets (F, N), 0 and False where
    the target is negative. In training the logits become their gradients times weights (F,), and the result
    is those of the bias, (P, N, K) float32 over P parts of the frames; else it is empty."""
    frames, *shape = logits.shape
    return logits.new_empty((-(-frames // LOSS_ROWS), *shape) if train else 0, dtype=torch.float32)
