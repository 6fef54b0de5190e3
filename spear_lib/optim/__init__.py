"""ScaledAdam, the Eden schedule and parameter groups."""

from spear_lib.optim.eden import Eden, eden_factor
from spear_lib.optim.groups import parameter_groups
from spear_lib.optim.scaled_adam import ScaledAdam

__all__ = ["Eden", "ScaledAdam", "eden_factor", "parameter_groups"]
