"""RNN-T losses against k2 (golden rnnt_k2): values, occupations, gradients, prune ranges."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from spear_lib.transducer import (
    do_rnnt_pruning,
    get_rnnt_prune_ranges,
    rnnt_loss,
    rnnt_loss_pruned,
    rnnt_loss_simple,
    rnnt_loss_smoothed,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "rnnt_k2.safetensors"


def _load() -> dict[str, torch.Tensor]:
    with safe_open(str(GOLDEN), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)


DATA = _load()
# (case, type, delay) of every simple loss in the file, e.g. main.regular.delay0.1.simple.loss
RUNS = sorted(
    tuple(name.replace(".simple.loss", "").split(".", 2)) for name in DATA if name.endswith(".simple.loss")
)
RANGES = sorted({tuple(name.split(".")[:2]) for name in DATA if name.endswith(".ranges")})
DTYPES = [torch.float32, torch.float64]


def _tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-6, "atol": 1e-4 if dtype is torch.float32 else 2e-6}


def _inputs(case: str, dtype: torch.dtype):
    boundary = DATA.get(f"{case}.boundary") if case != "nob" else None
    return (
        DATA[f"{case}.lm"].to(dtype, copy=True).requires_grad_(),
        DATA[f"{case}.am"].to(dtype, copy=True).requires_grad_(),
        DATA[f"{case}.symbols"],
        boundary,
    )


def test_golden_file_is_fully_listed():
    cases = {case for case, _, _ in RUNS}
    assert cases == {"main", "edge", "edge_mod", "nob", "wide", "empty"}
    assert {kind for _, kind, _ in RUNS} == {"regular", "modified", "constrained"}
    assert len(RANGES) >= 9


def _scaled(kind: str):
    if kind == "simple":
        return rnnt_loss_simple, {}
    lm_scale, am_scale = kind.removeprefix("smoothed_lm").split("_am")
    return rnnt_loss_smoothed, {"lm_only_scale": float(lm_scale), "am_only_scale": float(am_scale)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case,rnnt_type,delay", RUNS, ids=lambda v: str(v))
@pytest.mark.parametrize("kind", ["simple", "smoothed_lm0.25_am0.0", "smoothed_lm0.1_am0.1"])
def test_simple_and_smoothed(case, rnnt_type, delay, kind, dtype):
    prefix = f"{case}.{rnnt_type}.{delay}.{kind}"
    if f"{prefix}.loss" not in DATA:
        assert case == "empty", prefix
        return
    lm, am, symbols, boundary = _inputs(case, dtype)
    function, scales = _scaled(kind)
    loss, (gx, gy) = function(
        lm, am, symbols, 0, **scales, boundary=boundary, rnnt_type=rnnt_type,
        delay_penalty=float(delay.removeprefix("delay")), reduction="none", return_grad=True,
    )  # fmt: skip
    loss.sum().backward()
    close = _tolerance(dtype)
    if "delay0.1" in delay:
        close["atol"] = max(close["atol"], 1e-5)  # k2 computes the penalty in float32
    for name, value in {
        "loss": loss,
        "px_grad": gx,
        "py_grad": gy,
        "grad_am": am.grad,
        "grad_lm": lm.grad,
    }.items():
        expected = DATA[f"{prefix}.{name}"].to(dtype)
        assert value.shape == expected.shape, name
        torch.testing.assert_close(value.detach(), expected, **close, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case,rnnt_type,delay", RUNS, ids=lambda v: str(v))
@pytest.mark.parametrize("kind", ["pruned", "full"])
def test_pruned_and_full(case, rnnt_type, delay, kind, dtype):
    prefix = f"{case}.{rnnt_type}.{delay}.{kind}"
    if f"{prefix}.loss" not in DATA:
        assert case in ("empty", "wide"), prefix
        return
    _, _, symbols, boundary = _inputs(case, dtype)
    logits = DATA[f"{case}.logits_{kind}"].to(dtype, copy=True).requires_grad_()
    options = {
        "boundary": boundary, "rnnt_type": rnnt_type, "reduction": "none",
        "delay_penalty": float(delay.removeprefix("delay")),
    }  # fmt: skip
    if kind == "pruned":
        ranges = DATA[f"{case}.{rnnt_type}.delay0.0.ranges"]
        loss = rnnt_loss_pruned(logits, symbols, ranges, 0, **options)
    else:
        loss = rnnt_loss(logits, symbols, 0, **options)
    loss.sum().backward()
    close = _tolerance(dtype)
    if "delay0.1" in delay:
        close["atol"] = max(close["atol"], 1e-5)
    torch.testing.assert_close(loss.detach(), DATA[f"{prefix}.loss"].to(dtype), **close)
    torch.testing.assert_close(logits.grad, DATA[f"{prefix}.grad_logits"].to(dtype), **close)


@pytest.mark.parametrize("case,rnnt_type", RANGES, ids=lambda v: str(v))
def test_ranges_and_pruning(case, rnnt_type):
    lm, am, symbols, boundary = _inputs(case, torch.float32)
    _, (gx, gy) = rnnt_loss_smoothed(
        lm, am, symbols, 0, 0.25, 0.0, boundary, rnnt_type, reduction="sum", return_grad=True
    )
    if boundary is None:
        boundary = torch.tensor([[0, 0, symbols.shape[1], am.shape[1]]]).expand(len(symbols), -1)
    ranges = get_rnnt_prune_ranges(gx, gy, boundary, 3 if case == "wide" else 5)
    prefix = f"{case}.{rnnt_type}.delay0.0"
    assert torch.equal(ranges, DATA[f"{prefix}.ranges"])
    am_pruned, lm_pruned = do_rnnt_pruning(am, lm, ranges)
    if f"{prefix}.lm_pruned" in DATA:
        assert torch.equal(lm_pruned, DATA[f"{prefix}.lm_pruned"])
        torch.testing.assert_close(
            am_pruned.sum((2, 3)), DATA[f"{prefix}.am_pruned_checksum"], rtol=1e-5, atol=1e-4
        )
