"""The batched beam searches find exactly the transcripts of the simple ones of tools/benchmarks/search.py."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spear_lib.asr.ctc_search import ctc_prefix_beam_search
from spear_lib.asr.lattice_search import lattice_beam_search
from spear_lib.asr.search import modified_beam_search

TOOL = Path(__file__).parents[2] / "tools" / "benchmarks" / "search.py"
_spec = importlib.util.spec_from_file_location("benchmark_search", TOOL)
benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(benchmark)

LENGTHS = torch.tensor([30, 0, 17, 42, 1, 25])


@pytest.mark.parametrize("beam", [1, 2, 4, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_transducer(beam, seed):
    model = benchmark.make_model(13, width=16, seed=seed)
    model.joiner.output_linear.bias.data[0] -= 3.0  # so small a one would hardly write anything
    encoder_out = 3 * torch.randn(len(LENGTHS), 42, 16, generator=torch.Generator().manual_seed(seed))
    found = [h.ids for h in modified_beam_search(model, encoder_out, LENGTHS, beam)]
    assert found == benchmark.simple_transducer_search(model, encoder_out, LENGTHS, beam)
    assert found == benchmark.simple_transducer_search(model, encoder_out, LENGTHS, beam, by_frame=True)
    assert sum(map(len, found)) > 10 and found[1] == []


@pytest.mark.parametrize("beam", [1, 2, 4])
@pytest.mark.parametrize("max_units", [1, 3])
def test_lattice(beam, max_units):
    model = benchmark.make_model(13, width=16)
    model.joiner.output_linear.bias.data[0] -= 6.0
    encoder_out = 3 * torch.randn(len(LENGTHS), 42, 16, generator=torch.Generator().manual_seed(2))
    found = lattice_beam_search(model, encoder_out, LENGTHS, beam, max_units)
    ids = [h.ids for h in found]
    assert ids == benchmark.simple_lattice_search(model, encoder_out, LENGTHS, beam, max_units)
    assert sum(map(len, ids)) > 10 and ids[1] == []
    if max_units > 1:  # some frame does hold several
        assert any(len(set(h.timestamps)) < len(h.timestamps) for h in found)


@pytest.mark.parametrize("beam", [1, 3, 10, 50])
@pytest.mark.parametrize("seed", [0, 1])
def test_ctc(beam, seed):
    generator = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(len(LENGTHS), 42, 6, generator=generator)).log_softmax(-1)
    found = [h.ids for h in ctc_prefix_beam_search(log_probs, LENGTHS, beam, beam_threshold=1e6)]
    assert found == benchmark.simple_ctc_search(log_probs, LENGTHS, beam)
    assert sum(map(len, found)) > 30


def test_the_benchmark_runs_and_refuses_other_transcripts():
    options = ["--utterances", "3", "--seconds", "0.5", "--rounds", "1", "--width", "16", "--units", "9"]
    result = subprocess.run([sys.executable, TOOL, *options], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("times faster") == 4 and "3 of 3 transcripts equal" in result.stdout
    with pytest.raises(RuntimeError, match="1 of 2 transcripts differ"):
        benchmark.compare("x", lambda: [[1], [2]], lambda: [[1], [3]], 1, "cpu")
