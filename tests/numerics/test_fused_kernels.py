"""Fused kernels of training: what they compute, under Triton's interpreter; that they compile for CUDA; and
which are chosen. All without a GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from zipformer_fixtures import TINY

from spear_lib.encoders.zipformer import ZipformerConfig
from spear_lib.encoders.zipformer.fused import zipformer_kernels
from spear_lib.kernels import choice, fused, select
from spear_lib.kernels.choice import FORMATS
from spear_lib.kernels.weights import WEIGHTS
from spear_lib.optim.fused import SCALED_ADAM
from spear_lib.pretraining.heads import HEADS
from spear_lib.runtime.devices import plan_for_accelerator
from spear_lib.training.kernels import use_kernels
from spear_lib.training.options import TrainingConfig
from spear_lib.training.planning.kernels import kernel_work

CASES = [str(Path(__file__).with_name(name)) for name in ("fused_cases.py", "fused_step_cases.py")]
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64"}
TYPES |= {torch.int8: "i8", torch.uint8: "u8"}
KERNELS = {k.name: k for k in [*zipformer_kernels(ZipformerConfig(**TINY)), WEIGHTS, HEADS, SCALED_ADAM]}
CPU, CUDA = torch.device("cpu"), torch.device("cuda")

linux = pytest.mark.skipif(sys.platform != "linux", reason="Triton exists for Linux only")


@linux
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("marks", "cases"),
    [("not slow", 60), pytest.param("slow", 8, marks=pytest.mark.slow)],
    ids=["quick", "slow"],
)
def test_kernels_give_the_numbers_of_eager_pytorch(marks, cases):
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", marks, *CASES]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", result.stdout).group(1)) >= cases


class Compiler:
    """Stands in for the launch of a kernel: compiles it for a GPU, as the arguments of the launch ask."""

    def __init__(self, capability: int) -> None:
        self.capability, self.programs = capability, {}

    def launch(self, kernel, *args, grid, warmup, num_warps=4, **constants):
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        given = dict(zip(kernel.arg_names, args)) | constants
        for value in given.values():  # what a kernel leaves behind decides what is started next
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                value.data.fill_(1.0)
        types = {name: self._type(value) for name, value in given.items() if name not in constants}
        types = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        key = kernel.fn.__module__, kernel.fn.__name__, tuple(types.values()), tuple(constants.values())
        if key not in self.programs:
            source = ASTSource(kernel, types, constexprs=constants)
            target = GPUTarget("cuda", self.capability, 32)
            compiled = triton.compile(source, target=target, options={"num_warps": num_warps})
            assert f".target sm_{self.capability}" in compiled.asm["ptx"]
            self.programs[key] = len(compiled.asm["cubin"])

    def _type(self, value) -> str:
        if isinstance(value, torch.Tensor):
            return "*" + TYPES[value.dtype]
        return "fp32" if isinstance(value, float) else "i32" if -(2**31) <= value < 2**31 else "i64"


def compiled(names, dtype, capability, monkeypatch, folder):
    """The programs that samples of ``names`` start, compiled."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    from triton.runtime import JITFunction

    compiler = Compiler(capability)
    monkeypatch.setattr(
        JITFunction, "run", lambda kernel, *args, **options: compiler.launch(kernel, *args, **options)
    )
    monkeypatch.setattr(choice, "interpreted", lambda: True)  # tensors of a CPU will do
    with plan_for_accelerator():
        for name in names:
            own = KERNELS[name].dtype or dtype
            with choice.running([name]):
                KERNELS[name].sample(CPU, own, own)
    return compiler.programs


@linux
@pytest.mark.parametrize("name", ["swoosh", "attention"])
def test_kernels_compile_for_an_h100_in_bf16(name, tmp_path, monkeypatch):
    programs = compiled([name], torch.bfloat16, 90, monkeypatch, tmp_path)
    assert programs and min(programs.values()) > 1000


