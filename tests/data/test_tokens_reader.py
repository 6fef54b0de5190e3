"""Reading packed tokens: any number of processes, started in any way, without piling up file handles."""

import multiprocessing
import os

import numpy as np
import pytest
from token_fixtures import FACTS, codes_of, cut_of

from spear_lib.data import packed_arrays
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.tokens.fields import ShardPlan, TokenStoreWriter, attach_tokens, load_tokens

NUM_SHARDS = 100


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Cuts with tokens in 100 shards, two per shard."""
    folder = tmp_path_factory.mktemp("packed")
    cuts = [cut_of(f"c{number}", 0.4) for number in range(2 * NUM_SHARDS)]
    writer = TokenStoreWriter(folder / "store", FACTS, ShardPlan(tuple(range(2, 2 * NUM_SHARDS + 1, 2))))
    for shard in range(NUM_SHARDS):
        part = list(writer.plan.positions(shard))
        writer.write_shard(shard, [cuts[each] for each in part], [codes_of(20, each) for each in part])
    save_cuts(attach_tokens(cuts, folder / "store"), folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


def num_handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def read_all(path, connection) -> None:
    """In a process of its own: every cut's tokens are its own, and handles stay few."""
    manifest = Manifest(path)
    same = all(
        np.array_equal(load_tokens(cut, FACTS.field), codes_of(20, n)) for n, cut in enumerate(manifest)
    )
    connection.send((same, num_handles()))


def test_handles_stay_few_however_many_shards_are_read(manifest):
    cuts = list(Manifest(manifest))
    before = num_handles()
    for _ in range(3):
        for number, cut in enumerate(cuts):
            assert np.array_equal(load_tokens(cut, FACTS.field), codes_of(20, number))
    assert num_handles() - before <= packed_arrays.MAX_OPEN < NUM_SHARDS


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_the_same_whether_forked_or_spawned(manifest, method):
    # Forked after the parent has maps open, so that the child inherits them.
    for cut in list(Manifest(manifest))[:10]:
        load_tokens(cut, FACTS.field)
    context = multiprocessing.get_context(method)
    mine, theirs = context.Pipe()
    children = [context.Process(target=read_all, args=(manifest, theirs)) for _ in range(2)]
    for child in children:
        child.start()
    for _ in children:
        same, handles = mine.recv()
        assert same and handles < 100 + packed_arrays.MAX_OPEN
    for child in children:
        child.join()
        assert child.exitcode == 0


def test_a_window_reads_its_own_bytes_only(manifest, monkeypatch):
    """Where a window lies is computed, not searched, and nothing else is copied."""
    cut = Manifest(manifest)[3].truncate(offset=0.1, duration=0.2)
    copied = []
    copy = np.array
    with monkeypatch.context() as patch:
        patch.setattr(packed_arrays.np, "array", lambda part: copied.append(len(part)) or copy(part))
        tokens = load_tokens(cut, FACTS.field)
    assert np.array_equal(tokens, codes_of(20, 3)[5:15]) and copied == [10 * FACTS.num_codebooks]


def test_what_is_read_can_be_changed_without_changing_the_store(manifest):
    cut = Manifest(manifest)[0]
    load_tokens(cut, FACTS.field)[:] = 0
    assert np.array_equal(load_tokens(cut, FACTS.field), codes_of(20, 0))
