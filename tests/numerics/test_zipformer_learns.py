"""A small encoder with every regulariser learns random tokens by heart: a stable loss in fp32 and bf16."""

import math

import pytest
import torch
import torch.nn.functional as F

from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.optim import Eden, ScaledAdam, parameter_groups
from spear_lib.runtime import keyed_random

TOKENS = 16
UTTERANCES = 6
SMALL = {
    "frontend_channels": (2, 4, 8),
    "encoder_dim": 48,
    "encoder_unmasked_dim": 32,
    "feedforward_dim": 96,
    "num_heads": 2,
    "query_head_dim": 12,
    "downsampling_factor": (1, 2, 4, 1),
    "num_encoder_layers": (1, 1, 1, 1),
    "cnn_module_kernel": 7,
    "constant_attention": True,
}


def _learn(num_steps: int, half: bool, batches_per_step: float) -> list[float]:
    """Loss of every step in nats per frame, on masked inputs and random targets.

    batches_per_step: how fast the clock of the schedules runs.
    """
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {"encoder": SpearEncoder(ZipformerConfig(**SMALL)), "head": torch.nn.Linear(48, TOKENS)}
    ).train()
    encoder, head = model["encoder"], model["head"]
    optimizer = ScaledAdam(parameter_groups(model, 0.045), lr=0.045)
    schedule = Eden(optimizer, lr_batches=2000, lr_epochs=1000, warmup_batches=20)
    fbank = torch.randn(UTTERANCES, 73, 128) * 3 - 6
    lengths = torch.tensor([73, 71, 64, 60, 50, 41])
    targets = torch.randint(TOKENS, (UTTERANCES, 33))
    valid = torch.arange(33) < ((lengths - 7) // 2).unsqueeze(1)
    losses = []
    for step in range(1, num_steps + 1):
        keys = keyed_random.keys("learn", step, ids=[str(n) for n in range(UTTERANCES)])
        time_mask = keyed_random.uniform(keys, 99, 73) < 0.1
        encoder.begin_step(step * batches_per_step, keyed_random.key("step", step), keys)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            output = encoder(fbank, lengths, time_mask)
        logits = head(output.encoder_out[valid].float())
        loss = F.cross_entropy(logits, targets[valid], reduction="sum")
        loss.backward()
        encoder.limit_gradients()
        schedule.step_batch(step)
        optimizer.step()
        losses.append(loss.item() / int(valid.sum()))
    assert optimizer.num_skipped == 0
    return losses


def _smooth(losses, window):
    return torch.tensor(losses).unfold(0, window, 1).mean(dim=1)


def _assert_stable(losses, window, final):
    assert losses[0] > math.log(TOKENS)  # of guessing
    assert all(math.isfinite(loss) for loss in losses)
    curve = _smooth(losses, window)
    assert float(curve[-1]) < final * math.log(TOKENS)
    # No spike: the smoothed loss never rises by more than a tenth of the chance level above its best.
    assert float((curve - curve.cummin(dim=0).values).max()) < 0.1 * math.log(TOKENS)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
def test_loss_falls_without_spikes(half):
    _assert_stable(_learn(44, half, batches_per_step=300.0), window=8, final=0.85)


@pytest.mark.slow
def test_bf16_learns_as_fast_as_fp32_over_a_longer_run():
    fp32, bf16 = (_learn(250, half, batches_per_step=80.0) for half in (False, True))
    for losses in (fp32, bf16):
        _assert_stable(losses, window=25, final=0.2)
    one, other = _smooth(fp32, 25), _smooth(bf16, 25)
    assert float((one - other).abs().max()) < 0.1 * math.log(TOKENS)
