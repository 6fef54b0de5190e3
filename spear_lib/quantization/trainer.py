"""Training of the quantiser: alternating minimisation of the reconstruction error (ours).

The reference trains code vectors and classifiers together with Adam for 70 000 steps. With the codes fixed,
however, the best code vectors of all codebooks together are the solution of one least-squares problem, so a
few rounds of (search the codes, solve) reach a low error in seconds. The classifiers, which only make the
search's first
guess, are fitted afterwards: linear discriminants, then some Adam steps on the reference's prediction loss.

Everything is keyed by the seed, and the state after every round is stored aside and renamed, so a killed
training that is started again ends with the same quantiser, bit for bit (one thread count, CPU).
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_lib import keyed_random
from spear_lib.files import atomic_path
from spear_lib.quantization import search
from spear_lib.quantization.embeddings import FrameMatrix
from spear_lib.quantization.initialisation import (
    discriminant_classifiers,
    residual_encode,
    residual_k_means,
)
from spear_lib.quantization.options import QuantizerTrainingOptions
from spear_lib.quantization.quantizer import Quantizer
from spear_lib.training.progress import progress

logger = logging.getLogger(__name__)

CHECKPOINT = "training_state.pt"


def _chunk(device: torch.device) -> int:
    """Frames per search call: short on a CPU (its cache), long on a GPU."""
    return 512 if device.type == "cpu" else 32768


def train_quantizer(
    data: FrameMatrix,
    options: QuantizerTrainingOptions,
    seed: int,
    checkpoint_folder: Path,
    run_id: str,
    device: torch.device | str = "cpu",
) -> tuple[Quantizer, list[dict[str, float]]]:
    """A trained quantiser (normalisation inside) and what every round measured.

    Args:
      data: training frames with their normalisation.
      seed: keys every random draw.
      checkpoint_folder: where the state is kept between rounds; the caller deletes it when it has saved the
        result.
      run_id: identity of data and options; a state of another run is refused.
      device: where to search and solve; the frames and the stored state stay on the CPU.
    """
    device = torch.device(device)
    dim = data.frames.shape[1]
    quantizer = Quantizer(dim, options.num_codebooks, options.codebook_size)
    with torch.no_grad():
        quantizer.mean.copy_(data.mean)
        quantizer.std.copy_(data.std)
    state = load_state(checkpoint_folder / CHECKPOINT, run_id)
    if state is None:
        state = _initial_state(data, options, seed, run_id, device)
        save_state(state, checkpoint_folder / CHECKPOINT)
    else:
        for name in ("centers", "cooccurrence", "sums"):
            state[name] = state[name].to(device)
        logger.info("goes on after round %d of %d", state["round"], options.rounds)
    rounds = range(state["round"], options.rounds)
    for number in progress(rounds, total=len(rounds), description="quantiser", unit="rounds"):
        _one_round(state, data, options, seed, number, device)
        save_state(state, checkpoint_folder / CHECKPOINT)
    with torch.no_grad():
        quantizer.centers.copy_(state["centers"])
    _fit_classifiers(quantizer.to(device), state, data, options, seed)
    return quantizer.cpu(), state["history"]


def _initial_state(
    data: FrameMatrix, options: QuantizerTrainingOptions, seed: int, run_id: str, device: torch.device
) -> dict[str, Any]:
    sample = data.rows(_draw(len(data), options.init_frames, "init", seed)).to(device)
    centers = residual_k_means(
        sample, options.num_codebooks, options.codebook_size, options.init_iterations, seed
    )
    codes = torch.empty(len(data), options.num_codebooks, dtype=torch.uint8)
    for begin in range(0, len(data), 8192):
        part = slice(begin, begin + 8192)
        codes[part] = residual_encode(data.rows(part).to(device), centers).to(torch.uint8).cpu()
    rows = options.num_codebooks * options.codebook_size
    return {
        "run_id": run_id,
        "round": 0,
        "centers": centers,
        "codes": codes,
        "cooccurrence": torch.zeros(rows, rows, dtype=torch.float64, device=device),
        "sums": torch.zeros(rows, data.frames.shape[1], dtype=torch.float64, device=device),
        "history": [],
    }


def _one_round(
    state: dict[str, Any],
    data: FrameMatrix,
    options: QuantizerTrainingOptions,
    seed: int,
    number: int,
    device: torch.device,
) -> None:
    """Search the codes of a sample with one refinement, then update all code vectors; changes ``state``."""
    size = options.codebook_size
    table = search.CodeTable(state["centers"])
    index = _draw(len(data), options.frames_per_round, "round", seed, number)
    error = spread = 0.0
    new_sums = torch.zeros_like(state["sums"])
    for part in index.split(_chunk(device)):
        x = data.rows(part).to(device)
        h = table.project(x)
        codes = search.refine(table, h, state["codes"][part].to(device).long(), 1)
        state["codes"][part] = codes.to(torch.uint8).cpu()
        energy = x.square().sum(dim=1)
        error += float((search.error_of(table, h, codes) + energy).sum(dtype=torch.float64))
        spread += float(energy.sum(dtype=torch.float64))
        rows = codes + table.first_row
        for codebook in range(options.num_codebooks):
            new_sums.index_add_(0, rows[:, codebook], x.double())
    rows = state["codes"][index].to(device).long() + table.first_row
    state["cooccurrence"] = options.statistics_decay * state["cooccurrence"] + cooccurrence(rows, table)
    state["sums"] = options.statistics_decay * state["sums"] + new_sums
    centers = solve_centers(state["cooccurrence"], state["sums"], state["centers"], options.ridge)
    residual_rms = (error / max(1, len(index)) / data.frames.shape[1]) ** 0.5
    revived = 0
    if number + 1 < options.rounds:
        usage = torch.bincount(rows.flatten(), minlength=centers.shape[0] * size).view(-1, size)
        revived = _revive(centers, usage, residual_rms, "revive", seed, number)
    state["centers"] = centers
    state["round"] = number + 1
    state["history"].append(
        {"round": number + 1, "relative_error": error / max(spread, 1e-20), "revived_codes": revived}
    )
    logger.info(
        "round %d: relative error %.4f on %d frames, %d unused codes revived",
        number + 1,
        error / max(spread, 1e-20),
        len(index),
        revived,
    )


def cooccurrence(rows: Tensor, table: search.CodeTable) -> Tensor:
    """(N*K, N*K) float64: how often two code vectors are used together, of rows (B, N)."""
    total = table.gram.shape[0]
    counts = torch.zeros(total * total, dtype=torch.float64, device=rows.device)
    for left in range(rows.shape[1]):
        pairs = rows[:, left : left + 1] * total + rows
        counts += torch.bincount(pairs.flatten(), minlength=total * total)
    return counts.view(total, total)


def solve_centers(counts: Tensor, sums: Tensor, previous: Tensor, ridge: float) -> Tensor:
    """Code vectors (N, K, D) that minimise the squared error for fixed codes, pulled towards ``previous``.

    The codebooks share N - 1 free constants (a shift of one can be undone in another); the ridge pins them.
    """
    eye = torch.eye(counts.shape[0], dtype=torch.float64, device=counts.device) * ridge
    old = previous.reshape(counts.shape[0], -1).double()
    factor = torch.linalg.cholesky(counts + eye)
    return torch.cholesky_solve(sums + ridge * old, factor).float().view(previous.shape)


def _revive(centers: Tensor, usage: Tensor, residual_rms: float, *seed: int | str) -> int:
    """Move code vectors that are hardly used beside the most used one of their codebook; how many were
    moved."""
    draw = keyed_random.generator(*seed)
    usage = usage.cpu()
    limit = usage.sum(dim=1, keepdim=True) / (20 * usage.shape[1])
    moved = 0
    for codebook, entry in (usage < limit).nonzero().tolist():
        fullest = int(usage[codebook].argmax())
        noise = torch.from_numpy(draw.standard_normal(centers.shape[2])).to(centers)
        centers[codebook, entry] = centers[codebook, fullest] + 0.3 * residual_rms * noise
        # Half of its frames will go over: the next dead code picks another neighbour.
        usage[codebook, fullest] //= 2
        moved += 1
    return moved


def _fit_classifiers(
    quantizer: Quantizer,
    state: dict[str, Any],
    data: FrameMatrix,
    options: QuantizerTrainingOptions,
    seed: int,
) -> None:
    """Train to_logits to guess the codes that the search finds."""
    index = _draw(len(data), options.classifier_frames, "classifier", seed)
    device = quantizer.mean.device
    x = data.rows(index).to(device)
    table = quantizer.code_table()
    codes = torch.cat(
        [
            search.refine(table, table.project(part), start.to(device).long(), 2)
            for part, start in zip(x.split(_chunk(device)), state["codes"][index].split(_chunk(device)))
        ]
    )
    weight, bias = discriminant_classifiers(x, codes, options.codebook_size)
    with torch.no_grad():
        quantizer.to_logits.weight.copy_(weight)
        quantizer.to_logits.bias.copy_(bias)
    parameters = [quantizer.to_logits.weight, quantizer.to_logits.bias, quantizer.logits_scale]
    optimizer = torch.optim.Adam(parameters, lr=options.classifier_learning_rate, betas=(0.9, 0.98), eps=1e-9)
    steps = range(options.classifier_steps)
    for step in progress(steps, description="classifiers of the first guess", unit="steps"):
        optimizer.param_groups[0]["lr"] = options.classifier_learning_rate * (1 - step / len(steps))
        batch = _draw(len(index), options.classifier_batch, "classifier step", seed, step)
        log_probs = quantizer.logits(x[batch]).log_softmax(dim=-1)
        loss = -log_probs.gather(2, codes[batch].unsqueeze(2)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _draw(total: int, count: int, *seed: int | str) -> Tensor:
    """Sorted indexes of ``count`` random frames out of ``total`` (all of them when there are no more)."""
    if count >= total:
        return torch.arange(total)
    chosen = keyed_random.generator("quantizer frames", *seed).choice(total, size=count, replace=False)
    return torch.from_numpy(chosen).sort().values


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write the state aside and rename it."""
    with atomic_path(path) as aside:
        torch.save(state, aside)


def load_state(path: Path, run_id: str) -> dict[str, Any] | None:
    """What ``save_state`` kept, on the CPU; None where there is nothing; ValueError if it is another
    run's."""
    if not path.exists():
        return None
    state = torch.load(path, weights_only=True, map_location="cpu")
    if state["run_id"] != run_id:
        raise ValueError(
            f"{path} belongs to a training with other options or embeddings; delete it to start anew"
        )
    return state