@linux
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_kernels_compile_for_every_format_and_gpu(dtype, capability, tmp_path, monkeypatch):
    programs = compiled(KERNELS, dtype, capability, monkeypatch, tmp_path)
    assert len(programs) >= len(KERNELS) and min(programs.values()) > 1000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_agree_on_a_gpu_at_the_widths_of_base(name, dtype):
    of_base = [*zipformer_kernels(ZipformerConfig.base()), WEIGHTS, HEADS, SCALED_ADAM]
    kernels = {kernel.name: kernel for kernel in of_base}
    assert choice.compare(kernels[name], CUDA, dtype) == ""


# ------------------------------------------------------------------------------------------------ choice
def test_nothing_is_fused_on_a_cpu(monkeypatch):
    line = select("auto", CPU, torch.float32, list(KERNELS.values()))
    assert line == "eager PyTorch (auto: no fused kernels, they need CUDA and the device is cpu)"
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # the interpreter is for tests: auto does not use it
    line = select("auto", CPU, torch.float32, list(KERNELS.values()))
    assert line == "eager PyTorch (auto: no fused kernels, the device is cpu)"
    with choice.running(KERNELS), monkeypatch.context() as plain:
        plain.delenv("TRITON_INTERPRET")
        assert not any(fused(name, torch.ones(1)) for name in KERNELS)
        with plan_for_accelerator():
            assert all(fused(name, torch.ones(1)) for name in KERNELS)
            assert not any(fused(name, torch.ones(1, dtype=torch.float64)) for name in KERNELS)


def test_eager_and_wrong_choices(monkeypatch):
    assert select("eager", CUDA, torch.bfloat16, list(KERNELS.values())) == "eager PyTorch (as asked)"
    with pytest.raises(
        ValueError, match=r"kernels is 'fused', but .*need CUDA and the device is cpu; use auto"
    ):
        select("fused", CPU, torch.float32, list(KERNELS.values()))
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RuntimeError, match=r"Triton is not installed: pip install triton .*; use auto or eager"
    ):
        select("fused", CUDA, torch.float32, list(KERNELS.values()))
    assert "auto: no fused kernels, Triton is not installed" in select(
        "auto", CUDA, torch.float32, list(KERNELS.values())
    )
    with pytest.raises(ValueError, match="kernels must be auto, eager or fused, it is 'quick'"):
        TrainingConfig(kernels="quick")


def test_a_run_says_its_kernels():
    class Encoder(torch.nn.Module):
        config = ZipformerConfig(**TINY)

    line = use_kernels(TrainingConfig(device="cpu"), CPU, Encoder())
    assert line == "eager PyTorch (auto: no fused kernels, they need CUDA and the device is cpu)"
    assert use_kernels(TrainingConfig(kernels="eager"), CPU, Encoder()) == "eager PyTorch (as asked)"


# ----------------------------------------------------------------------------------------------- traffic
def test_a_fused_operation_is_one_kernel_with_its_inputs_and_outputs():
    """By hand: Swoosh of (2, 3, 5) bf16 reads 60 bytes and 40 of the multiplier, and writes 60."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, multiplier = torch.empty(2, 3, 5, dtype=torch.bfloat16), torch.empty(2, 1, 5)
        operator = torch.ops.spear.swoosh.default
        y = operator(x, multiplier, "L", torch.bfloat16)
        assert y.shape == x.shape and y.dtype == torch.bfloat16
        work = kernel_work(operator, (x, multiplier, "L", torch.bfloat16), {}, y)
        assert (work.kernels, work.bytes, work.name) == (1, 60 + 40 + 60, "spear::swoosh")
        operator = torch.ops.spear.swoosh_both.default
        both = operator(x, x, multiplier, "L")
        work = kernel_work(operator, (x, x.clone(), multiplier, "L"), {}, both)
        assert (work.kernels, work.bytes) == (1, 4 * 60 + 40)
