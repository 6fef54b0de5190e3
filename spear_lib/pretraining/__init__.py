"""Masked prediction of teacher tokens (paper §3.2)."""

from spear_lib.pretraining.alignment import align_targets
from spear_lib.pretraining.fields import TokenField, token_fields
from spear_lib.pretraining.heads import MaskedPredictionHead
from spear_lib.pretraining.objective import ObjectiveConfig
from spear_lib.pretraining.task import PretrainingModel, PretrainingTask

__all__ = [
    "MaskedPredictionHead",
    "ObjectiveConfig",
    "PretrainingModel",
    "PretrainingTask",
    "TokenField",
    "align_targets",
    "token_fields",
]
