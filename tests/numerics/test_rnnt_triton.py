"""Triton's kernels of the transducer: their logic under Triton's interpreter, and that they compile for CUDA,
both without a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("triton_cases.py")


TYPES = {"px": "*fp32", "py": "*fp32", "gx": "*fp32", "gy": "*fp32", "alpha": "*fp64", "scores": "*fp64"}
TYPES |= {"visits": "*fp64", "num_labels": "*i64", "num_frames": "*i64", "start": "*i64"}

linux = pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")


@linux
def test_kernels_give_the_numbers_of_torch():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(CASES)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", result.stdout).group(1)) >= 33


@linux
@pytest.mark.parametrize("regular", [True, False])
@pytest.mark.parametrize("name", ["_lattice_forward", "_lattice_backward", "_band_forward", "_band_backward"])
def test_kernels_compile_for_cuda(name, regular, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from spear_lib.transducer import kernels

    kernel = getattr(kernels, name)
    constants = {"REGULAR": regular, "WIDTH": 8}
    types = {each: "constexpr" if each in constants else TYPES.get(each, "i32") for each in kernel.arg_names}
    source = ASTSource(kernel, types, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    assert ".f64" in compiled.asm["ptx"] and len(compiled.asm["cubin"]) > 1000
