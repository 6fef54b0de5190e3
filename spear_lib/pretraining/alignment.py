"""Which teacher frames a student frame has to predict (spec teachers §7).

Legend: B utterances, Tt teacher frames, T student frames, N codebooks. Times in ms, rates in Hz.

``center`` (ours, the default) pairs by the time at the middle of the frames; ``index`` is the reference's
pairing by position, whose targets come from up to 50 ms earlier, kept for parity with the published models. A
student frame that is r times longer than a teacher frame gets r teacher frames, as extra codebooks; where it
is shorter, teacher frames repeat.
"""

import torch
from torch import Tensor

from spear_lib.data.batch import PADDING


def frames_per_student_frame(token_rate: float, student_rate: float) -> int:
    """How many teacher frames one student frame predicts: 1 unless the teacher is faster.

    Raises:
      ValueError: if neither rate is a multiple of the other.
    """
    ratio = token_rate / student_rate
    whole = ratio if ratio >= 1 else 1 / ratio
    if abs(whole - round(whole)) > 1e-6:
        raise ValueError(
            f"tokens at {token_rate:g} Hz cannot be aligned with an encoder at {student_rate:g} Hz: one "
            "rate must be "
            "a multiple of the other. Use a teacher at 25 or 50 Hz, or another output_downsampling_factor"
        )
    return max(1, round(ratio))


def align_targets(
    tokens: Tensor,
    token_rate: float,
    token_first_center_ms: float,
    num_frames: int,
    student_rate: float,
    student_first_center_ms: float,
    mode: str = "center",
    lengths: Tensor | None = None,
) -> Tensor:
    """Targets of the student's frames.

    Args:
      tokens: (B, Tt, N) int64, padded with -100.
      num_frames: T, the student's frames in the batch.
      mode: "center" or "index".
      lengths: (B,) valid student frames; frames behind them get -100.

    Returns:
      (B, T, N * r) int64; -100 where there is no teacher frame or no valid student frame. The order on the
      last axis is all codebooks of the first teacher frame, then of the next (as the reference joins them).
    """
    group = frames_per_student_frame(token_rate, student_rate)
    batch, num_tokens, num_codebooks = tokens.shape
    first = teacher_frame(
        torch.arange(num_frames, dtype=torch.float64),
        token_rate,
        token_first_center_ms,
        student_rate,
        student_first_center_ms,
        mode,
    )
    index = (first.unsqueeze(1) + torch.arange(group)).reshape(-1)  # (T * r,)
    inside = (index >= 0) & (index < num_tokens)
    if num_tokens == 0:
        targets = tokens.new_full((batch, num_frames * group, num_codebooks), PADDING)
    else:
        targets = tokens[:, index.clamp(0, num_tokens - 1).to(tokens.device)]
        targets = targets.masked_fill(~inside.to(tokens.device)[None, :, None], PADDING)
    targets = targets.reshape(batch, num_frames, group * num_codebooks)
    if lengths is not None:
        padding = torch.arange(num_frames, device=tokens.device) >= lengths.to(tokens.device).unsqueeze(1)
        targets = targets.masked_fill(padding.unsqueeze(-1), PADDING)
    return targets


def teacher_frame(
    student_frames: Tensor,
    token_rate: float,
    token_first_center_ms: float,
    student_rate: float,
    student_first_center_ms: float,
    mode: str,
) -> Tensor:
    """First teacher frame of each student frame, int64 of the same shape; may lie outside the teacher's
    frames."""
    if mode == "index":
        # Repeating each 25 Hz token twice, or joining two 50 Hz tokens, starting at frame 0.
        return (student_frames * token_rate / student_rate + 1e-6).floor().long()
    if mode != "center":
        raise ValueError(f"align must be 'center' or 'index', it is {mode!r}")
    hop = 1000.0 / token_rate
    center = 1000.0 / student_rate * student_frames + student_first_center_ms
    half_group = (frames_per_student_frame(token_rate, student_rate) - 1) / 2 * hop
    exact = (center - half_group - token_first_center_ms) / hop
    return (exact + 0.5 + 1e-9).floor().long()  # nearest, ties to the later frame
