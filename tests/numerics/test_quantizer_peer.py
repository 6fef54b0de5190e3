"""The quantiser against the package multi_quantization itself, on random and on trained codebooks."""

import multi_quantization
import pytest
import torch
from torch import Tensor

from spear_lib.quantization import Quantizer

DIM = 64


def frames(count: int, seed: int) -> Tensor:
    """Frames (count, 64) of an anisotropic Gaussian with a mean."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, DIM, generator=generator) * torch.logspace(0, -1.5, DIM) + 0.3


def peer_of(num_codebooks: int, steps: int) -> multi_quantization.Quantizer:
    """A quantiser of the package, trained for ``steps`` steps by its own trainer; 0: as constructed."""
    torch.manual_seed(num_codebooks)
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
    # Many: one rounding that tips a search changes up to 16 codes of its frame.
    ours, x = Quantizer.from_reference(peer.state_dict()), frames(640, 0)
    with torch.no_grad():
        expected = peer.encode(x, refine_indexes_iters=5)
        peers_error = relative_error(x, peer.decode(expected))
        for kernel in ("torch", "compiled"):
            codes = ours.encode(x, 5, kernel=kernel)
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
