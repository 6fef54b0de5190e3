"""Short pre-trainings in bf16 (and, on a GPU, fp16) and in fp32: curves of the same shape."""

import numpy as np
import pytest
import torch
from pretraining_fixtures import make_corpus, write_config
from test_pretrain_two_teachers import call

STEPS = 40


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curves")
    train, valid = make_corpus(folder, 16), make_corpus(folder, 5, "dev")
    return write_config(folder, train, valid, max_steps=STEPS, valid_interval=STEPS, save_interval=STEPS)


def curve(config, folder, precision, device="cpu"):
    options = ["--training.precision", precision, "--training.device", device]
    lines = call(config, folder, *options)
    losses = [line["masked_loss"] for line in lines if line["kind"] == "train"]
    (valid,) = [line["masked_loss"] for line in lines if line["kind"] == "valid/dev"]
    return np.array(losses), valid


def assert_same_shape(one, other, within):
    """Losses of two runs: together all the way, within a share of each value, and down by the same amount."""
    (losses, valid), (others, other_valid) = one, other
    assert len(losses) == len(others) == STEPS and losses[-5:].mean() < 0.8 * losses[:5].mean()
    assert np.corrcoef(losses, others)[0, 1] > 0.999
    assert np.all(np.abs(others / losses - 1) < within) and abs((others / losses).mean() - 1) < within / 3
    assert other_valid == pytest.approx(valid, rel=within)


def test_bf16_on_cpu_follows_fp32(config, tmp_path):
    exact = curve(config, tmp_path / "fp32", "fp32")
    rounded = curve(config, tmp_path / "bf16", "bf16")
    assert not np.array_equal(exact[0], rounded[0])
    assert_same_shape(exact, rounded, 0.03)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_on_a_gpu_follows_fp32(config, tmp_path, precision):
    exact = curve(config, tmp_path / "fp32", "fp32", "cuda")
    assert_same_shape(exact, curve(config, tmp_path / precision, precision, "cuda"), 0.1)
