"""How the teacher follows the student (spec spidr §3)."""

import math
from dataclasses import dataclass

import torch
from torch import nn

SCHEDULES = ("exponential", "linear")


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher moves by a share w of its distance to the student after every step; w falls."""

    schedule: str = "exponential"
    """exponential: w = (1 - start_decay) exp(-step / timescale) (SpidR); linear: 1 - w rises from start_decay
    to final_decay in ramp_steps (DinoSR)."""
    start_decay: float = 0.999
    """1 - w at step 0 (reference)."""
    timescale: float = 20_000.0
    """Steps in which w falls to 1/e; exponential (reference)."""
    threshold: float = 1e-7
    """The teacher stands still when w is no larger; exponential (reference: from step 184,207 on)."""
    final_decay: float = 0.9999
    """1 - w after ramp_steps; linear (reference)."""
    ramp_steps: int = 30_000
    """Steps of the ramp; linear (reference)."""
    last_step: int = 200_000
    """The teacher stands still from this step on; linear (reference)."""

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"teacher.schedule is {self.schedule!r}; use {' or '.join(SCHEDULES)}")
        for name in ("start_decay", "final_decay"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"teacher.{name} is {getattr(self, name)}, expected a share from 0 to 1")
        if self.timescale <= 0 or self.ramp_steps < 1:
            raise ValueError(
                f"teacher.timescale is {self.timescale} and ramp_steps {self.ramp_steps}: both must be "
                "positive"
            )

    def weight(self, step: int) -> float:
        """w after optimiser step ``step``, 1 for the first; 0: the teacher stands still.

        The reference rounds 1 - w to float32, so that its last weights are up to 19 % larger.
        """
        if self.schedule == "exponential":
            weight = (1.0 - self.start_decay) * math.exp(-step / self.timescale)
            return weight if weight > self.threshold else 0.0
        if step >= self.last_step:
            return 0.0
        left = max(0.0, 1.0 - step / self.ramp_steps)
        return 1.0 - (self.final_decay - (self.final_decay - self.start_decay) * left)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, weight: float, copied: tuple[str, ...] = ()) -> None:
    """Moves the teacher's parameters towards the student's; with a weight of 0 nothing changes.

    Args:
      weight: w.
      copied: beginnings of the names that are copied instead.
    """
    if weight == 0.0:
        return
    copies: tuple[list, list] = ([], [])
    moves: tuple[list, list] = ([], [])
    theirs = dict(student.named_parameters())
    for name, parameter in teacher.named_parameters():
        chosen = copies if name.startswith(copied) and copied else moves
        chosen[0].append(parameter)
        chosen[1].append(theirs[name].detach())
    if copies[0]:
        torch._foreach_copy_(*copies)
    if moves[0]:
        torch._foreach_lerp_(*moves, weight)
    for buffer, theirs_now in zip(teacher.buffers(), student.buffers()):
        buffer.copy_(theirs_now)
