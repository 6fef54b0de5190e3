"""Optimisers with their schedules (ScaledAdam and Eden, AdamW and tri-stage), and parameter groups."""

from spear_lib.optim.adamw import ClippedAdamW, TriStage, tri_stage_factor
from spear_lib.optim.eden import Eden, eden_factor
from spear_lib.optim.groups import parameter_groups
from spear_lib.optim.scaled_adam import ScaledAdam

__all__ = [
    "ClippedAdamW",
    "Eden",
    "ScaledAdam",
    "TriStage",
    "eden_factor",
    "parameter_groups",
    "tri_stage_factor",
]
