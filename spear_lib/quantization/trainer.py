"""Training of the quantiser: alternating minimisation of the reconstruction error (ours).

The reference trains code vectors and classifiers together with Adam for 70 000 steps. With the codes fixed,
however, the best code vectors of all codebooks together are the solution of one least-squares problem, so a
few rounds of (search the codes, solve) reach a low error in seconds. Three phases:

1. start: residual k-means, codebook by codebook, on a sample;
2. rounds: the codes of fresh frames, then all code vectors at once from statistics that forget slowly;
3. classifiers (classifiers.py): they only make the search's first guess.

Frames come from a stream (embeddings.py), every draw is keyed by the seed, and the state is stored aside and
renamed after every codebook, round, and some classifier steps. So a killed training that is started again
ends with the same quantiser, bit for bit (one thread count, CPU). Ranks share the frames of every step and
add up their statistics.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_lib import keyed_random
from spear_lib.files import atomic_path
from spear_lib.quantization import search
from spear_lib.quantization.classifiers import fit_classifiers
from spear_lib.quantization.embeddings import FrameStream
from spear_lib.quantization.initialisation import k_means, nearest
from spear_lib.quantization.options import QuantizerTrainingOptions
from spear_lib.quantization.quantizer import Quantizer
from spear_lib.quantization.ranks import add_up, read_share
from spear_lib.training.distributed import World
from spear_lib.training.metrics import MetricsLog
from spear_lib.training.progress import progress

logger = logging.getLogger(__name__)

CHECKPOINT = "training_state.pt"


def train_quantizer(
    frames: FrameStream,
    options: QuantizerTrainingOptions,
    seed: int,
    folder: Path,
    run_id: str,
    world: World | None = None,
) -> tuple[Quantizer, list[dict[str, float]]]:
    """A trained quantiser (normalisation inside) and what every round measured.

    Args:
      frames: the training frames with their normalisation.
      seed: keys every random draw.
      folder: where the state and the curves are kept; the caller deletes the state when it has saved the
        result.
      run_id: identity of data and options; a state of another run is refused.
      world: the ranks and the device to compute on; frames and stored state stay on the CPU.
    """
    world = world or World()
    if frames.epoch_frames < options.codebook_size:
        raise ValueError(
            f"{frames.epoch_frames} training frames are fewer than the {options.codebook_size} codes of a "
            "codebook: extract more embeddings (sampling.num_frames), or lower codebook_size"
        )
    quantizer = Quantizer(frames.dim, options.num_codebooks, options.codebook_size, options.search)
    with torch.no_grad():
        quantizer.mean.copy_(frames.mean)
        quantizer.std.copy_(frames.std)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CHECKPOINT
    state = load_state(path, run_id)
    if state is None:
        state = {"run_id": run_id, "codebooks": [], "round": 0, "position": 0, "history": []}
    else:
        logger.info(
            "goes on after %d codebooks, %d of %d rounds and %d of %d classifier steps",
            len(state["codebooks"]),
            state["round"],
            options.rounds,
            state.get("classifier_step", 0),
            options.classifier_steps,
        )

    def save() -> None:
        if world.is_main:
            save_state(state, path)
        world.barrier()

    _start(state, frames, options, seed, world, save)
    step = state["round"] + state.get("classifier_step", 0)
    curves = MetricsLog(folder, step, active=world.is_main)
    rounds = range(state["round"], options.rounds)
    for number in progress(rounds, total=len(rounds), description="quantiser", unit="rounds"):
        _one_round(state, frames, options, seed, number, world)
        curves.write(number + 1, 0, "rounds", state["history"][-1])
        save()
    with torch.no_grad():
        quantizer.centers.copy_(state["centers"])
    fit_classifiers(quantizer.to(world.device), state, frames, options, world, curves, save)
    curves.close()
    return quantizer.cpu(), state["history"]


def _start(
    state: dict[str, Any],
    frames: FrameStream,
    options: QuantizerTrainingOptions,
    seed: int,
    world: World,
    save: Callable[[], None],
) -> None:
    """Residual k-means: codebook n is the k-means of what codebooks 0..n-1 leave over; changes ``state``."""
    if "centers" in state:
        return
    sample = min(options.init_frames, frames.epoch_frames)
    residual = frames.read(0, sample).to(world.device)
    for centers in state["codebooks"]:
        residual -= centers.to(world.device)[nearest(residual, centers.to(world.device))]
    missing = range(len(state["codebooks"]), options.num_codebooks)
    for codebook in progress(missing, description="start of the codebooks", unit="codebooks"):
        size, iterations = options.codebook_size, options.init_iterations
        centers = k_means(residual, size, iterations, "residual", seed, codebook, world=world)
        residual -= centers[nearest(residual, centers)]
        state["codebooks"].append(centers.cpu())
        save()
    state["centers"] = torch.stack(state["codebooks"])
    state["position"] = sample


def _one_round(
    state: dict[str, Any],
    frames: FrameStream,
    options: QuantizerTrainingOptions,
    seed: int,
    number: int,
    world: World,
) -> None:
    """Search the codes of the next frames, then update all code vectors; changes ``state``."""
    table = search.CodeTable(state["centers"].to(world.device))
    total = len(table.vectors)
    sums = torch.zeros(total, frames.dim, dtype=torch.float64, device=world.device)
    measured = torch.zeros(2, dtype=torch.float64)  # squared error, energy
    found = [torch.empty(0, options.num_codebooks, dtype=torch.int64, device=world.device)]
    for x in read_share(frames, state["position"], options.frames_per_round, world, search.chunk_of(table)):
        h = table.project(x)
        codes = search.refine(table, h, search.greedy(table, h), options.training_refinements)
        energy = x.square().sum(dim=1)
        error = search.error_of(table, h, codes) + energy
        measured += torch.stack([error.double().sum(), energy.double().sum()]).cpu()
        exact = x.double()
        for rows in (codes + table.first_row).T:
            sums.index_add_(0, rows, exact)
        found.append(codes + table.first_row)
    counts = add_up(world, cooccurrence(torch.cat(found), table).float()).double()
    sums, measured = add_up(world, sums), world.sum(measured)
    usage = counts.diagonal().view(options.num_codebooks, -1).long()
    if state["round"] > 0:
        counts += options.statistics_decay * state["cooccurrence"].to(world.device)
        sums += options.statistics_decay * state["sums"].to(world.device)
    centers = solve_centers(counts, sums, table.vectors.view(state["centers"].shape), options.ridge)
    residual_rms = float(measured[0] / options.frames_per_round / frames.dim) ** 0.5
    revived = 0
    if number + 1 < options.rounds:
        revived = _revive(centers, usage, residual_rms, "revive", seed, number)
    # What the main rank solved, so that ranks on unlike machines cannot drift apart.
    state["centers"] = world.sum(centers.cpu() * float(world.is_main))
    state["cooccurrence"], state["sums"] = counts.cpu(), sums.cpu()
    state["round"] = number + 1
    state["position"] += options.frames_per_round
    relative = float(measured[0] / measured[1].clamp(min=1e-20))
    state["history"].append(
        {
            "round": number + 1,
            "frames_read": state["position"],
            "relative_error": relative,
            "revived_codes": revived,
        }
    )
    logger.info(
        "round %d: relative error %.4f on %d frames, %d unused codes revived",
        number + 1,
        relative,
        options.frames_per_round,
        revived,
    )


def cooccurrence(rows: Tensor, table: search.CodeTable) -> Tensor:
    """(N*K, N*K) int64: how often two code vectors are used together, of rows (B, N)."""
    total, size = len(table.gram), table.codebook_size
    blocks = []
    for own, first in zip(rows.T, table.first_row):
        pairs = (own - first).unsqueeze(1) * total + rows
        blocks.append(torch.bincount(pairs.flatten(), minlength=size * total).view(size, total))
    return torch.cat(blocks)


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
