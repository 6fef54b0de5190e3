"""Commands: ``python -m spear_lib.bin.<verb>``: parse the options, call the library, verify, report."""

import os

from spear_lib.runtime.threads import chosen

# Before torch, BLAS and numba are imported: they read OMP_NUM_THREADS once.
os.environ.update(chosen())
