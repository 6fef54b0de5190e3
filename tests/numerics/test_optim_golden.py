"""ScaledAdam and Eden against the reference (golden scaled_adam, eden)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from spear_lib.optim import Eden, ScaledAdam, eden_factor

GOLDEN = Path(__file__).parents[1] / "golden"


def _load():
    with safe_open(str(GOLDEN / "scaled_adam.safetensors"), "pt") as file:
        data = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
        return data, json.loads(file.metadata()["config"])


DATA, CONFIG = _load()
NAMES = {g: [n.split(".", 2)[2] for n in DATA if n.startswith(f"init.{g}.")] for g in ("g0", "g1")}


def _groups(dtype):
    return [
        {
            "params": [
                torch.nn.Parameter(DATA[f"init.{group}.{name}"].to(dtype, copy=True)) for name in names
            ],
            "names": names,
        }
        for group, names in NAMES.items()
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("clipping_scale", [None, 2.0])
@pytest.mark.parametrize("variant,golden", [("spear", "branch"), ("master", "master")])
def test_scaled_adam_trajectory(variant, golden, clipping_scale, dtype):
    groups = _groups(dtype)
    settings = {
        name: CONFIG[name]
        for name in CONFIG
        if name not in ("lr", "steps", "lr_scale_group1", "checkpoints", "betas")
    }
    optimizer = ScaledAdam(
        groups, CONFIG["lr"], clipping_scale, tuple(CONFIG["betas"]), variant=variant, **settings
    )
    factors, compared = [], 0
    for step in range(CONFIG["steps"]):
        for index, (group, names) in enumerate(NAMES.items()):
            optimizer.param_groups[index]["lr"] = float(DATA["lr"][step, index])
            for parameter, name in zip(groups[index]["params"], names):
                parameter.grad = DATA[f"grad.{group}.{name}"][step].to(dtype).reshape(parameter.shape)
        optimizer.step()
        factors.append([float(factor) for factor in optimizer.last_clip_factors])
        if step + 1 in CONFIG["checkpoints"]:
            for index, (group, names) in enumerate(NAMES.items()):
                for parameter, name in zip(groups[index]["params"], names):
                    expected = DATA[f"{golden}.clip{clipping_scale}.step{step + 1}.{group}.{name}"].to(dtype)
                    limit = 2e-5 * float(expected.abs().max())
                    torch.testing.assert_close(
                        parameter.detach(), expected.reshape(parameter.shape), rtol=0, atol=limit,
                        msg=lambda m, where=(step + 1, group, name): f"{where}: {m}",
                    )  # fmt: skip
                    compared += 1
    assert compared == len(CONFIG["checkpoints"]) * sum(map(len, NAMES.values()))
    expected = DATA[f"{golden}.clip{clipping_scale}.clip_factor"]
    torch.testing.assert_close(torch.tensor(factors), expected, rtol=1e-4, atol=1e-5)
    assert optimizer.num_skipped == 0
    if clipping_scale is not None:
        assert float(expected.min()) < 0.9  # the run does clip


def test_scaled_adam_first_steps_of_the_spec():
    """The five steps written out in spec optim §1 ("How to verify", float32 there)."""
    theta = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    scalar = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    optimizer = ScaledAdam([theta, scalar], lr=0.045)
    expected = [
        (0.99288487, 2.00711513, 0.99954998),
        (0.97936612, 2.02063394, 0.99869496),
        (0.96008414, 2.03991604, 0.99747545),
        (0.93728435, 2.06811523, 0.99592787),
        (0.9095906, 2.10066843, 0.99408507),
    ]
    for first, second, third in expected:
        theta.grad = torch.tensor([0.1, -0.2], dtype=torch.float64)
        scalar.grad = torch.tensor(0.5, dtype=torch.float64)
        optimizer.step()
        assert theta.tolist() == pytest.approx([first, second], abs=3e-7)
        assert scalar.item() == pytest.approx(third, abs=3e-7)


EDEN = json.loads((GOLDEN / "eden.json").read_text())


@pytest.mark.parametrize("run", range(len(EDEN["runs"])))
def test_eden(run):
    settings = dict(EDEN["runs"][run])
    base = settings.pop("lr")
    optimizer = ScaledAdam(
        [
            {"params": [torch.nn.Parameter(torch.ones(2))], "lr": base},
            {"params": [torch.nn.Parameter(torch.ones(3))], "lr": 0.1 * base},
        ],
        lr=base,
    )
    schedule = Eden(optimizer, **settings)
    points = [point for point in EDEN["points"] if point[0] == run]
    assert len(points) > 60
    for _, batch, epoch, expected in points:
        schedule.step_batch(batch)
        schedule.step_epoch(epoch)
        assert schedule.get_last_lr() == pytest.approx([expected, 0.1 * expected], rel=1e-9)
        assert base * eden_factor(batch, epoch, **settings) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "batch,hours,expected",
    [(1, 0, 0.0225450), (500, 500, 0.0449456), (7500, 10000, 0.0364620), (400000, 700000, 0.00116401)],
)
def test_eden_values_of_the_spec(batch, hours, expected):
    assert 0.045 * eden_factor(batch, hours, 7500, 25000) == pytest.approx(expected, rel=1e-5)
