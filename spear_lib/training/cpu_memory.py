"""Memory of CPU training runs: keep freed blocks instead of handing them back (ours)."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_UNLIMITED = 2**31 - 1
_TOP_PAD = 256 * 2**20


def keep_freed_memory() -> bool:
    """Let the C library reuse large freed blocks; call it once at the start of a training process on a CPU.

    By default glibc returns every block above 32 MiB to the system when it is freed, and a training step then
    spends a sixth of its time on page faults for the tensors of the step before (measured: 104 against
    125 seconds of audio per second, 3 M parameters, batches of 100 s). Peak memory hardly changes.

    Returns:
      whether it applies: false where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    options = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _UNLIMITED), (_M_TOP_PAD, _TOP_PAD))
    done = [mallopt(option, value) == 1 for option, value in options]
    return all(done)
