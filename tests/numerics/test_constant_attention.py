"""Constant attention: what Zipformer does, the SPEAR copy never did, and ours does when asked."""

import pytest
import torch

from spear_lib.encoders.zipformer import SpearEncoder, ZipformerConfig
from spear_lib.encoders.zipformer.attention import constant_attention
from spear_lib.runtime import keyed_random

TINY = {
    "frontend_channels": (2, 3, 4),
    "encoder_dim": 16,
    "encoder_unmasked_dim": 16,
    "feedforward_dim": 24,
    "num_heads": 2,
    "query_head_dim": 4,
    "downsampling_factor": (1,),
    "num_encoder_layers": (1,),
    "cnn_module_kernel": 7,
}


def test_weights_become_equal_over_what_is_seen():
    weights = torch.tensor([[0.7, 0.3, 0.0, 0.0], [0.1, 0.2, 0.7, 0.0]])
    expected = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3, 0.0]])
    torch.testing.assert_close(constant_attention(weights), expected)


@pytest.mark.parametrize(("batch_count", "rate"), [(0, 0.25), (2000, 0.1375), (4000, 0.025), (90000, 0.025)])
def test_it_happens_in_training_at_its_rate_and_never_in_evaluation(batch_count, rate):
    torch.manual_seed(0)
    encoder = SpearEncoder(ZipformerConfig(**TINY, constant_attention=True))
    layer = encoder.encoder.encoders[0].layers[0]
    seen = []
    layer.nonlin_attention.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    fbank, lengths = torch.randn(1, 15, 128), torch.tensor([15])
    keys = keyed_random.keys("test", ids=["a"])
    num_calls = 400
    for step in range(num_calls):
        encoder.begin_step(float(batch_count), keyed_random.key("step", step), keys)
        encoder(fbank, lengths)
    share = sum(bool((weights == weights[0, 0, 0]).all()) for weights in seen) / num_calls
    assert share == pytest.approx(rate, abs=3.5 * (rate * (1 - rate) / num_calls) ** 0.5)
    seen.clear()
    encoder.eval()(fbank, lengths)
    assert not (seen[0] == seen[0][0, 0, 0]).all()


def test_default_repeats_the_published_models():
    encoder = SpearEncoder(ZipformerConfig(**TINY))
    assert encoder.encoder.encoders[0].layers[0].constant_coin is None
