"""A port on which the processes of a run meet: free now, and not one that the kernel gives away (ours).

    python free_port.py NUMBER

Two runs of one machine begin to look at different places (NUMBER, the job's), so that they do not take the
same one before either uses it. Called by stages.sh only.
"""

import socket
import sys

FIRST, COUNT = 15000, 10000
"""Below 32768, where Linux begins to give ports to connections, and above what services use."""


def free_port(number: int) -> int:
    """The first free port from a place that ``number`` chooses.

    Raises:
      SystemExit: none of them is free.
    """
    for step in range(COUNT):
        port = FIRST + (number * 17 + step) % COUNT
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise SystemExit(f"error: none of the ports {FIRST} to {FIRST + COUNT - 1} is free: end what uses them")


if __name__ == "__main__":
    print(free_port(int(sys.argv[1])))
