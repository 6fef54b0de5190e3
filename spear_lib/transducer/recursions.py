"""What walks through the lattices of the losses: PyTorch or kernels, the same numbers from both."""

from dataclasses import dataclass

from spear_lib.transducer.band import solve_band
from spear_lib.transducer.lattice import Solver, solve_lattice


@dataclass(frozen=True)
class Recursions:
    """The walk through the full lattice and through the pruned band."""

    lattice: Solver
    band: Solver


TORCH = Recursions(solve_lattice, solve_band)
