"""Running model average and range average: golden file, explicit means, errors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spear_lib.training.averaging import ModelAverage, average_between

DATA = load_file(str(Path(__file__).parents[1] / "golden" / "model_averaging.safetensors"))


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.tied = torch.nn.Linear(3, 2)
        self.tied.weight = self.linear.weight
        self.register_buffer("counter", DATA["int_buffer_in_average"].clone())
        self.set("init", None)

    @torch.no_grad()
    def set(self, kind, row):
        for name in ("weight", "bias"):
            value = DATA[f"{kind}.{name}"]
            getattr(self.linear, name).copy_(value if row is None else value[row])


def test_golden():
    model = Toy()
    average = ModelAverage(model, period=200)
    saved = {}
    for row, step in enumerate(DATA["steps"].tolist()):
        before = average.state_dict()["state"]["linear.weight"].clone()
        average.update(model, step - 1)  # not a multiple of the period: nothing happens
        assert torch.equal(average.average["linear.weight"], before)
        model.set("current", row)
        model.counter.copy_(DATA["int_buffer_current"])
        average.update(model, step)
        for name in ("weight", "bias"):
            torch.testing.assert_close(
                average.average[f"linear.{name}"], DATA[f"average.{name}"][row], rtol=0, atol=1e-6
            )
        # A tensor registered twice is averaged once.
        torch.testing.assert_close(average.average["tied.weight"], average.average["linear.weight"])
        saved[step] = {name: value.clone() for name, value in average.state_dict()["state"].items()}
    assert torch.equal(average.average["counter"], DATA["int_buffer_in_average"])
    assert average.state_dict()["step"] == 2400
    found = average_between(saved[1000], 1000, saved[2400], 2400)
    for name in ("weight", "bias"):
        assert found[f"linear.{name}"].dtype == torch.float32
        expected = DATA[f"range_average.{name}"].float()
        torch.testing.assert_close(found[f"linear.{name}"], expected, rtol=0, atol=1e-6)
        explicit = DATA[f"current.{name}"][5:].double().mean(0).float()
        torch.testing.assert_close(found[f"linear.{name}"], explicit, rtol=0, atol=1e-6)
    everything = average_between(None, 0, saved[2400], 2400)
    torch.testing.assert_close(everything["linear.bias"], saved[2400]["linear.bias"].float())


def test_resume_is_bit_exact():
    model, other = Toy(), Toy()
    unbroken = ModelAverage(model, 200)
    resumed = ModelAverage(other, 200)
    for row, step in enumerate(DATA["steps"].tolist()):
        model.set("current", row)
        unbroken.update(model, step)
        if step == 1000:
            resumed.load_state_dict(unbroken.state_dict())
        elif step > 1000:
            resumed.update(model, step)
    assert resumed.step == unbroken.step
    for name, value in unbroken.average.items():
        assert torch.equal(value, resumed.average[name])


def test_errors():
    model = Toy()
    average = ModelAverage(model, 10)
    with pytest.raises(ValueError, match="stands at step 0 and was asked to take in step 30"):
        average.update(model, 30)
    with pytest.raises(ValueError, match="snapshot every 20 steps, this run every 10"):
        average.load_state_dict(ModelAverage(model, 20).state_dict())
    with pytest.raises(ValueError, match="lacks 5 tensors|lacks 4 tensors|lacks 3 tensors"):
        average.update(torch.nn.Linear(3, 2), 10)
    with pytest.raises(ValueError, match="from step 20 to step 20"):
        average_between(average.average, 20, average.average, 20)
    with pytest.raises(ValueError, match="at step 20 is needed"):
        average_between(None, 20, average.average, 40)
    wider = {**average.average, "linear.weight": torch.zeros(7)}
    with pytest.raises(ValueError, match=r"linear.weight is \(2, 3\) in the later average but \(7,\)"):
        average_between(wider, 10, average.average, 20)
    with pytest.raises(ValueError, match="period is 0"):
        ModelAverage(model, 0)
