"""tools/benchmarks/transducer.py, k2_parity.py, k2_parity.sh: they compare one loss; error lines."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import spear_lib.transducer as ours

TOOLS = Path(__file__).parents[2] / "tools" / "benchmarks"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plain_autograd_peer_is_the_same_loss():
    benchmark = _load("transducer")
    data = benchmark.make_batch(SimpleNamespace(utterances=3, frames=12, labels=7, classes=9))
    inputs = [data[name] for name in ("lm", "am", "encoder", "decoder")]
    gradients = {}

    def keep_gradients(loss, inputs):
        gradients[len(gradients)] = torch.autograd.grad(loss, inputs)

    own, ranges = benchmark.step(ours, data)
    plain, _ = benchmark.step(benchmark.PLAIN, data, ranges)
    assert own == pytest.approx(plain, rel=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "backward", keep_gradients)
        benchmark.step(ours, data, ranges)
        benchmark.step(benchmark.PLAIN, data, ranges)
    for a, b in zip(*gradients.values()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert all(tensor.grad is None for tensor in inputs)


def test_benchmark_names_a_missing_peer():
    result = subprocess.run(
        [sys.executable, "-c",
         "import sys, runpy; sys.modules['k2'] = None; sys.argv = ['b', '--peer', 'k2'];"
         f"sys.path.insert(0, {str(TOOLS)!r});"
         f"runpy.run_path({str(TOOLS / 'transducer.py')!r}, run_name='__main__')"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1 and result.stderr.startswith("error: k2 is not installed here")


def _fake_k2(**changed) -> SimpleNamespace:
    names = [name for name in ours.__all__ if name.startswith(("rnnt_", "get_", "do_"))]
    functions = {name: getattr(ours, name) for name in names}
    return SimpleNamespace(**{**functions, "__dev_version__": "fake", **changed})


def test_parity_passes_and_fails(monkeypatch, capsys):
    parity = _load("k2_parity")
    monkeypatch.setitem(sys.modules, "k2", _fake_k2())
    assert parity.main(["--batches", "3"]) == 0
    printed = capsys.readouterr().out
    assert "k2 parity: ok" in printed and printed.count("ok\n") > 10

    def slightly_wrong(*args, **kwargs):
        return ours.rnnt_loss(*args, **kwargs) * (1 + 1e-3)

    monkeypatch.setitem(sys.modules, "k2", _fake_k2(rnnt_loss=slightly_wrong))
    assert parity.main(["--batches", "3"]) == 1
    printed = capsys.readouterr().out
    assert "k2 parity: FAILED" in printed
    failed = [line for line in printed.splitlines() if line.endswith("  FAILED")]
    assert failed and all("full loss" in line for line in failed)


def test_parity_script_without_python310(tmp_path):
    result = subprocess.run(
        ["bash", str(TOOLS / "k2_parity.sh")], capture_output=True, text=True,
        env={**os.environ, "PYTHON310": "/bin/false", "SPEAR_K2_VENV": str(tmp_path / "venv")},
    )  # fmt: skip
    assert result.returncode == 1 and not (tmp_path / "venv").exists()
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: no Python 3.10 found at PYTHON310=/bin/false")
