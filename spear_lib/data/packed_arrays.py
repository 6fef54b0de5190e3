"""The lhotse array reader of packed tokens: a memory-mapped flat file, addressed by the manifest alone.

A shard is one flat file of codes, frame after frame, codebook after codebook. The storage key in a cut's
manifest says where an utterance lies ("offset:frames:codebooks:dtype"), so that loading needs no index, reads
only the frames asked for, and works in any number of worker processes.
"""

import os
from collections import OrderedDict

import numpy as np
from lhotse.features.io import FeaturesReader, register_reader

from spear_lib.data.local_copies import local

STORAGE_TYPE = "spear_packed_tokens"
MAX_OPEN = 64
"""Shards that a process keeps mapped."""
_open: "OrderedDict[tuple[str, int, int, int], np.memmap]" = OrderedDict()


def make_key(offset: int, num_frames: int, num_codebooks: int, dtype: np.dtype) -> str:
    """Storage key of an utterance that starts at byte ``offset`` of its shard."""
    return f"{offset}:{num_frames}:{num_codebooks}:{np.dtype(dtype).name}"


def parse_key(key: str) -> tuple[int, int, int, np.dtype]:
    """(byte offset, frames, codebooks, dtype) of a storage key."""
    try:
        offset, num_frames, num_codebooks, dtype = key.split(":")
        return int(offset), int(num_frames), int(num_codebooks), np.dtype(dtype)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"token key {key!r} is not 'offset:frames:codebooks:dtype'; run stage 6 (check_tokens) again"
        ) from error


def _bytes_of(path: str) -> np.memmap:
    """The file as memory-mapped bytes; kept open, and opened anew when the file was replaced."""
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise ValueError(
            f"token file {path} does not exist (working directory {os.getcwd()}); run stages 5 and 6 "
            "(dump_tokens, check_tokens), or start from the folder in which they ran"
        ) from error
    identity = (path, status.st_ino, status.st_size, status.st_mtime_ns)
    if identity in _open:
        _open.move_to_end(identity)
        return _open[identity]
    mapped = np.memmap(path, dtype=np.uint8, mode="r") if status.st_size else np.empty(0, dtype=np.uint8)
    _open[identity] = mapped
    while len(_open) > MAX_OPEN:
        _open.popitem(last=False)
    return mapped


@register_reader
class PackedTokenReader(FeaturesReader):
    """Reads codes (T, N) of one utterance, or a range of its frames, from a shard file."""

    name = STORAGE_TYPE

    def __init__(self, storage_path: str, *args, **kwargs) -> None:
        super().__init__()
        self.storage_path = str(storage_path)

    def read(
        self, key: str, left_offset_frames: int = 0, right_offset_frames: int | None = None
    ) -> np.ndarray:
        """Frames [left, right) of the utterance at ``key``: (T, N), a copy. The range is clipped to what is
        there."""
        offset, num_frames, num_codebooks, dtype = parse_key(key)
        right = num_frames if right_offset_frames is None else min(right_offset_frames, num_frames)
        left = min(max(left_offset_frames, 0), right)
        width = num_codebooks * dtype.itemsize
        data = _bytes_of(local(self.storage_path))
        if offset + num_frames * width > len(data):
            raise ValueError(
                f"token file {self.storage_path} has {len(data)} bytes but the manifest points to bytes "
                f"{offset}..{offset + num_frames * width}: the file was cut short or the cuts belong to "
                "another token store; run stage 6 (check_tokens) again"
            )
        part = data[offset + left * width : offset + right * width]
        return np.array(part).view(dtype).reshape(right - left, num_codebooks)
