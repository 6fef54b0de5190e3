"""Stateless decoder, joiner and the ASR losses against the reference (golden transducer)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.asr.search import greedy_search_batch, modified_beam_search

GOLDEN = Path(__file__).parents[1] / "golden"


def _load():
    with safe_open(str(GOLDEN / "transducer.safetensors"), "pt") as file:
        data = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
        return data, json.loads(file.metadata()["config"])


DATA, CONFIG = _load()
DECODING = json.loads((GOLDEN / "transducer_decoding.json").read_text())["decoding"]


@pytest.fixture
def model() -> AsrModel:
    config = TransducerConfig(decoder_dim=CONFIG["Dd"], joiner_dim=CONFIG["Jd"], warm_step=2000)
    model = AsrModel(None, config, CONFIG["V"], encoder_dim=CONFIG["E"])
    state = {name.removeprefix("param."): DATA[name] for name in DATA if name.startswith("param.")}
    model.load_state_dict(state)  # strict: names and shapes are the reference's
    return model.eval()


def test_decoder_and_joiner(model):
    labels = torch.nn.functional.pad(DATA["loss.y_padded"], (1, 0))
    decoder_out = model.decoder(labels)
    torch.testing.assert_close(decoder_out, DATA["loss.decoder_out"], rtol=1e-5, atol=1e-5)
    joined = model.joiner(DATA["in.encoder_out"][:, :3, None], decoder_out[:, None, :3])
    torch.testing.assert_close(joined, DATA["loss.joiner_out"], rtol=1e-5, atol=1e-5)


def test_losses_and_gradients(model):
    encoder_out = DATA["in.encoder_out"].clone().requires_grad_()
    targets = [
        row[:length].tolist() for row, length in zip(DATA["loss.y_padded"], DATA["loss.y_lens"].tolist())
    ]
    losses = model.losses(encoder_out, DATA["in.encoder_out_lens"], targets, step=2000)
    for name in ("simple_loss", "pruned_loss"):
        torch.testing.assert_close(losses[name], DATA[f"loss.{name}"], rtol=1e-6, atol=1e-4)
    assert int(losses["num_dropped"]) == 0 and int(losses["num_frames"]) == sum(CONFIG["lens"])
    losses["loss_sum"].backward()
    gradients = {"loss.grad_enc": encoder_out.grad}
    gradients |= {f"loss.grad.{name}": parameter.grad for name, parameter in model.named_parameters()}
    assert set(gradients) == {name for name in DATA if name.startswith("loss.grad")}
    for name, gradient in gradients.items():
        limit = 2e-5 * float(DATA[name].abs().max())
        torch.testing.assert_close(
            gradient, DATA[name], rtol=0, atol=limit, msg=lambda m, n=name: f"{n}: {m}"
        )


def _search(model, method: str, rows: list[int]):
    name, *middle, penalty = method.split(".", 2) if "max_sym" in method else method.split(".", 1)
    encoder_out, lengths = DATA["in.encoder_out"][rows], DATA["in.encoder_out_lens"][rows]
    encoder_out = encoder_out[:, : int(lengths.max())]
    blank_penalty = float(penalty.removeprefix("bp"))
    if name.startswith("beam"):
        beam = int(name.removeprefix("beam"))
        return modified_beam_search(model, encoder_out, lengths, beam, blank_penalty)
    symbols = int(middle[0].removeprefix("max_sym")) if middle else 1
    return greedy_search_batch(model, encoder_out, lengths, blank_penalty, symbols)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [2, 0], [1]], ids=str)
@pytest.mark.parametrize("method", sorted(DECODING))
def test_search(model, method, rows):
    expected = DECODING[method]
    for row, found in zip(rows, _search(model, method, rows)):
        assert found.ids == expected["hyps"][row]
        assert found.timestamps == expected["timestamps"][row]
        if method.startswith("beam"):
            assert found.score == pytest.approx(expected["best_log_prob"][row], abs=1e-3)
            reference = sorted(
                ((entry["log_prob"], entry["tokens"]) for entry in expected["nbest"][row]), reverse=True
            )
            assert [entry.ids for entry in found.nbest] == [tokens for _, tokens in reference]
            assert [entry.score for entry in found.nbest] == pytest.approx(
                [s for s, _ in reference], abs=1e-3
            )
