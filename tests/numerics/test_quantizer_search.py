"""The refinement search: ties, chunks and settled frames change nothing."""

import torch

from spear_lib.quantization import Quantizer, search, search_rounds
from spear_lib.quantization.code_table import CodeTable


def start_of(num_codebooks: int, size: int, dim: int, frames: int):
    torch.manual_seed(num_codebooks * 1000 + size)
    quantizer, x = Quantizer(dim, num_codebooks, size), 2 * torch.randn(frames, dim)
    table = quantizer.code_table()
    return table, table.project(x), quantizer.encode(x, 0).long()


def test_of_equal_code_vectors_the_first_is_taken():
    """Every entry exists twice, so every comparison is a tie."""
    torch.manual_seed(0)
    half = torch.randint(-2, 3, (6, 32, 10)).float()
    table = CodeTable(torch.cat([half, half], dim=1))
    h = table.project(torch.randint(-9, 10, (80, 10)).float())
    codes = torch.zeros(80, 6, dtype=torch.int64)
    codes = search.refine(table, h, codes, 5)
    assert codes.unique().numel() > 10 and int(codes.max()) < 32


def test_smallest_is_sorted_and_takes_the_first_of_equals():
    values = torch.tensor([[3.0, -1.0, 2.0, -1.0, 0.0, -5.5, 1e30, -1e30]])
    found, index = search_rounds._smallest(values, 5)
    assert found.tolist() == [[torch.tensor(-1e30).item(), -5.5, -1.0, -1.0, 0.0]]
    assert index.tolist() == [[7, 5, 1, 3, 4]]


def test_threads_and_chunks_change_nothing():
    table, h, codes = start_of(4, 64, 12, 90)
    threads = torch.get_num_threads()
    alone = search.refine(table, h, codes, 5)
    try:
        torch.set_num_threads(3)
        assert torch.equal(search.refine(table, h, codes, 5), alone)
    finally:
        torch.set_num_threads(threads)
    parts = [search.refine(table, a, b, 5) for a, b in zip(h.split(7), codes.split(7))]
    assert torch.equal(torch.cat(parts), alone)
    assert search.refine(table, h[:0], codes[:0], 5).shape == (0, 4)


def test_frames_at_rest_are_left_alone_exactly():
    """Five rounds in one call are five calls of one round, though settled frames leave early."""
    table, h, codes = start_of(6, 64, 16, 100)
    together = search.refine(table, h, codes, 5)
    for _ in range(5):
        codes = search.refine(table, h, codes, 1)
    assert torch.equal(codes, together)
