"""Training of the quantiser: alternating minimisation of the reconstruction error (ours).

The reference trains code vectors and classifiers together with Adam for 70 000 steps. With the codes fixed,
however, the best code vectors of all codebooks together are the solution of one least-squares problem, so a
few rounds of (search the codes, solve) reach a low error in seconds. Three phases:

1. start (start.py): k-means, one block of principal axes per codebook;
2. rounds: the codes of fresh frames, then all code vectors at once from statistics that forget slowly. Noise
   on the code vectors while their codes are searched, less in each round, gets the alternation out of poor
   minima (as in LSQ++, Martinez et al. 2018). After the last round the code vectors are shrunk by what
   chance has put into them;
3. classifiers (classifiers.py): they only make the search's first guess.

Frames come from a stream (embeddings.py), every draw is keyed by the seed, and the state is stored aside and
renamed after every pass, round, and some classifier steps. So a killed training that is started again
ends with the same quantiser, bit for bit (one thread count, CPU). Ranks share the frames of every step and
add up their statistics.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_lib.quantization import search
from spear_lib.quantization.classifiers import fit_classifiers
from spear_lib.quantization.code_table import CodeTable
from spear_lib.quantization.embeddings import FrameStream, add_up, read_share
from spear_lib.quantization.options import QuantizerTrainingOptions
from spear_lib.quantization.quantizer import Quantizer
from spear_lib.quantization.start import start_codebooks
from spear_lib.runtime import keyed_random
from spear_lib.runtime.files import atomic_path
from spear_lib.runtime.metrics_log import MetricsLog
from spear_lib.runtime.progress import progress
from spear_lib.runtime.world import World

logger = logging.getLogger(__name__)

CHECKPOINT = "training_state.pt"
CHANCE = 1.5
"""Factor on the variance by chance: codes follow the errors of their code vectors (by trial)."""


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
        state = {"run_id": run_id, "passes": 0, "round": 0, "position": 0, "history": []}
    else:
        logger.info(
            "goes on after %d passes of the start, %d of %d rounds and %d of %d classifier steps",
            state["passes"],
            state["round"],
            options.rounds,
            state.get("classifier_step", 0),
            options.classifier_steps,
        )

    def save() -> None:
        if world.is_main:
            save_state(state, path)
        world.barrier()

    if "centers" not in state:
        start_codebooks(state, frames, options, world, save)
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


def _one_round(
    state: dict[str, Any],
    frames: FrameStream,
    options: QuantizerTrainingOptions,
    seed: int,
    number: int,
    world: World,
) -> None:
    """Search the codes of the next frames, then update all code vectors; changes ``state``."""
    axes, present = state["axes"].to(world.device), state["centers"].to(world.device)
    noise = options.search_noise * (1 - (number + 1) / options.rounds) ** 0.5
    table = CodeTable(present + noise * _noise_like(present, axes, "search noise", seed, number))
    total = len(table.vectors)
    sums = torch.zeros(total, frames.dim, dtype=torch.float64, device=world.device)
    along_axes = torch.zeros(frames.dim, dtype=torch.float64, device=world.device)  # energy
    measured = torch.zeros(2, dtype=torch.float64)  # squared error, energy
    found = [torch.empty(0, options.num_codebooks, dtype=torch.int64, device=world.device)]
    for x in read_share(frames, state["position"], options.frames_per_round, world, search.chunk_of(table)):
        h = table.project(x)
        codes = search.refine(table, h, search.greedy(table, h), options.training_refinements)
        energy = x.square().sum(dim=1)
        error = search.error_of(table, h, codes) + energy
        measured += torch.stack([error.double().sum(), energy.double().sum()]).cpu()
        exact = x.double()
        along_axes += (x @ axes).double().square().sum(dim=0)
        for rows in (codes + table.first_row).T:
            sums.index_add_(0, rows, exact)
        found.append(codes + table.first_row)
    counts = add_up(world, cooccurrence(torch.cat(found), table).float()).double()
    sums, along_axes, measured = add_up(world, sums), add_up(world, along_axes), world.sum(measured)
    num_frames = float(options.frames_per_round)
    usage = counts.diagonal().view(options.num_codebooks, -1).long()
    if state["round"] > 0:
        counts += options.statistics_decay * state["cooccurrence"].to(world.device)
        sums += options.statistics_decay * state["sums"].to(world.device)
        along_axes += options.statistics_decay * state["along_axes"].to(world.device)
        num_frames += options.statistics_decay * state["num_frames"]
    centers = solve_centers(counts, sums, present, options.ridge)
    residual_rms = float(measured[0] / options.frames_per_round / frames.dim) ** 0.5
    revived = 0
    if number + 1 < options.rounds:
        revived = _revive(centers, usage, residual_rms, "revive", seed, number)
    else:
        distinct = min(1.0, frames.epoch_frames / num_frames)
        centers = shrink(centers, counts, sums, along_axes, num_frames, axes, distinct)
    # What the main rank solved, so that ranks on unlike machines cannot drift apart.
    state["centers"] = world.sum(centers.cpu() * float(world.is_main))
    state["cooccurrence"], state["sums"] = counts.cpu(), sums.cpu()
    state["along_axes"], state["num_frames"] = along_axes.cpu(), num_frames
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


def cooccurrence(rows: Tensor, table: CodeTable) -> Tensor:
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


def shrink(
    centers: Tensor,
    counts: Tensor,
    sums: Tensor,
    along_axes: Tensor,
    num_frames: float,
    axes: Tensor,
    distinct: float,
) -> Tensor:
    """Code vectors (N, K, D) without the share of their spread that chance explains (empirical Bayes).

    A least-squares code vector of n frames is off by the variance of the error over n, along every axis.
    Along an axis where a codebook spreads hardly more than that, its entries fall back to their mean.

    Args:
      counts, sums: the statistics that ``centers`` were solved from.
      along_axes: (D,) energy of these frames along each axis; num_frames: how many they are.
      axes: (D, D) the axes, in columns.
      distinct: share of the frames that are not repetitions.
    """
    rotated = (centers @ axes).double()
    flat = rotated.flatten(0, 1)
    error = along_axes - 2 * (flat * (sums @ axes.double())).sum(dim=0) + (flat * (counts @ flat)).sum(dim=0)
    usage = counts.diagonal().view(centers.shape[:2]).unsqueeze(2)  # (N, K, 1)
    chance = CHANCE * (error / num_frames).clamp(min=0) / (distinct * usage).clamp(min=1)
    share = usage / usage.sum(dim=1, keepdim=True)
    mean = (share * rotated).sum(dim=1, keepdim=True)
    spread = (share * ((rotated - mean).square() - chance)).sum(dim=1, keepdim=True).clamp(min=0)
    kept = spread / (spread + chance).clamp(min=1e-30)
    return (mean + kept * (rotated - mean)).float() @ axes.T


def _noise_like(centers: Tensor, axes: Tensor, *seed: int | str) -> Tensor:
    """(N, K, D) normal noise with the spread of all code vectors along each axis."""
    spread = ((centers - centers.mean(dim=1, keepdim=True)) @ axes).square().mean(dim=(0, 1)).sqrt()
    draw = keyed_random.generator(*seed).standard_normal(tuple(centers.shape), dtype="float32")
    return (torch.from_numpy(draw).to(centers.device) * spread) @ axes.T


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
