"""What 200,000 hours do to the plans of data, without audio: sampler, shards, resuming on made-up durations.

    python tools/studies/scale.py --cuts 50000000 --ranks 128 256 1024

Prints a Markdown table, a row for each number of processes. Ends with an error where a cut is lost or
doubled, or a process would get none. Durations: log-normal, 1 to 30 s, 14.4 s on average (50 million cuts:
200,000 h).
"""

import argparse
import resource
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np

from spear_lib.data.sampling import BatchSampler
from spear_lib.tokens.plan import SHARD_SECONDS, ShardPlan

MEAN_SECONDS = 14.4


@dataclass(frozen=True)
class Row:
    """What one number of processes gets of an epoch."""

    ranks: int
    batch_seconds: float
    """Asked for, over all processes, s."""
    batches: int
    smallest_cuts: int
    """Cuts of the smallest batch: at least ``ranks``."""
    largest_padded: float
    """Padded audio of the largest batch, s."""
    imbalance: float
    """The busiest process's padded seconds over the mean, on average over batches."""
    plan_seconds: float
    """Time to plan the epoch, s."""
    resume_seconds: float
    """Time of a new process to its first batch, nine tenths into the epoch, s."""
    peak_gb: float
    """Largest memory of this process so far, GB."""


def made_up_durations(count: int, seed: int = 0) -> np.ndarray:
    """(count,) seconds, rounded to milliseconds as manifests have them."""
    random = np.random.default_rng(seed)
    drawn = np.clip(random.lognormal(2.5, 0.6, count), 1.0, 30.0)
    return np.round(np.clip(drawn * (MEAN_SECONDS / drawn.mean()), 1.0, 30.0), 3)


def check_every_cut_once(sampler: BatchSampler, epoch: int) -> None:
    """RuntimeError where the plan of an epoch loses or doubles a cut, or leaves a process without one."""
    plan = sampler.plan(epoch)
    order = np.argsort(plan.starts)
    starts, ends = plan.starts[order], plan.ends[order]
    if starts[0] != 0 or ends[-1] != len(plan.cuts) or not np.array_equal(starts[1:], ends[:-1]):
        raise RuntimeError(f"{sampler.world_size} processes: the batches leave cuts out or share them")
    times = np.bincount(plan.cuts, minlength=len(sampler.durations))
    if times.min() != 1 or times.max() != 1:
        raise RuntimeError(
            f"{sampler.world_size} processes: a cut comes {times.min()} to {times.max()} times"
        )
    if (ends - starts).min() < sampler.world_size:
        raise RuntimeError(f"{sampler.world_size} processes share {(ends - starts).min()} cuts in a batch")


def simulate(durations: np.ndarray, ranks: int, batch_seconds: float, sample: int = 200) -> Row:
    """One epoch of ``ranks`` processes; the balance is measured on ``sample`` of its batches."""
    began = time.perf_counter()
    sampler = BatchSampler(durations, batch_seconds, world_size=ranks)
    plan = sampler.plan(0)
    planned = time.perf_counter() - began
    check_every_cut_once(sampler, 0)
    imbalance, padded = [], []
    for index in np.linspace(0, len(plan) - 1, min(sample, len(plan))).astype(int):
        cuts = durations[sampler.global_batch(0, int(index))]  # longest first
        shares = [cuts[rank::ranks] for rank in range(ranks)]
        seconds = np.array([share[0] * len(share) for share in shares])
        imbalance.append(seconds.max() / seconds.mean())
        padded.append(cuts[0] * len(cuts))
    position = len(plan) * 9 // 10
    last = sampler.global_batch(0, position)
    del sampler, plan
    began = time.perf_counter()
    again = BatchSampler(durations, batch_seconds, rank=ranks - 1, world_size=ranks)
    share = again.share(again.global_batch(0, position))
    resumed = time.perf_counter() - began
    if share != last[ranks - 1 :: ranks]:
        raise RuntimeError(f"{ranks} processes: the batch after resuming is another one")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sizes = again.plan(0).ends - again.plan(0).starts
    return Row(
        ranks,
        batch_seconds,
        len(sizes),
        int(sizes.min()),
        max(padded),
        float(np.mean(imbalance)),
        planned,
        resumed,
        peak,
    )


def check_shards(durations: np.ndarray, num_splits: int) -> tuple[int, float, float]:
    """Shards of a token store; hours of the smallest and of the largest of ``num_splits`` parts.

    Raises:
      RuntimeError: a cut is in no shard, or a shard in no part or in two.
    """
    plan = ShardPlan.over(durations, SHARD_SECONDS)
    ends = np.array(plan.ends)
    if ends[-1] != len(durations) or (np.diff(ends, prepend=0) <= 0).any():
        raise RuntimeError("the shards leave cuts out")
    parts = [plan.share(split, num_splits) for split in range(1, num_splits + 1)]
    if [shard for part in parts for shard in part] != list(range(len(plan))):
        raise RuntimeError(f"{num_splits} parts leave shards out or share them")
    behind = np.concatenate(([0.0], np.cumsum(durations)[ends - 1]))
    hours = [(behind[part.stop] - behind[part.start]) / 3600 for part in parts if len(part)]
    return len(plan), min(hours), max(hours)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cuts", type=int, default=50_000_000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--seconds-per-rank", type=float, default=0.0, help="0: 6,400 s over all (Table 9)")
    parser.add_argument("--splits", type=int, default=1000)
    options = parser.parse_args(argv)
    durations = made_up_durations(options.cuts)
    shards, least, most = check_shards(durations, options.splits)
    print(
        f"{options.cuts} cuts, {durations.sum() / 3600:.0f} h; {shards} shards, {options.splits} parts of "
        f"{least:.1f} to {most:.1f} h"
    )
    for number, ranks in enumerate(options.ranks):
        batch_seconds = options.seconds_per_rank * ranks or 6400.0
        row = asdict(simulate(durations, ranks, batch_seconds))
        if number == 0:
            print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
        print("| " + " | ".join(f"{value:.2f}".rstrip("0").rstrip(".") for value in row.values()) + " |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
