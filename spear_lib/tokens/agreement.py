"""How much the tokens of a teacher in bfloat16 differ from those in float32: measured, not assumed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spear_lib.quantization.linear import LinearUnits
from spear_lib.quantization.tokeniser import Tokeniser
from spear_lib.teachers.base import Teacher


@dataclass(frozen=True)
class Agreement:
    """Tokens of the same audio with the teacher in its dtype and in float32.

    Attributes:
      dtype: the teacher's.
      num_frames: frames compared.
      equal_tokens: share of equal tokens.
      relative_error: squared distance of what the tokens in ``dtype`` stand for from the float32 embeddings,
        relative to the embeddings' spread around their mean.
      relative_error_float32: the same of the float32 tokens; both NaN where tokens stand for no vectors.
    """

    dtype: str
    num_frames: int
    equal_tokens: float
    relative_error: float
    relative_error_float32: float

    def __str__(self) -> str:
        text = (
            f"{self.dtype} against float32, {self.num_frames} frames: {100 * self.equal_tokens:.2f} % of the "
            "tokens are equal"
        )
        if math.isnan(self.relative_error):
            return text
        return (
            f"{text}; relative error {self.relative_error:.4f} ({self.relative_error_float32:.4f} in float32)"
        )


@torch.inference_mode()
def token_agreement(
    teacher: Teacher, quantizer: Tokeniser, audio: Sequence[Tensor], refine_iters: int = 5
) -> Agreement:
    """Embed a batch of recordings (N,) twice and compare the tokens.

    A few percent of differing tokens cost little as long as the relative error hardly grows: near-ties
    between code vectors fall the other way (spec: at most 1 % more error).
    """
    lengths = torch.tensor([len(samples) for samples in audio])
    waveforms = nn.utils.rnn.pad_sequence(list(audio), batch_first=True)
    frames = {}
    wanted = teacher.dtype
    try:
        for dtype in {"float32", wanted}:
            teacher.dtype = dtype
            embeddings, counts = teacher.embed(waveforms.to(teacher.device), lengths.to(teacher.device))
            valid = torch.arange(embeddings.shape[1], device=counts.device) < counts.unsqueeze(1)
            frames[dtype] = embeddings[valid]
    finally:
        teacher.dtype = wanted
    exact = frames["float32"]
    if len(exact) == 0:
        raise ValueError("no recording of the batch is long enough for one teacher frame")
    codes, errors = {}, {}
    spread = (exact - exact.mean(dim=0)).square().sum()
    for dtype, each in frames.items():
        codes[dtype] = quantizer.encode(each, refine_iters)
        errors[dtype] = math.nan
        if quantizer.kind != LinearUnits.kind:
            errors[dtype] = float((quantizer.decode(codes[dtype]) - exact).square().sum() / spread)
    equal = float((codes[wanted] == codes["float32"]).float().mean())
    return Agreement(wanted, len(exact), equal, errors[wanted], errors["float32"])
