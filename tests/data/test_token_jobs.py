"""Stage 5 as many jobs: killed at random moments, in splits, on ranks, twice by mistake, several fields at
once."""

import gzip
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_token_stages import SHARDS, call, made, snapshot, tokens_only

from spear_lib.bin import check_tokens, dump_tokens
from spear_lib.data import decoding
from spear_lib.quantization import Quantizer
from spear_lib.tokens.plan import as_ranges
from spear_lib.tokens.store import ShardPlan, TokenFacts, TokenStoreReader, TokenStoreWriter

__all__ = ["made"]  # a fixture

# Forked from a process of its own: where tests ran there may be threads and locks, for which a forked child
# would wait for ever.
fork = multiprocessing.get_context("forkserver")
fork.set_forkserver_preload(["spear_lib.bin.dump_tokens", "pytest"])


def dump_in_child(arguments: list[str], environment: dict[str, str]) -> None:
    logging.disable(logging.CRITICAL)
    os.environ.update(environment)
    dump_tokens.main(arguments)


def start(*arguments: object, **environment: str):
    child = fork.Process(target=dump_in_child, args=([*map(str, arguments)], environment))
    child.start()
    return child


def dump_of(made: Path, store: Path) -> tuple[object, ...]:
    cuts = made / "audio" / "cuts.jsonl.gz"
    return ("--cuts", cuts, "--quantizer", made / "quantizer", *SHARDS, "--output_dir", store)


def run_for(seconds: float, *arguments: object) -> tuple[bool, float]:
    """Run a job and kill it (-9) after ``seconds``; whether it was killed, and how long it ran."""
    began = time.monotonic()
    child = start(*arguments)
    child.join(seconds)
    if child.is_alive():
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), f"the job failed with status {child.exitcode}"
    return child.exitcode != 0, time.monotonic() - began


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(made, tmp_path, kills):
    """Kill -9 one run after another; whenever one ends, the store is the unbroken run's, and a new one
    begins."""
    _, longest = run_for(600.0, *dump_of(made, tmp_path / "whole"))
    random, killed, stores = np.random.default_rng(), 0, 0
    for _ in range(20 * kills):
        store = tmp_path / str(stores)
        was_killed, seconds = run_for(random.uniform(0, longest), *dump_of(made, store))
        killed += was_killed
        if not was_killed:
            assert not list(store.rglob("*lock")) and not list(store.rglob("*.tmp"))
            # On a machine that is busy now and then, the first run says little.
            longest = min(longest, seconds)
            assert tokens_only(store) == tokens_only(made / "tokens")
            stores += 1
        if killed >= kills:
            break
    assert killed >= kills
    store = tmp_path / str(stores)
    call(dump_tokens, *dump_of(made, store))
    assert tokens_only(store) == tokens_only(made / "tokens")
    check = ("--cuts", made / "audio" / "cuts.jsonl.gz", "--store", store)
    call(check_tokens, *check, "--output_cuts", tmp_path / "cuts.jsonl.gz")
    assert (store / "store.json").read_bytes() == (made / "tokens" / "store.json").read_bytes()
    # The manifest names the folder of its store, all else is the same to the byte.
    unbroken = gzip.decompress((made / "cuts" / "cuts.jsonl.gz").read_bytes())
    mine = gzip.decompress((tmp_path / "cuts.jsonl.gz").read_bytes())
    assert mine.replace(bytes(store), b"") == unbroken.replace(bytes(made / "tokens"), b"")


