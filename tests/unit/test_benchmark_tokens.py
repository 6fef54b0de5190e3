"""tools/benchmarks/tokens.py runs and says what it measures, on a handful of cuts."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "tools" / "benchmarks" / "tokens.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_tokens", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_random_reads(benchmark, tmp_path, capsys):
    benchmark.random_reads(tmp_path, rounds=1, count=50)
    printed = capsys.readouterr().out
    assert "packed codes: 1.0000 of frames x codebooks bytes" in printed and "NumpyFilesWriter" in printed


def test_flat_memory(benchmark, tmp_path, capsys):
    benchmark.flat_memory(tmp_path, 300)
    printed = capsys.readouterr().out
    assert "(c) 300 cuts" in printed and "after the first shard" in printed and "checked" in printed
