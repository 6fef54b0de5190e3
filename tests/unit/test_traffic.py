"""The reference's sequence of operations computes what ours does, and the table of traffic counts both."""

import json
import math

import pytest
import recording
import reference_encoder
import torch
import traffic
from reference_encoder import ReferenceEncoder, reference_loss

from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.optim import ScaledAdam, parameter_groups
from spear_lib.training.planning.kernels import Work
from spear_lib.training.planning.memory import StepMemory

OFF = {"balancer": False, "whiten": False, "limit_gradients": False, "stochastic": False}
SMALL = {"encoder_dim": (32,), "feedforward_dim": (64,), "encoder_unmasked_dim": (24,)}


def _both(**changes):
    torch.manual_seed(0)
    ours = SpearEncoder(ZipformerConfig.mini(padding="reference", **SMALL, **changes))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return ours, ReferenceEncoder(ours)


@pytest.mark.parametrize("factor", [1, 2])
def test_the_references_sequence_gives_our_outputs_and_gradients(factor):
    ours, reference = _both(output_downsampling_factor=factor, **OFF)
    ours.eval(), reference.eval()
    fbank, lengths = torch.randn(3, 120, 128) * 3 - 6, torch.tensor([120, 90, 61])
    one, two = ours(fbank, lengths).encoder_out, reference(fbank, lengths)
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(one)
    wanted = [parameter for parameter in ours.parameters() if parameter.requires_grad]
    names = [name for name, parameter in ours.named_parameters() if parameter.requires_grad]
    gradients = [torch.autograd.grad((out * weight).sum(), wanted, allow_unused=True) for out in (one, two)]
    for name, expected, value in zip(names, *gradients, strict=True):
        assert (expected is None) == (value is None), name
        if expected is None:
            continue
        # The front end keeps the derivative of Swoosh in 8 bits, rounded at random.
        limit = 0.1 if name.startswith("encoder_embed") else 1e-3
        assert float((value - expected).norm()) <= limit * float(expected.norm()) + 1e-5, name


def test_a_training_step_of_the_sequence_with_every_regulariser(monkeypatch):
    monkeypatch.setattr(reference_encoder, "WHITEN_PROBABILITY", 1.0)
    ours, reference = _both()
    reference.train()
    weights = {name: value.clone() for name, value in ours.named_parameters()}
    optimizers = [
        kind(parameter_groups(ours, 0.045), lr=0.045)
        for kind in (reference_encoder.ReferenceScaledAdam, ScaledAdam)
    ]
    after = []
    out = reference(torch.randn(2, 100, 128), torch.tensor([100, 80]))
    out.square().sum().backward()
    for optimizer in optimizers:  # the same update, copied back in another way
        with torch.no_grad():
            for name, value in ours.named_parameters():
                value.copy_(weights[name])
        optimizer.step()
        after.append([value.detach().clone() for value in ours.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*after, strict=True))
    assert all(value.isfinite().all() for value in after[0])
    for (name, value), changed in zip(ours.named_parameters(), after[0], strict=True):
        assert torch.equal(changed, weights[name]) == (value.grad is None or not value.grad.any()), name


def test_the_references_loss_by_hand():
    out, tokens = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), torch.tensor([[[0, 1], [-100, -100]]])
    weight = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])  # (2 codebooks, 2, 2)
    loss = reference_loss(out, weight, torch.zeros(2, 2), tokens)
    assert float(loss) == pytest.approx((math.log(1 + math.exp(-1)) + math.log(2)) / 2)


def test_table_and_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recording.Record.save, "__defaults__", (tmp_path, ["tools/benchmarks/traffic.py"]))
    arguments = ["--sizes", "[mini]", "--utterances", "2", "--seconds", "2", "--record", "traffic"]
    traffic.main([*arguments, "--largest", "3"])
    printed = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| mini")]
    assert [row[1] for row in rows] == ["eager", "fused", "reference"]
    kernels = {row[1]: int(row[2].replace(",", "")) for row in rows}
    assert min(kernels.values()) > 1000 and kernels["fused"] < 0.8 * kernels["eager"]
    assert "aten::_to_copy" in printed
    record = json.loads((tmp_path / "traffic.json").read_text())
    assert record["claim"] == "speed" and record["command"] == "python tools/benchmarks/traffic.py"
    assert [row[:3] for row in record["rows"]] == [row[:3] for row in rows]
    assert "2 utterances of 2 s" in record["corpus"] and "cores, torch" in record["corpus"]


def test_a_row_by_hand():
    """420 s of audio; 1.428 TB is a second of an A800 at 70 %, 200,000 starts of 5 us are another."""
    memory = StepMemory(*[0] * 7, [Work(4.2e12, int(1.428e12)), Work(0.0, 0, 200_000)])
    row = traffic.row(traffic.Options(), "base", "eager", memory)
    assert row[:6] == ["Base", "eager", "200,001", "3400", "10.0", "210"]
    assert row[-2:] == ["1,159", "0.18"]
    bound = traffic.Options(efficiency=1.0, kernel_microseconds=0.0)
    assert traffic.row(bound, "base", "eager", memory)[5] == "600"
    assert traffic.row(bound, "mini", "eager", memory)[-2:] == ["", ""]  # none of the paper's


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": ("huge",)}, "sizes has 'huge'; use mini, base, large, xlarge"),
        ({"paths": ("slow",)}, "paths has 'slow'; use eager, fused, reference"),
        ({"precision": "int8"}, "precision is 'int8'; use fp32, bf16, fp16"),
    ],
)
def test_wrong_options(changes, message):
    with pytest.raises(ValueError, match=message):
        traffic.Options(**changes)


@pytest.mark.parametrize("name", ["", "a/b"])
def test_names_of_records(name, tmp_path):
    with pytest.raises(ValueError, match="use a plain name"):
        recording.Record(name, ["a"], [["1"]], "nothing").save(tmp_path)


def test_rows_of_records_fit_their_columns(tmp_path):
    with pytest.raises(ValueError, match="a row of 2 cells for 1 columns"):
        recording.Record("x", ["a"], [["1", "2"]], "nothing").save(tmp_path)


@pytest.mark.parametrize(("load", "said"), [(9.0, "LOADED by other work (8.0 more"), (1.0, "otherwise idle")])
def test_a_loaded_machine_is_said_so(monkeypatch, load, said):
    monkeypatch.setattr(recording.os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(recording.os, "cpu_count", lambda: 2)
    assert said in recording.machine()


def test_a_benchmark_with_record_leaves_its_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recording.Record.save, "__defaults__", (tmp_path, None))

    @recording.recorded("noise")
    def main(argv=None):
        print("| a | b |\n|---|---|\n| 1 | 2 |\n\nbetween\n\n| c |\n|---|\n| 3 |")
        return 1 if argv == ["bad"] else None

    assert main(["bad", "--record", "x"]) == 1 and not list(tmp_path.iterdir())
    assert main(["good", "--record", "x"]) is None
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("x.json", "x-2.json"))
    assert (first["columns"], first["rows"], second["rows"]) == (["a", "b"], [["1", "2"]], [["3"]])
    assert first["command"].endswith("good --record x") and first["corpus"].startswith("noise. ")
    assert "between" in capsys.readouterr().out
    assert recording.tables("one\n\n two\n") == [[["printed"], ["one"], ["two"]]]
    with pytest.raises(ValueError, match="needs the name"):
        main(["--record"])