@pytest.mark.slow
def test_commands_killed_at_random_moments_ten_times(made, tmp_path):
    """As a person would: the command itself, the shell's kill -9, ten times, ever deeper into the work."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "spear_lib.bin.dump_tokens", *map(str, dump_of(made, tmp_path))]
    began = time.monotonic()
    subprocess.run([*command[:-1], str(tmp_path / "whole")], env=environment, check=True, capture_output=True)
    whole, random = time.monotonic() - began, np.random.default_rng()
    for _ in range(10):
        running = subprocess.Popen(
            [*command[:-1], str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL
        )
        try:
            running.wait(random.uniform(0.5, 1.0) * whole)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
    subprocess.run(
        [*command[:-1], str(tmp_path / "killed")], env=environment, check=True, capture_output=True
    )
    assert snapshot(tmp_path / "killed") == snapshot(tmp_path / "whole") == tokens_only(made / "tokens")


def test_splits_ranks_and_one_job_leave_the_same_files(made, tmp_path):
    for split in (2, 3, 1):  # in any order
        call(dump_tokens, *dump_of(made, tmp_path / "splits"), "--num_splits", 3, "--split", split)
    ranks = [start(*dump_of(made, tmp_path / "ranks"), RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    for child in ranks:
        child.join()
        assert child.exitcode == 0
    # Two machines of two ranks each, one split per machine, one after the other.
    for split in (1, 2):
        arguments = (*dump_of(made, tmp_path / "both"), "--num_splits", 2, "--split", split)
        for child in [start(*arguments, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]:
            child.join()
            assert child.exitcode == 0
    for name in ("splits", "ranks", "both"):
        assert tokens_only(tmp_path / name) == tokens_only(made / "tokens")


def test_splits_of_a_small_corpus_are_not_empty(made, tmp_path, caplog):
    """Without shard_hours: 17.5 s would be one shard; three jobs get one each."""
    cuts = ("--cuts", made / "audio" / "cuts.jsonl.gz", "--quantizer", made / "quantizer")
    with caplog.at_level("INFO"):
        for split in (1, 2, 3):
            out = ("--output_dir", tmp_path / "store", "--num_splits", 3, "--split", split)
            call(dump_tokens, *cuts, *out)
    assert all(f"{split} of 3: 1 of 3 shards" in caplog.text for split in (1, 2, 3))
    assert TokenStoreReader(tmp_path / "store").num_frames == TokenStoreReader(made / "tokens").num_frames


def test_the_same_split_given_to_two_jobs(made, tmp_path):
    arguments = dump_of(made, tmp_path)
    facts = TokenFacts(**TokenStoreReader(made / "tokens").facts.__dict__)
    plan = ShardPlan(tuple(TokenStoreWriter(made / "tokens", facts, ShardPlan(())).plan.ends))
    first = TokenStoreWriter(tmp_path, facts, plan)
    with (
        first.claim(1),
        pytest.raises(RuntimeError, match=r"shard 1 of .* is being written by process .*two jobs"),
    ):
        call(dump_tokens, *arguments)
    assert first.is_done(0) and not first.is_done(1)
    # Two whole jobs at once: one may give up, what is there is right, and the next run ends it.
    for child in [start(*arguments), start(*arguments)]:
        child.join()
    call(dump_tokens, *arguments)
    assert tokens_only(tmp_path) == tokens_only(made / "tokens")


def test_two_fields_in_one_pass_over_the_audio(made, tmp_path, monkeypatch):
    """The same files as two runs; each recording is decoded once."""
    small = Quantizer(12, 2, 8)
    small.provenance = Quantizer.load(made / "quantizer").provenance
    small.save(tmp_path / "small")
    cuts = ("--cuts", made / "audio" / "cuts.jsonl.gz", *SHARDS)
    call(dump_tokens, *cuts, "--quantizer", tmp_path / "small", "--output_dir", tmp_path / "alone")
    decoded = []
    load_audio = decoding.load_audio
    monkeypatch.setattr(
        decoding, "load_audio", lambda cut, *rest: decoded.append(cut.id) or load_audio(cut, *rest)
    )
    both = ("--quantizer", f"[{made / 'quantizer'},{tmp_path / 'small'}]")
    stores = ("--output_dir", f"[{tmp_path / 'one'},{tmp_path / 'two'}]")
    call(dump_tokens, *cuts, *both, *stores)
    assert sorted(decoded) == sorted(f"r{number}" for number in range(12))
    assert tokens_only(tmp_path / "one") == tokens_only(made / "tokens")
    assert tokens_only(tmp_path / "two") == tokens_only(tmp_path / "alone")
    # A third field later: only what is missing is made.
    (tmp_path / "two" / "shards" / "shard-00001.json").unlink()
    decoded.clear()
    call(dump_tokens, *cuts, *both, *stores)
    assert 0 < len(decoded) < 12 and tokens_only(tmp_path / "two") == tokens_only(tmp_path / "alone")
    call(
        dump_tokens,
        *cuts[:2],
        "--quantizer",
        tmp_path / "small",
        "--output_dir",
        tmp_path / "other",
    )
    with pytest.raises(ValueError, match="begun with different shards"):
        stores = ("--output_dir", f"[{tmp_path / 'one'},{tmp_path / 'other'}]")
        call(dump_tokens, *cuts, *both, *stores)


@pytest.mark.slow
def test_torchrun_divides_the_shards(made, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = [*launcher, "spear_lib.bin.dump_tokens", *map(str, dump_of(made, tmp_path / "store"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "1 of 2: 2 of 4 shards" in done.stderr and "2 of 2: 2 of 4 shards" in done.stderr
    assert tokens_only(tmp_path / "store") == tokens_only(made / "tokens")


def test_missing_parts_are_an_array_of_slurm(made, tmp_path, capsys):
    store = tmp_path / "store"
    ask = ("--cuts", made / "audio" / "cuts.jsonl.gz", "--store", store, "--missing", 4)

    def missing() -> str:
        capsys.readouterr()
        call(check_tokens, *ask)
        return capsys.readouterr().out.strip()

    assert missing() == "1-4"  # not begun
    call(dump_tokens, *dump_of(made, store), "--num_splits", 4, "--split", 2)
    assert missing() == "1,3-4"
    call(dump_tokens, *dump_of(made, store))
    assert missing() == ""
    # Cut short, as by a disk that was full.
    damaged = sorted((store / "shards").glob("*.bin"))[-1]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert missing() == "4"
    assert as_ranges([]) == "" and as_ranges([1, 2, 3, 7, 9, 10]) == "1-3,7,9-10"
