"""The classifiers of the search's first guess, fitted to the codes that the search finds (ours)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spear_lib.quantization import search
from spear_lib.quantization.code_table import CodeTable
from spear_lib.quantization.embeddings import FrameStream, add_up, add_up_gradients, read_share
from spear_lib.quantization.initialisation import discriminants
from spear_lib.quantization.options import QuantizerTrainingOptions
from spear_lib.quantization.quantizer import Quantizer
from spear_lib.runtime.metrics_log import MetricsLog
from spear_lib.runtime.progress import progress
from spear_lib.runtime.world import World

_SAVE_EVERY = 100  # steps


def fit_classifiers(
    quantizer: Quantizer,
    state: dict[str, Any],
    frames: FrameStream,
    options: QuantizerTrainingOptions,
    world: World,
    curves: MetricsLog,
    save: Callable[[], None],
) -> None:
    """Linear discriminants, then Adam on the reference's prediction loss; changes ``quantizer`` and
    ``state``."""
    table = quantizer.code_table()
    parameters = [quantizer.to_logits.weight, quantizer.to_logits.bias, quantizer.logits_scale]
    optimizer = torch.optim.Adam(parameters, lr=options.classifier_learning_rate, betas=(0.9, 0.98), eps=1e-9)
    if "classifier" in state:
        quantizer.load_state_dict(state["classifier"])
        optimizer.load_state_dict(state["optimizer"])
    else:
        count = options.classifier_frames
        weight, bias = discriminants(
            *_moments(table, frames, state["position"], count, options, world), count
        )
        with torch.no_grad():
            # What the main rank solved, so that ranks on unlike machines cannot drift apart.
            quantizer.to_logits.weight.copy_(add_up(world, weight * float(world.is_main)))
            quantizer.to_logits.bias.copy_(add_up(world, bias * float(world.is_main)))
        state["position"] += count
        state["classifier_step"] = 0
    steps = range(state["classifier_step"], options.classifier_steps)
    for step in progress(steps, description="classifiers of the first guess", unit="steps"):
        optimizer.param_groups[0]["lr"] = options.classifier_learning_rate * (
            1 - step / options.classifier_steps
        )
        optimizer.zero_grad()
        loss = torch.zeros(1)
        for x in read_share(
            frames, state["position"], options.classifier_batch, world, options.classifier_batch
        ):
            codes = _codes(table, x, options)
            logits = quantizer.logits(x).flatten(0, 1)
            part = F.cross_entropy(logits, codes.flatten(), reduction="sum")
            part = part / (options.classifier_batch * options.num_codebooks)
            part.backward()
            loss += part.detach().cpu()
        add_up_gradients(parameters, world)
        optimizer.step()
        state["position"] += options.classifier_batch
        state["classifier_step"] = step + 1
        if (step + 1) % _SAVE_EVERY == 0 or step + 1 == options.classifier_steps:
            value = float(world.sum(loss))
            curves.write(options.rounds + step + 1, 0, "classifiers", {"nats_per_codebook": value})
            state["classifier"], state["optimizer"] = quantizer.state_dict(), optimizer.state_dict()
            save()


def _codes(table: CodeTable, x: Tensor, options: QuantizerTrainingOptions) -> Tensor:
    h = table.project(x)
    return search.refine(table, h, search.greedy(table, h), options.training_refinements)


def _moments(
    table: CodeTable,
    frames: FrameStream,
    begin: int,
    count: int,
    options: QuantizerTrainingOptions,
    world: World,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of x x^T (D, D), sums (N, K, D) and numbers (N, K) of the frames of every code, over all ranks."""
    energy = torch.zeros(frames.dim, frames.dim, dtype=torch.float64, device=world.device)
    sums = torch.zeros(len(table.vectors), frames.dim, dtype=torch.float64, device=world.device)
    counts = torch.zeros(len(table.vectors), dtype=torch.int64, device=world.device)
    for x in read_share(frames, begin, count, world, search.chunk_of(table)):
        rows = _codes(table, x, options) + table.first_row
        exact = x.double()
        energy += exact.T @ exact
        for own in rows.T:
            sums.index_add_(0, own, exact)
        counts += torch.bincount(rows.flatten(), minlength=len(counts))
    shape = (table.num_codebooks, table.codebook_size)
    return add_up(world, energy), add_up(world, sums).view(*shape, -1), add_up(world, counts).view(shape)
