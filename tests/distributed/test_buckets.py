"""Gradients of working copies in DDP's buckets: those that autograd and DDP bring there without them."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from pretraining_fixtures import run

SCRIPT = Path(__file__).with_name("buckets_run.py")


def test_gradients_are_added_in_the_buckets(tmp_path):
    """Three steps of two batches on two processes, in bf16; the second step has the buckets rebuilt."""
    file = tmp_path / "gradients"
    run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT, file]
    )
    first, second = (torch.load(f"{file}.{rank}") for rank in (0, 1))
    (eager, _), (copies, storages) = first["eager"], first["copies"]
    assert len(eager) == 3 * 9 and all(each.abs().max() > 0 for each in eager)
    # DDP divides by two before it adds up, either way: no rounding differs.
    assert all(map(torch.equal, copies, eager)) and all(map(torch.equal, copies, second["copies"][0]))
    assert storages == 1  # one bucket holds them all
