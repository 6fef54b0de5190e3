"""What cases of fused kernels share: Triton's interpreter, code for accelerators on a CPU, comparisons."""

import os

import numpy as np
import pytest
import torch

from spear_lib.kernels import choice
from spear_lib.runtime.devices import plan_for_accelerator

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.exit("run test_fused_kernels.py: these cases need TRITON_INTERPRET=1", returncode=3)

import triton.language as tl
from triton.runtime import interpreter

CPU = torch.device("cpu")


def _converted(values, source, target, rounding):
    """A GPU rounds to the nearest bf16 number; Triton 3.9's interpreter cuts digits off."""
    if (source, target) == (tl.float32, tl.bfloat16):
        rounded = torch.from_numpy(np.ascontiguousarray(values)).bfloat16().view(torch.int16)
        return rounded.numpy().view(np.uint16).reshape(values.shape)
    return _interpreters(values, source, target, rounding)


_interpreters, interpreter._convert_float = interpreter._convert_float, _converted


@pytest.fixture(autouse=True)
def a_device():
    """Code for accelerators, on tensors in a CPU's memory; nothing chosen before and after."""
    with plan_for_accelerator(), choice.running(()):
        yield


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(function, *inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(4)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]


def both_ways(name, function, *inputs, rtol=1e-5):
    """The results of ``function`` with the kernel, which are those without."""
    expected = gradients(function, *inputs)
    with choice.running([name]):
        found = gradients(function, *inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=rtol * float(theirs.abs().max()) + 1e-30)
    return found
