"""Objects full of arrays from a worker to its parent process without copying them through a pipe (ours).

The arrays are written once into memory that belongs to no file system (a memfd, so the size of /dev/shm does
not matter); a small message says where, and the parent maps the same pages. Where the system has no such
memory the message carries the arrays themselves.
"""

import os
import pickle
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_ALIGNMENT = 64  # bytes


@dataclass(frozen=True)
class Parcel:
    """The message: a pickle whose buffers lie in file ``descriptor`` of process ``owner``."""

    content: bytes
    owner: int
    descriptor: int
    size: int
    """Bytes of the memory."""
    places: list[tuple[int, int]]
    """Begin and end of every buffer, bytes."""


def has_shared_memory() -> bool:
    """Whether parcels can be sent here: Linux with /proc."""
    return hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()


class Sender:
    """Packs objects in the worker and keeps their memory until the parent must have mapped it.

    Args:
      keep: how many parcels may be on their way at once; older ones are given up here (the parent's mappings
        stay).
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._descriptors: deque[int] = deque()

    def pack(self, value: Any) -> Any:
        """A parcel of ``value``, or ``value`` itself where there is no shared memory."""
        if not has_shared_memory():
            return value
        buffers: list[pickle.PickleBuffer] = []
        content = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        raw = [buffer.raw() for buffer in buffers]
        places, end = [], 0
        for each in raw:
            places.append((end, end + each.nbytes))
            end += -(-each.nbytes // _ALIGNMENT) * _ALIGNMENT
        descriptor = os.memfd_create("spear_lib batch")
        self._descriptors.append(descriptor)
        while len(self._descriptors) > self.keep:
            os.close(self._descriptors.popleft())
        size = max(end, 1)
        os.ftruncate(descriptor, size)
        for (begin, _), each in zip(places, raw):
            _write(descriptor, each, begin)
        return Parcel(content, os.getpid(), descriptor, size, places)


def _write(descriptor: int, data: memoryview, position: int) -> None:
    while data.nbytes:
        written = os.pwrite(descriptor, data, position)
        data, position = data[written:], position + written


def unpack(value: Any) -> Any:
    """What was packed; its arrays live in the shared memory, which goes when they go."""
    if not isinstance(value, Parcel):
        return value
    # Not mmap.mmap, whose mappings hold a file descriptor each.
    path = f"/proc/{value.owner}/fd/{value.descriptor}"
    memory = memoryview(torch.from_file(path, shared=True, size=value.size, dtype=torch.uint8).numpy())
    buffers = [memory[begin:end] for begin, end in value.places]
    return pickle.loads(value.content, buffers=buffers)
