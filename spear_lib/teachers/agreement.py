"""How much the tokens of a teacher in bfloat16 differ from those in float32: measured, not assumed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from spear_lib.quantization import Quantizer
from spear_lib.teachers.base import Teacher


@dataclass(frozen=True)
class Agreement:
    """Tokens of the same audio with the teacher in its dtype and in float32.

    Attributes:
      dtype: the teacher's.
      num_frames: frames compared.
      equal_tokens: share of equal tokens.
      relative_error: of the tokens in ``dtype`` as a description of the float32 embeddings.
      relative_error_float32: of the float32 tokens.
    """

    dtype: str
    num_frames: int
    equal_tokens: float
    relative_error: float
    relative_error_float32: float

    def __str__(self) -> str:
        return (
            f"{self.dtype} against float32, {self.num_frames} frames: {100 * self.equal_tokens:.2f} % of the "
            f"tokens are equal; relative error {self.relative_error:.4f} "
            f"({self.relative_error_float32:.4f} in float32)"
        )


@torch.inference_mode()
def token_agreement(
    teacher: Teacher, quantizer: Quantizer, waveforms: Tensor, lengths: Tensor, refine_iters: int = 5
) -> Agreement:
    """Embed a padded batch twice and compare the tokens.

    A few percent of differing tokens cost little as long as the relative error hardly grows: near-ties
    between code vectors fall the other way (spec: at most 1 % more error).
    """
    frames = {}
    wanted = teacher.dtype
    try:
        for dtype in {"float32", wanted}:
            teacher.dtype = dtype
            embeddings, counts = teacher.embed(waveforms, lengths)
            valid = torch.arange(embeddings.shape[1], device=counts.device) < counts.unsqueeze(1)
            frames[dtype] = embeddings[valid]
    finally:
        teacher.dtype = wanted
    exact = quantizer.normalise(frames["float32"])
    if len(exact) == 0:
        raise ValueError("no recording of the batch is long enough for one teacher frame")
    codes, errors = {}, {}
    spread = (exact - quantizer.data_mean()).square().sum()
    for dtype, each in frames.items():
        codes[dtype] = quantizer.encode(each, refine_iters)
        residual = quantizer.decode(codes[dtype], normalised=True) - exact
        errors[dtype] = float(residual.square().sum() / spread)
    equal = float((codes[wanted] == codes["float32"]).float().mean())
    return Agreement(wanted, len(exact), equal, errors[wanted], errors["float32"])
