"""The two kernels of the refinement search give the same codes; which one runs, and why."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spear_lib.quantization import Quantizer, search, search_torch


def start_of(num_codebooks: int, size: int, dim: int, frames: int):
    torch.manual_seed(num_codebooks * 1000 + size)
    quantizer, x = Quantizer(dim, num_codebooks, size), 2 * torch.randn(frames, dim)
    table = quantizer.code_table()
    return table, table.project(x), quantizer.encode(x, 0).long()


@pytest.mark.parametrize("keep_best", [False, True])
@pytest.mark.parametrize(
    "num_codebooks, size, dim",
    [(16, 256, 64), (5, 256, 12), (1, 256, 8), (33, 8, 16), (7, 16, 10), (64, 8, 12), (2, 2, 3), (3, 4, 6)],
)
def test_compiled_and_plain_kernels_are_identical(num_codebooks, size, dim, keep_best):
    table, h, codes = start_of(num_codebooks, size, dim, 60)
    for iterations in (1, 2, 5):
        plain = search.refine(table, h, codes, iterations, keep_best, kernel="torch")
        compiled = search.refine(table, h, codes, iterations, keep_best, kernel="compiled")
        assert torch.equal(plain, compiled)
        assert keep_best or not torch.equal(plain, codes)


def test_kernels_agree_where_code_vectors_are_equal():
    """Every entry exists twice, so every comparison is a tie: the first one wins in both kernels."""
    torch.manual_seed(0)
    half = torch.randint(-2, 3, (6, 32, 10)).float()
    table = search.CodeTable(torch.cat([half, half], dim=1))
    h = table.project(torch.randint(-9, 10, (80, 10)).float())
    codes = torch.zeros(80, 6, dtype=torch.int64)
    plain = search.refine(table, h, codes, 5, kernel="torch")
    assert torch.equal(plain, search.refine(table, h, codes, 5, kernel="compiled"))


def test_smallest_is_sorted_and_takes_the_first_of_equals():
    values = torch.tensor([[3.0, -1.0, 2.0, -1.0, 0.0, -5.5, 1e30, -1e30]])
    found, index = search_torch._smallest(values, 5)
    assert found.tolist() == [[torch.tensor(-1e30).item(), -5.5, -1.0, -1.0, 0.0]]
    assert index.tolist() == [[7, 5, 1, 3, 4]]


def test_threads_and_chunks_change_nothing():
    table, h, codes = start_of(4, 64, 12, 90)
    threads = torch.get_num_threads()
    alone = search.refine(table, h, codes, 5, kernel="compiled")
    try:
        torch.set_num_threads(3)
        assert torch.equal(search.refine(table, h, codes, 5, kernel="compiled"), alone)
    finally:
        torch.set_num_threads(threads)
    parts = [search.refine(table, a, b, 5, kernel="torch") for a, b in zip(h.split(7), codes.split(7))]
    assert torch.equal(torch.cat(parts), alone)
    assert search.refine(table, h[:0], codes[:0], 5).shape == (0, 4)


@pytest.mark.parametrize("kernel", ["torch", "compiled"])
def test_frames_at_rest_are_left_alone_exactly(kernel):
    """Five rounds in one call are five calls of one round, though settled frames leave early."""
    table, h, codes = start_of(6, 64, 16, 100)
    together = search.refine(table, h, codes, 5, kernel=kernel)
    for _ in range(5):
        codes = search.refine(table, h, codes, 1, kernel=kernel)
    assert torch.equal(codes, together)


def test_the_kernel_is_chosen_with_a_reason(monkeypatch, caplog):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert search.choose_kernel("auto", cpu)[0] == "compiled"
    assert search.choose_kernel("auto", gpu) == ("torch", "the frames are on cuda")
    monkeypatch.setenv("SPEAR_SEARCH_KERNEL", "torch")
    assert search.choose_kernel("auto", cpu) == ("torch", "asked for (SPEAR_SEARCH_KERNEL)")
    monkeypatch.setenv("SPEAR_SEARCH_KERNEL", "cuda")
    with pytest.raises(ValueError, match=r"'cuda' \(SPEAR_SEARCH_KERNEL\): use one of auto, torch, compiled"):
        search.choose_kernel("auto", cpu)
    with pytest.raises(ValueError, match="compiled search cannot run: the frames are on cuda"):
        search.choose_kernel("compiled", gpu)
    table, h, codes = start_of(2, 4, 3, 5)
    search._announce.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            search.refine(table, h, codes, 1, kernel="torch")
    assert [record.getMessage() for record in caplog.records] == [
        "search kernel of the quantiser: torch (asked for)"
    ]


def test_without_numba_the_search_is_plain_and_says_so():
    script = """
import sys
sys.modules["numba"] = None  # import numba fails
import torch
from spear_lib.quantization import Quantizer, search
name, reason = search.choose_kernel("auto", torch.device("cpu"))
assert name == "torch" and "numba cannot be imported" in reason and "pip install numba" in reason, reason
torch.manual_seed(0)
print(Quantizer(6, 3, 16).encode(torch.randn(4, 6)).tolist())
try:
    search.choose_kernel("compiled", torch.device("cpu"))
except ValueError as error:
    assert "numba cannot be imported" in str(error)
else:
    raise SystemExit("the compiled kernel was promised without numba")
"""
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    torch.manual_seed(0)
    assert result.stdout.strip() == str(Quantizer(6, 3, 16).encode(torch.randn(4, 6)).tolist())
