"""Whether a file holds the audio that its own header promises (ours).

libsndfile reads a truncated WAV, AIFF, AU, W64 or Ogg as a shorter one, and of two files in one (chained Ogg,
"cat a.flac b.flac", a RIFF whose size ran over) only the first, without a word. The containers say themselves
how long they are, so comparing that with the file finds both; no audio is decoded.
"""

import functools
import math
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

TOLERANCE = 4096
"""Bytes by which header and file may differ: some writers count their header wrongly, some pad. An eighth of
it where the audio is compressed."""

_UNKNOWN = 0x7FFFF000  # and above: what writers to a pipe put where a size of 32 bits belongs


def cut_short(path: str | os.PathLike) -> str:
    """What is wrong with the length of an audio file; empty where nothing is, or where the format does not
    say how long it is."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return _cut_short(os.fspath(path), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=65536)
def _cut_short(path: str, size: int, _changed: int) -> str:
    """Cached: a long recording has many cuts, and training many epochs."""
    if size < 64 or not Path(path).is_file():
        return ""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for magic, check in _CHECKS.items():
                if data[: len(magic)] == magic:
                    return check(data)
            if data[4:8] == b"ftyp":
                return _mp4(data)
            return _mp3(data) if data[:3] == b"ID3" or _is_mpeg(data, 0) else ""
    except (OSError, ValueError, IndexError, struct.error):  # a damaged header: whoever decodes it says so
        return ""


def _compared(promised: int, held: int, tolerance: int = TOLERANCE) -> str:
    if promised > held + tolerance:
        return f"its header promises {promised} bytes and it holds {held}: it was cut short"
    if held > promised + tolerance:
        return f"its first {promised} bytes are read and {held - promised} more follow that no header counts"
    return ""


def _chunks(data: mmap.mmap, order: str, audio: bytes) -> str:
    """RIFF, RF64 and AIFF: names of 4 bytes, sizes of 4, padded to even ones."""
    at, big = 12, 0
    while at + 8 <= len(data):
        name, size = bytes(data[at : at + 4]), struct.unpack_from(f"{order}I", data, at + 4)[0]
        if name == audio:
            if size == 0xFFFFFFFF and big:
                size = struct.unpack_from("<Q", data, big)[0]
            elif size == 0 or size >= _UNKNOWN:
                return ""
            end = at + 8 + size + size % 2
            if end > len(data):
                return _compared(end, len(data))
            return _compared(_last_chunk(data, end, order), len(data))
        if name == b"ds64":
            big = at + 16  # after the name, the size and the size of the RIFF
        at += 8 + size + size % 2
    return ""


def _last_chunk(data: mmap.mmap, at: int, order: str) -> int:
    """End of the chunks behind the audio (LIST, id3, ...)."""
    while at + 8 <= len(data):
        name, size = bytes(data[at : at + 4]), struct.unpack_from(f"{order}I", data, at + 4)[0]
        end = at + 8 + size + size % 2
        if name in (b"RIFF", b"FORM") or not all(32 <= c < 127 for c in name) or end > len(data) + 1:
            break
        at = end
    return min(at, len(data))


def _au(data: mmap.mmap) -> str:
    begin, size = struct.unpack_from(">II", data, 4)
    return "" if size >= _UNKNOWN else _compared(begin + size, len(data))


def _sphere(data: mmap.mmap) -> str:
    begin = int(data[8:16].split()[0])
    fields = {line.split()[0]: line.split()[-1] for line in data[16:begin].splitlines() if line.split()}
    coding = fields.get(b"sample_coding", b"pcm")
    sizes = [fields.get(name) for name in (b"sample_count", b"channel_count", b"sample_n_bytes")]
    if b"shorten" in coding or None in sizes:
        return ""
    return _compared(begin + math.prod(map(int, sizes)), len(data))


def _w64(data: mmap.mmap) -> str:
    return _compared(struct.unpack_from("<Q", data, 16)[0], len(data))


def _caf(data: mmap.mmap) -> str:
    at = 8
    while at + 12 <= len(data):
        name, size = struct.unpack_from(">4sq", data, at)
        if size < 0 or name == b"caff":  # the audio goes on to the end; another file begins
            return "" if size < 0 and name == b"data" else _compared(at, len(data))
        at += 12 + size
    return _compared(at, len(data))


def _flac(data: mmap.mmap) -> str:
    # How much a stream holds is found by decoding it; here only whether another one follows.
    another = data.find(b"fLaC\x00\x00\x00\x22", 4)
    return "" if another < 0 else _compared(another, len(data))


def _ogg(data: mmap.mmap) -> str:
    ended, read = False, 0
    for begin, end, flags in _pages(data):
        if end > len(data):
            return f"its last page ends {end - len(data)} bytes behind the file: it was cut short"
        if ended and flags & 2:
            return f"another stream begins at byte {begin} of {len(data)}, which is not read"
        ended, read = ended or bool(flags & 4), end
    if not ended and read < len(data):
        return f"its stream has no end and stops within a page at byte {read}: it was cut short"
    return _compared(read, len(data), TOLERANCE // 8)


def _pages(data: mmap.mmap) -> Iterator[tuple[int, int, int]]:
    """(begin, end, flags) of Ogg's pages; flag 2 begins a stream, 4 ends one."""
    at = 0
    while at + 27 <= len(data) and data[at : at + 4] == b"OggS":
        segments = data[at + 26]
        table = data[at + 27 : at + 27 + segments]
        end = at + 27 + segments + sum(table)
        yield at, end, data[at + 5]
        at = end


def _mp4(data: mmap.mmap) -> str:
    at = 0
    while at + 16 <= len(data):
        size = struct.unpack_from(">I", data, at)[0]
        if size == 0:
            return ""  # to the end
        at += struct.unpack_from(">Q", data, at + 8)[0] if size == 1 else max(8, size)
    return _compared(at, len(data)) if at > len(data) else ""


def _is_mpeg(data: mmap.mmap, at: int) -> bool:
    return at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] & 0xE6 in (0xE2, 0xE4, 0xE6)


def _mp3(data: mmap.mmap) -> str:
    """By the number of bytes that the Xing or Info header of a variable rate holds, where there is one."""
    at = 0
    if data[:3] == b"ID3":
        at = 10 + sum((data[6 + i] & 0x7F) << 7 * (3 - i) for i in range(4))
    head = bytes(data[at : at + 200])
    place = max(head.find(b"Xing"), head.find(b"Info"))
    if place < 0 or len(head) < place + 16:
        return ""
    flags = struct.unpack_from(">I", head, place + 4)[0]
    if not flags & 2:
        return ""
    end = at + struct.unpack_from(">I", head, place + 8 + 4 * (flags & 1))[0]
    follows = _is_mpeg(data, end) or data[end : end + 3] == b"ID3"  # not a tag of another kind
    return _compared(end, len(data), TOLERANCE // 8) if end > len(data) or follows else ""


_CHECKS = {
    b"RIFF": lambda data: _chunks(data, "<", b"data"),
    b"RF64": lambda data: _chunks(data, "<", b"data"),
    b"FORM": lambda data: _chunks(data, ">", b"SSND"),
    b".snd": _au,
    b"NIST_1A": _sphere,
    b"riff": _w64,
    b"caff": _caf,
    b"fLaC": _flac,
    b"OggS": _ogg,
}
