"""Inputs and configurations that the encoder refuses, each with its reason."""

import pytest
import torch
from zipformer_fixtures import TINY, tiny

from spear_lib.encoders.zipformer import ZipformerConfig


def _bad_inputs():
    fbank = torch.zeros(2, 50, 128)
    lengths = torch.tensor([50, 30])
    return {
        "mel bins": ((fbank[..., :80], lengths), r"must be float of \(B, F, 128\), got .* \(2, 50, 80\)"),
        "integers": ((fbank.long(), lengths), r"must be float .* got torch.int64 \(2, 50, 128\)"),
        "too short": ((fbank[:, :8], lengths), r"fbank has 8 frames; the encoder needs at least 9 .*85 ms"),
        "short utterance": ((fbank, torch.tensor([50, 8])), r"lengths\[1\] is 8, outside 9..50 fbank frames"),
        "long length": ((fbank, torch.tensor([51, 30])), r"lengths\[0\] is 51, outside 9..50"),
        "lengths shape": ((fbank, lengths[:1]), r"lengths must be \(2,\)"),
        "time mask": ((fbank, lengths, torch.zeros(2, 49, dtype=torch.bool)), r"time_mask must be \(2, 50\)"),
        "channel mask": (
            (fbank, lengths, None, torch.zeros(2, 80, dtype=torch.bool)),
            r"channel_mask must be \(2, 128\)",
        ),
    }


@pytest.mark.parametrize("case", list(_bad_inputs()))
def test_bad_input_is_refused(case):
    arguments, message = _bad_inputs()[case]
    with pytest.raises(ValueError, match=message):
        tiny().eval()(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_dim": (32, 32)}, "encoder_dim has 2 values but downsampling_factor describes 3 stacks"),
        ({"cnn_module_kernel": 8}, "cnn_module_kernel 8 is even"),
        ({"encoder_unmasked_dim": 64}, "encoder_unmasked_dim 64 exceeds encoder_dim 32"),
        ({"padding": "none"}, "use 'exact' or 'reference'"),
        ({"output_downsampling_factor": 4}, "output_downsampling_factor is 4"),
        ({"chunk_size": 16}, "need causal: true"),
        ({"chunk_size": 6, "causal": True}, "chunk_size 6 is not a multiple of the down-sampling factor 4"),
        ({"frontend_channels": (8, 32)}, "frontend_channels needs 3 numbers"),
    ],
)
def test_bad_configuration_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ZipformerConfig(**{**TINY, **changes})
