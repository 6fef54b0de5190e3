"""The choice between torch, Triton and k2 for the transducer losses, what is handed to k2, and bad input."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch

from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.transducer import backend as backend_module
from spear_lib.transducer import losses, select_backend
from spear_lib.transducer.recursions import Recursions

TYPES = ["regular", "modified", "constrained"]


def _fake_k2(calls):
    """k2 with the argument names of 1.23.4 (its docstrings), which records them and answers by our losses."""

    def rnnt_loss_simple(
        lm, am, symbols, termination_symbol, boundary=None, rnnt_type="regular", delay_penalty=0.0,
        reduction="mean", return_grad=False,
    ):  # fmt: skip
        calls.append(("rnnt_loss_simple", dict(locals())))
        del calls[-1][1]["calls"]
        return losses.rnnt_loss_simple(**calls[-1][1])

    def rnnt_loss_smoothed(
        lm, am, symbols, termination_symbol, lm_only_scale=0.1, am_only_scale=0.1, boundary=None,
        rnnt_type="regular", delay_penalty=0.0, reduction="mean", return_grad=False,
    ):  # fmt: skip
        calls.append(("rnnt_loss_smoothed", dict(locals())))
        del calls[-1][1]["calls"]
        return losses.rnnt_loss_smoothed(**calls[-1][1])

    def rnnt_loss_pruned(
        logits, symbols, ranges, termination_symbol, boundary=None, rnnt_type="regular", delay_penalty=0.0,
        reduction="mean",
    ):  # fmt: skip
        calls.append(("rnnt_loss_pruned", dict(locals())))
        del calls[-1][1]["calls"]
        return losses.rnnt_loss_pruned(**calls[-1][1])

    def rnnt_loss(
        logits, symbols, termination_symbol, boundary=None, rnnt_type="regular", delay_penalty=0.0,
        reduction="mean",
    ):  # fmt: skip
        calls.append(("rnnt_loss", dict(locals())))
        del calls[-1][1]["calls"]
        return losses.rnnt_loss(**calls[-1][1])

    return SimpleNamespace(
        __dev_version__="1.23.4",
        rnnt_loss_simple=rnnt_loss_simple,
        rnnt_loss_smoothed=rnnt_loss_smoothed,
        rnnt_loss_pruned=rnnt_loss_pruned,
        rnnt_loss=rnnt_loss,
    )


@pytest.fixture
def k2_calls(monkeypatch):
    calls = []
    fake = _fake_k2(calls)
    monkeypatch.setattr(backend_module, "_import_k2", lambda: (fake, ""))
    return calls


@pytest.fixture
def no_k2(monkeypatch):
    monkeypatch.setattr(backend_module, "_import_k2", lambda: (None, "No module named 'k2'"))


def test_choice_without_k2(no_k2):
    auto = select_backend("auto", "cpu")
    assert str(auto) == "torch (auto: the kernels need CUDA, the device is cpu)"
    assert auto.rnnt_loss_pruned is losses.rnnt_loss_pruned
    assert str(select_backend("torch")) == "torch (as asked for)"
    with pytest.raises(
        RuntimeError, match=r"backend is 'k2', but k2 cannot be imported \(No module.*use 'auto'"
    ):
        select_backend("k2")
    with pytest.raises(ValueError, match="backend is 'warp'; choose one of auto, torch, triton, k2"):
        select_backend("warp")


def test_choice_with_k2(k2_calls):
    assert str(select_backend("auto", "cpu")).startswith("torch (auto")  # k2 only when asked for
    assert str(select_backend("k2")) == "k2 1.23.4 (as asked for)"
    assert select_backend("torch").rnnt_loss is losses.rnnt_loss


def test_choice_of_the_kernels(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    walks = Recursions(lattice=lambda *_: "lattice", band=lambda *_: "band")
    monkeypatch.setattr(backend_module, "_import_kernels", lambda: (walks, ""))
    auto = select_backend("auto", "cuda:1")
    assert str(auto) == "triton (auto: CUDA, and triton is installed)"
    assert auto.rnnt_loss.func is losses.rnnt_loss and auto.rnnt_loss.keywords == {"recursions": walks}
    assert str(select_backend("triton", "cuda")) == "triton (as asked for)"
    assert str(select_backend("auto", "cpu")).startswith("torch (auto: the kernels need CUDA")
    with pytest.raises(
        ValueError, match="backend is 'triton', whose kernels need CUDA, but the device is cpu"
    ):
        select_backend("triton", "cpu")


def test_choice_without_triton(monkeypatch):
    monkeypatch.setattr(backend_module, "_import_kernels", lambda: (None, "No module named 'triton'"))
    auto = select_backend("auto", "cuda")
    assert str(auto) == "torch (auto: triton cannot be imported, No module named 'triton')"
    with pytest.raises(RuntimeError, match=r"but triton cannot be imported \(No module.*use 'auto'"):
        select_backend("triton", "cuda")


def _arrays(batch=2, frames=6, labels=3, classes=5):
    generator = torch.Generator().manual_seed(0)
    lm = torch.randn(batch, labels + 1, classes, generator=generator)
    am = torch.randn(batch, frames, classes, generator=generator)
    symbols = torch.randint(1, classes, (batch, labels), generator=generator)
    boundary = torch.tensor([[0, 0, labels, frames], [0, 0, labels - 1, frames - 1]])[:batch]
    return lm, am, symbols, boundary


def test_arguments_reach_k2_under_its_names(k2_calls):
    lm, am, symbols, boundary = _arrays()
    k2 = select_backend("k2")
    common = {"rnnt_type": "modified", "delay_penalty": 0.2, "reduction": "none"}
    # Positional as in k2's own examples: what arrives must not depend on how it was written.
    smoothed, (gx, gy) = k2.rnnt_loss_smoothed(
        lm.bfloat16(), am.half(), symbols.int(), 0, 0.25, 0.1, boundary, return_grad=True, **common
    )
    name, sent = k2_calls.pop()
    assert name == "rnnt_loss_smoothed" and smoothed.shape == (2,)
    assert sent["lm"].dtype == sent["am"].dtype == torch.float32 and sent["symbols"].dtype == torch.int64
    assert (sent["lm_only_scale"], sent["am_only_scale"], sent["return_grad"]) == (0.25, 0.1, True)
    assert sent["boundary"] is boundary and sent["termination_symbol"] == 0
    assert {key: sent[key] for key in common} == common
    assert gx.shape == (2, 3, 6) and gy.shape == (2, 4, 6)

    logits = am[:, :, None] + lm[:, None]
    ranges = torch.arange(2).expand(2, 6, 2)
    k2.rnnt_loss_pruned(logits[:, :, :2], symbols, ranges, 0, boundary, **common)
    name, sent = k2_calls.pop()
    assert name == "rnnt_loss_pruned" and sent["ranges"] is ranges
    assert {key: sent[key] for key in common} == common
    k2.rnnt_loss(logits, symbols, 0)
    name, sent = k2_calls.pop()
    assert name == "rnnt_loss" and sent["boundary"] is None
    assert (sent["rnnt_type"], sent["delay_penalty"], sent["reduction"]) == ("regular", 0.0, "mean")
    k2.rnnt_loss_simple(lm, am, symbols, 0, boundary, return_grad=True)
    name, sent = k2_calls.pop()
    assert name == "rnnt_loss_simple" and "lm_only_scale" not in sent and sent["return_grad"] is True
    assert not k2_calls


def test_batches_that_k2_refuses_are_computed_by_torch(k2_calls):
    k2 = select_backend("k2")
    lm, am, symbols, _ = _arrays(frames=2)  # 2 frames, 3 labels
    loss = k2.rnnt_loss_simple(lm, am, symbols, 0, reduction="none")
    assert bool(torch.isfinite(loss).all()) and not k2_calls
    loss = k2.rnnt_loss_simple(lm[:, :1], am, symbols[:, :0], 0, reduction="none")
    expected = -(lm[:, :1] + am).log_softmax(-1)[..., 0].sum(1)
    torch.testing.assert_close(loss, expected)
    assert not k2_calls


def test_model_uses_the_backend_of_its_config(k2_calls):
    encoder_out, lengths, targets = torch.randn(2, 12, 8), torch.tensor([12, 9]), [[1, 2, 3], [4]]
    sizes = {"decoder_dim": 8, "joiner_dim": 8, "lm_scale": 0.3}
    found = {}
    for name in ("torch", "k2"):
        torch.manual_seed(0)
        model = AsrModel(None, TransducerConfig(**sizes, backend=name), 6, encoder_dim=8)
        found[name] = model.losses(encoder_out, lengths, targets, 5000)["loss_sum"]
        found[name].backward()
        assert [call for call, _ in k2_calls] == (
            [] if name == "torch" else ["rnnt_loss_smoothed", "rnnt_loss_pruned"]
        )
    assert torch.equal(found["torch"], found["k2"])
    assert k2_calls[0][1]["lm_only_scale"] == 0.3 and k2_calls[0][1]["return_grad"] is True


@pytest.mark.parametrize("name", ["torch", "k2"])
def test_bad_shapes_and_vocabulary(name, k2_calls):
    backend = select_backend(name)
    lm, am, symbols, boundary = _arrays()
    logits = am[:, :, None] + lm[:, None]
    ranges = torch.arange(2).expand(2, 6, 2)
    with pytest.raises(ValueError, match=r"lm is \(4, 5\); expected \(B, S\+1, C\)"):
        backend.rnnt_loss_simple(lm[0], am, symbols, 0)
    with pytest.raises(ValueError, match=r"am is \(2, 6, 1, 5\); expected \(B, T, C\)"):
        backend.rnnt_loss_smoothed(lm, am[:, :, None], symbols, 0)
    with pytest.raises(ValueError, match=r"logits is \(2, 6, 5\); expected \(B, T, S\+1, C\)"):
        backend.rnnt_loss(am, symbols, 0)
    with pytest.raises(ValueError, match=r"logits is \(2, 6, 5\); expected \(B, T, R, C\)"):
        backend.rnnt_loss_pruned(am, symbols, ranges, 0)
    with pytest.raises(ValueError, match=r"symbols is \(3,\); expected \(B, S\)"):
        backend.rnnt_loss_pruned(logits[:, :, :2], symbols[0], ranges, 0)
    with pytest.raises(ValueError, match=r"ranges holds states 2..5, but symbols \(2, 3\) have .* 0..3"):
        backend.rnnt_loss_pruned(logits[:, :, :2], symbols, ranges * 3 + 2, 0)
    foreign = symbols.clone()
    foreign[1, 2] = 7
    message = r"symbols holds ids 1..7, but the logits have 5 classes .* encoded with the units of this model"
    for call in (
        lambda: backend.rnnt_loss_simple(lm, am, foreign.clamp(min=1), 0, boundary),
        lambda: backend.rnnt_loss(logits, foreign.clamp(min=1), 0),
        lambda: backend.rnnt_loss_pruned(logits[:, :, :2], foreign.clamp(min=1), ranges, 0),
    ):
        foreign[0, 0] = 1
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="symbols holds ids -1"):
        backend.rnnt_loss(logits, torch.where(foreign == 7, -1, foreign), 0)
    with pytest.raises(ValueError, match="sum to less than 1"):
        backend.rnnt_loss_smoothed(lm, am, symbols, 0, 0.5, 0.5)  # k2 alone returns NaN here
    assert not k2_calls


@pytest.mark.parametrize("rnnt_type", TYPES)
def test_nan_stays_with_its_utterance(rnnt_type):
    """NaN makes the loss of that utterance NaN, never a finite or infinite number that looks like a loss."""
    lm, am, symbols, boundary = _arrays()
    common = {"boundary": boundary, "rnnt_type": rnnt_type, "reduction": "none"}
    healthy = losses.rnnt_loss_smoothed(lm, am, symbols, 0, 0.25, 0.0, **common)
    bad = am.clone()
    bad[0, 3, 2] = math.nan
    found = losses.rnnt_loss_smoothed(lm, bad, symbols, 0, 0.25, 0.0, **common)
    assert bool(torch.isnan(found[0])) and torch.equal(found[1], healthy[1])
    logits = (bad[:, :, None] + lm[:, None]).requires_grad_()
    ranges = torch.tensor([0, 0, 1, 1, 2, 2])[:, None].add(torch.arange(2)).expand(2, 6, 2)
    band = logits.gather(2, ranges[..., None].expand(-1, -1, -1, 5))
    for loss in (
        losses.rnnt_loss(logits, symbols, 0, **common),
        losses.rnnt_loss_pruned(band, symbols, ranges, 0, **common),
    ):
        assert torch.isnan(loss).tolist() == [True, False]
        (gradient,) = torch.autograd.grad(loss[1], logits, retain_graph=True)
        assert bool(torch.isfinite(gradient[1]).all())


def test_nan_of_the_encoder_is_not_dropped():
    """The training loop stops at a loss that is not finite, so NaN must reach it."""
    torch.manual_seed(0)
    sizes = {"decoder_dim": 8, "joiner_dim": 8, "backend": "torch"}
    model = AsrModel(None, TransducerConfig(**sizes), 6, encoder_dim=8)
    encoder_out = torch.randn(2, 12, 8)
    encoder_out[1, 2] = math.nan
    found = model.losses(encoder_out, torch.tensor([12, 9]), [[1, 2, 3], [4]], 0)
    assert bool(torch.isnan(found["loss_sum"])) and int(found["num_dropped"]) == 0


def test_reason_of_a_broken_k2(monkeypatch, tmp_path):
    """A k2 whose library does not fit this torch: said, with what to use instead."""
    (tmp_path / "k2.py").write_text("raise OSError('libk2.so: undefined symbol')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    backend_module._import_k2.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="libk2.so: undefined symbol.*use 'auto' or 'torch'"):
            select_backend("k2")
    finally:
        backend_module._import_k2.cache_clear()


def test_first_screen_names_the_backend(k2_calls, caplog):
    from spear_lib.asr.task import AsrTask
    from spear_lib.asr.units import character_units

    units = character_units()
    encoder = torch.nn.Linear(1, 1)
    encoder.output_dim, encoder.frame_rate = 8, 50
    sizes = {"decoder_dim": 8, "joiner_dim": 8, "backend": "k2"}
    model = AsrModel(encoder, TransducerConfig(**sizes), units.vocab_size)
    with caplog.at_level(logging.INFO):
        facts = AsrTask(model, units).facts()
    assert facts["transducer"] == "losses by k2 1.23.4 (as asked for)"
