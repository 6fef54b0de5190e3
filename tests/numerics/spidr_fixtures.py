"""The golden files of SpidR (tests/golden/spidr) and what tests of several folders make of them."""

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from spear_lib.encoders.spidr import SpidrConfig, SpidrEncoder
from spear_lib.encoders.spidr.published import TENSORS

GOLDEN = Path(__file__).parent.parent / "golden" / "spidr"
TOLERANCE = 3e-5  # of the largest number of a tensor (README of the files)

TOY = {
    "conv_channels": 24,
    "hidden_dim": 32,
    "num_layers": 4,
    "num_heads": 2,
    "feedforward_dim": 80,
    "position_kernel": 95,
    "position_depth": 5,
    "position_groups": 4,
    "num_codebooks": 3,
    "codebook_size": 16,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def meta() -> dict:
    return json.loads((GOLDEN / "meta.json").read_text())


def toy_encoder(**changes) -> SpidrEncoder:
    """The encoder of every golden case, with its weights."""
    encoder = SpidrEncoder(SpidrConfig(**{**TOY, **changes}))
    weights = golden("weights")
    encoder.load_state_dict({name: value for name, value in weights.items() if name.startswith(TENSORS)})
    return encoder


def assert_near(found: Tensor, expected: Tensor, what: str = "") -> None:
    """Within the tolerance of the golden files."""
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)} instead of {tuple(expected.shape)}"
    worst = (found.detach() - expected).abs().max().item()
    limit = TOLERANCE * expected.abs().max().item()
    assert worst <= limit, f"{what}: differs by {worst:.3g}, allowed {limit:.3g}"
