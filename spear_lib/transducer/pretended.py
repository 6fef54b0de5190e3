"""The recursions of ``kernels`` for a plan: their memory and a kernel for each pass, without their numbers.

A plan runs on tensors without data (``runtime.devices.plan_for_accelerator``), where kernels cannot, and
where the loops over frames in plain torch would count what a GPU does not do.
"""

import torch
from torch import Tensor

from spear_lib.transducer.recursions import Recursions


def _solve(px: Tensor, py: Tensor, rows: int, states: int, occupation: bool):
    """Scores (B,) float64, and occupations shaped as ``px`` and ``py``; alpha (B, rows, states) lives
    meanwhile."""
    px, py = px.contiguous(), py.contiguous()
    alpha = py.new_empty((len(py), rows, states), dtype=torch.float64)
    scores = px.flatten(1).sum(1, dtype=torch.float64) + py.flatten(1).sum(1, dtype=torch.float64)
    alpha.copy_(scores[:, None, None])
    if not occupation:
        return scores, None, None
    return scores, torch.zeros_like(px), torch.zeros_like(py)


def solve_lattice(px, py, num_labels, num_frames, regular, occupation):
    """As ``kernels.solve_lattice``."""
    _, states, frames = py.shape
    return _solve(px, py, frames + states if regular else frames + 1, states, occupation)


def solve_band(px, py, start, num_labels, num_frames, regular, occupation):
    """As ``kernels.solve_band``."""
    _, frames, size = py.shape
    return _solve(px, py, frames + 1, size, occupation)


PRETENDED = Recursions(solve_lattice, solve_band)
