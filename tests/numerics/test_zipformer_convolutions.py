"""Convolutions as matrix products against the library's in float64, and the allocator switch."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from spear_lib.encoders.zipformer import cpu_convolutions
from spear_lib.encoders.zipformer.cpu_convolutions import depthwise_conv1d, first_conv2d, use_matrix_products


def _gradients(function, inputs, weights):
    inputs = [value.clone().requires_grad_() for value in inputs]
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad((y * weights[: y.shape[0]].to(y.dtype)).sum(), inputs)]


def _compare(function, expected, inputs, size):
    weights = torch.randn(size)
    own = _gradients(function, inputs, weights)
    double = _gradients(expected, [value.double() for value in inputs], weights)
    for value, wanted in zip(own, double):
        scale = wanted.abs().max().item()
        torch.testing.assert_close(value.double(), wanted, atol=3e-6 * scale, rtol=0)


@pytest.mark.parametrize("kernel", [3, 15, 31])
@pytest.mark.parametrize("num_frames", [1, 15, 16, 33])
def test_depthwise_conv1d(kernel, num_frames):
    inputs = [torch.randn(3, num_frames, 5), torch.randn(5, 1, kernel), torch.randn(5)]

    def expected(x, weight, bias):
        y = F.conv1d(x.transpose(1, 2), weight, bias, padding=kernel // 2, groups=5)
        return y.transpose(1, 2)

    assert use_matrix_products(inputs[0])
    _compare(depthwise_conv1d, expected, inputs, (3, num_frames, 5))


@pytest.mark.parametrize("bins", [7, 16, 81, 128])
def test_first_conv2d(bins):
    inputs = [torch.randn(2, 12, bins), torch.randn(4, 1, 3, 3), torch.randn(4)]

    def expected(x, weight, bias):
        return F.conv2d(x.unsqueeze(1), weight, bias, padding=(0, 1)).permute(0, 2, 3, 1)

    _compare(first_conv2d, expected, inputs, (2, 10, bins, 4))


def test_other_types_use_the_library(monkeypatch):
    x, weight, bias = torch.randn(2, 9, 4), torch.randn(4, 1, 5), torch.randn(4)
    fast = depthwise_conv1d(x, weight, bias)
    monkeypatch.setattr(cpu_convolutions, "use_matrix_products", lambda x: False)
    torch.testing.assert_close(depthwise_conv1d(x, weight, bias), fast, atol=1e-5, rtol=0)
    image, kernel = torch.randn(2, 9, 20), torch.randn(4, 1, 3, 3)
    library = first_conv2d(image, kernel, bias)
    monkeypatch.undo()
    torch.testing.assert_close(first_conv2d(image, kernel, bias), library, atol=1e-5, rtol=0)
    assert not use_matrix_products(x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not use_matrix_products(x)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_keep_freed_memory_reuses_large_blocks():
    # The second round touches no new page only where the freed block of the first was kept.
    code = (
        "import resource, sys, numpy as np\n"
        "from spear_lib.training.cpu_memory import keep_freed_memory\n"
        "assert sys.argv[1] == 'no' or keep_freed_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def touch():\n"
        "    block = np.empty(50_000_000, dtype=np.uint8); block[::4096] = 1\n"
        "touch(); before = faults(); touch(); print(faults() - before)\n"
    )

    def faults(argument):
        run = subprocess.run(
            [sys.executable, "-c", code, argument], capture_output=True, text=True, check=True
        )
        return int(run.stdout)

    assert faults("yes") * 4 < faults("no")
