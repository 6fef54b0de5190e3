"""The golden files of SpidR (tests/golden/spidr) and what tests of several folders make of them."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from spear_lib.data.batch import Batch
from spear_lib.encoders.spidr import SpidrConfig, SpidrEncoder
from spear_lib.encoders.spidr.published import TENSORS
from spear_lib.runtime import keyed_random
from spear_lib.self_distillation.objective import ObjectiveConfig
from spear_lib.self_distillation.published import load_published
from spear_lib.self_distillation.task import SelfDistillationModel, SelfDistillationTask
from spear_lib.self_distillation.teacher import TeacherConfig
from spear_lib.training.task import StepClock

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


def toy_objective(**changes) -> ObjectiveConfig:
    """The objective of every golden case."""
    teacher = TeacherConfig(start_decay=0.9, timescale=4.0, **changes.pop("teacher", {}))
    return ObjectiveConfig(**{"codebook_size": 16, "teacher": teacher, **changes})


def toy_task(heads_on: str = "layers", **changes) -> SelfDistillationTask:
    """The task of every golden case with its weights, in training mode."""
    objective = toy_objective(**changes)
    model = SelfDistillationModel(toy_encoder(heads_on=heads_on), objective)
    load_published(model, golden("weights"), GOLDEN / "weights.safetensors")
    model.train()
    return SelfDistillationTask(model, objective)


def batch_of(waveforms: Tensor, mask: Tensor | None, lengths: Tensor | None = None) -> Batch:
    """A batch of raw waveforms (B, N) with a mask (B, T) of 20 ms frames."""
    if lengths is None:
        lengths = torch.full((len(waveforms),), waveforms.shape[1])
    ids = [f"u{number}" for number in range(len(waveforms))]
    return Batch(
        ids=ids,
        keys=keyed_random.keys("golden", ids=ids),
        waveforms=waveforms,
        num_samples=lengths,
        time_mask=None if mask is None else mask.repeat_interleave(2, dim=1),
    )


def raw_of(standardised: Tensor) -> Tensor:
    """Waveforms that become the given ones when they are standardised: what 1e-5 took off is put back."""
    x = standardised.double()
    variance = x.var(dim=1, correction=0, keepdim=True)
    return (x * (1e-5 / (1.0 - variance)).sqrt()).float()


def begin(task: SelfDistillationTask, batch: Batch, step: int = 1, micro_batch: int = 0) -> None:
    task.begin_step(batch, StepClock(step, float(step), 0.0, step, micro_batch))


def labels_of(task: SelfDistillationTask, batch: Batch) -> Tensor:
    """(n, B, T) int64, -1 where not masked."""
    seen = task.model.view.forward(task.model.teacher, batch)
    found = []
    for number, pair in enumerate(seen.pairs):
        labels = torch.full(pair.masked.shape, -1)
        labels[pair.masked] = task.score(number, pair, batch).labels
        found.append(labels)
    return torch.stack(found)


def assert_codebooks(task: SelfDistillationTask, expected: dict[str, Tensor], prefix: str) -> None:
    for number, codebook in enumerate(task.model.codebooks):
        for name in ("codebook", "counts"):
            wanted = expected[f"{prefix}codebooks.{number}.{name}"]
            assert_near(getattr(codebook, name), wanted, f"{prefix}{number}.{name}")
