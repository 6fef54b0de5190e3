"""The quantiser against the package multi_quantization itself, on random and on trained codebooks."""

import random

import multi_quantization
import pytest
import torch
from quantizer_fixtures import stream
from torch import Tensor

from spear_lib.quantization import Quantizer
from spear_lib.quantization.options import QuantizerTrainingOptions
from spear_lib.quantization.report import code_usage
from spear_lib.quantization.trainer import train_quantizer

DIM = 64


def frames(count: int, seed: int) -> Tensor:
    """Frames (count, 64) of an anisotropic Gaussian with a mean."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, DIM, generator=generator) * torch.logspace(0, -1.5, DIM) + 0.3


def seed_peer(seed: int) -> None:
    """The package draws from torch and, for the number of refinements of a step, from Python's generator."""
    torch.manual_seed(seed)
    random.seed(seed)


def peer_of(num_codebooks: int, steps: int) -> multi_quantization.Quantizer:
    """A quantiser of the package, trained for ``steps`` steps by its own trainer; 0: as constructed."""
    seed_peer(num_codebooks)
    if steps == 0:
        return multi_quantization.Quantizer(DIM, 256, num_codebooks)
    trainer = multi_quantization.QuantizerTrainer(
        DIM, num_codebooks, torch.device("cpu"), phase_one_iters=steps // 2, phase_two_iters=steps // 2
    )
    for step in range(2 * (steps // 2) + 1):
        trainer.step(frames(64, step + 1))
    return trainer.get_quantizer()


def relative_error(x: Tensor, decoded: Tensor) -> float:
    return float((decoded - x).square().sum() / (x - x.mean(dim=0)).square().sum())


@pytest.mark.parametrize(
    "num_codebooks, steps", [(1, 0), (4, 0), (8, 0), (16, 0), (1, 120), (4, 24), (8, 24), (16, 24)]
)
def test_codes_and_error_are_the_peers(num_codebooks, steps):
    peer = peer_of(num_codebooks, steps)
    # Many: a rounding that tips a search changes up to 16 codes of its frame, and one such frame is no fault.
    ours, x = Quantizer.from_reference(peer.state_dict()), frames(1280 if num_codebooks == 16 else 640, 0)
    with torch.no_grad():
        expected = peer.encode(x, refine_indexes_iters=5)
        peers_error = relative_error(x, peer.decode(expected))
        codes = ours.encode(x, 5)
        assert codes.dtype == expected.dtype and codes.shape == expected.shape
        assert (codes == expected).double().mean() >= 0.999
        assert relative_error(x, ours.decode(codes)) <= peers_error + 1e-4
        torch.testing.assert_close(ours.decode(expected), peer.decode(expected), atol=1e-5, rtol=1e-5)
    if steps:
        assert peers_error < 0.9  # it has learnt something


def test_the_peer_reads_what_we_export():
    ours, x = Quantizer(DIM, 4), frames(50, 0)
    peer = multi_quantization.Quantizer(DIM, 256, 4)
    peer.load_state_dict(ours.to_reference()["quantizer"])
    assert peer.get_id() == ours.id[:8]
    with torch.no_grad():
        assert (peer.encode(x) == ours.encode(x)).double().mean() >= 0.999


def test_at_equal_frames_ours_is_better_than_the_peers_training(tmp_path):
    """An anisotropic Gaussian, two codebooks; tools/benchmarks/quantizer_quality.py does it at full size."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4000, 12, generator=generator) * torch.logspace(0, -1, 12)
    data = stream(tmp_path / "e", x, normalisation="global")
    options = QuantizerTrainingOptions(
        num_codebooks=2,
        init_frames=1500,
        init_iterations=4,
        rounds=4,
        frames_per_round=3500,
        classifier_frames=3000,
        classifier_steps=5,
        classifier_batch=200,
    )
    assert 1500 * 4 * 2 + 4 * 3500 + 3000 + 5 * 200 <= 101 * 300
    ours = train_quantizer(data, options, 0, tmp_path, "run")[0]
    seed_peer(0)
    trainer = multi_quantization.QuantizerTrainer(12, 2, torch.device("cpu"), 50, 50)
    for step in range(101):
        trainer.step(data.read(300 * step, 300))
    held_out = (x[torch.from_numpy(data.stored.held_out)].half().float() - data.mean) / data.std
    errors = []
    with torch.no_grad():
        for model in (ours, Quantizer.from_reference(trainer.get_quantizer().state_dict())):
            decoded = model.decode(model.encode(held_out, 5, normalised=True), normalised=True)
            errors.append(relative_error(held_out, decoded))
        assert errors[0] <= 0.97 * errors[1]
        tokens = ours.encode(data.read(0, data.epoch_frames), 2, normalised=True)
    assert code_usage(tokens, 256)["used_share"] == [1.0, 1.0]
