"""Cuts of a lhotse Shar folder with the place of their data in its archives, so that any cut can be read
alone.

lhotse reads Shar as a stream, which cannot be resumed in the middle without reading what came before. The
archives are plain tar files, though: one pass over their headers tells where every array and every audio file
lies. The cuts that come out of here point there: arrays as packed tokens (``tokens_reader``), audio as a byte
range of the archive (``byte_range``), which ``spear_lib.data.audio`` reads.

Read are local, uncompressed archives: ``cuts.NNNNNN.jsonl.gz``, ``<field>.NNNNNN.tar``,
``recording.NNNNNN.tar``. Fields that are neither audio nor .npy arrays of frames stay as they are.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lhotse.cut import Cut
from numpy.lib import format as npy

from spear_lib.data.local_copies import local
from spear_lib.data.manifest_fields import parse_cut
from spear_lib.data.packed_arrays import STORAGE_TYPE, make_key
from spear_lib.runtime.text_files import is_companion, raw_lines

AUDIO_FIELD = "recording"
RANGE_TYPE = "shar"
"""Type of audio sources that are byte ranges."""


class _Member(NamedTuple):
    """One cut's part of an archive."""

    key: str
    """Id of the cut."""
    offset: int
    size: int
    head: bytes
    """First bytes of the data."""
    manifest: dict[str, Any] | None
    """What lhotse wrote about it; None: this cut has no such field."""


_HEAD = 4096  # bytes; the header of an .npy of frames has 128


def is_shar(path: Path) -> bool:
    """Whether ``path`` can only be a Shar folder: manifests are files."""
    return path.is_dir()


def shar_size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def shar_identity(folder: Path) -> str:
    """Changes when the folder is moved or any of its files is replaced."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.blake2b(json.dumps([str(folder.resolve()), facts]).encode(), digest_size=16).hexdigest()


def shar_lines(folder: Path) -> Iterator[bytes]:
    """The JSON line of every cut, its arrays and audio pointing into the archives.

    Raises:
      ValueError: no Shar folder, a missing or truncated file, archives that do not belong to their cuts.
    """
    folder = folder.resolve()
    shards = sorted(folder.glob("cuts.*.jsonl*"))
    if not shards:
        raise ValueError(
            f"folder {folder} holds no cuts.*.jsonl.gz, so it is no Shar folder: give one that export_shar "
            "or lhotse wrote, or the manifest file itself"
        )
    names = sorted({file.name.split(".")[0] for file in folder.glob("*.tar*") if not is_companion(file)})
    for shard in shards:
        number = shard.name.split(".")[1]
        archives = {}
        for name in names:
            archive = folder / f"{name}.{number}.tar"
            if not archive.is_file():
                raise ValueError(
                    f"{shard} has no {archive.name} beside it, though other shards have one: the Shar folder "
                    "is incomplete; copy or export it again"
                )
            archives[name] = (archive, _members(archive))
        for row, line in enumerate(_cut_lines(shard), 1):
            fields = parse_cut(shard, row, line)
            for name, (archive, members) in archives.items():
                member = next(members, None)
                if member is None or member.key != str(fields["id"]):
                    found = "the end" if member is None else f"cut {member.key}"
                    raise ValueError(
                        f"{archive} does not hold the cuts of {shard.name}: there is {found} where cut "
                        f"{fields['id']} should be. It was cut short or belongs to other cuts: copy or "
                        "export the Shar folder again"
                    )
                _attach(fields, name, archive, member)
            yield json.dumps(fields, ensure_ascii=False).encode() + b"\n"
        for archive, members in archives.values():
            if next(members, None) is not None:
                raise ValueError(
                    f"{archive} holds more than the cuts of {shard.name}: copy or export the Shar folder "
                    "again"
                )


def _cut_lines(path: Path) -> Iterator[bytes]:
    yield from (line for _, line in raw_lines(path) if line.strip())


def _members(path: Path) -> Iterator[_Member]:
    """The data of an archive in their order: each is followed by its manifest."""
    size = path.stat().st_size
    try:
        with tarfile.open(path, mode="r:") as archive:
            while (data := archive.next()) is not None:
                manifest = archive.next()
                if manifest is None or manifest.offset_data + manifest.size > size:
                    raise tarfile.ReadError(f"{data.name} is its last whole file, without a manifest")
                stem, _, ending = data.name.rpartition(".")
                head = archive.extractfile(data).read(_HEAD)
                content = archive.extractfile(manifest).read()
                about = None if ending == "nodata" else json.loads(content)
                yield _Member(stem, data.offset_data, data.size, head, about)
    except (tarfile.TarError, json.JSONDecodeError, EOFError) as error:
        raise ValueError(
            f"{path} is truncated or no (uncompressed) tar archive ({error}): copy or export the Shar folder "
            "again"
        ) from error


def _attach(fields: dict[str, Any], name: str, archive: Path, member: _Member) -> None:
    """Points the field ``name`` of a cut to its data."""
    holder = fields if name == AUDIO_FIELD else fields.setdefault("custom", {})
    if member.manifest is None:
        holder.pop(name, None)
    elif name == AUDIO_FIELD:
        source = {**member.manifest["sources"][0], "type": RANGE_TYPE}
        source["source"] = f"{archive}@{member.offset}+{member.size}"
        holder[name] = {**member.manifest, "sources": [source]}
    elif "array" in member.manifest and member.head.startswith(npy.MAGIC_PREFIX):
        shape, begin, dtype = _npy_header(archive, member)
        if len(shape) == 2:
            key = make_key(member.offset + begin, *shape, dtype)
            array = {"storage_type": STORAGE_TYPE, "storage_path": str(archive), "storage_key": key}
            holder[name] = {**member.manifest, "array": {**array, "shape": list(shape)}}


def _npy_header(archive: Path, member: _Member) -> tuple[tuple[int, ...], int, np.dtype]:
    """Shape, first byte behind the header, dtype."""
    head = BytesIO(member.head)
    try:
        version = npy.read_magic(head)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(head)
    except ValueError as error:
        raise ValueError(f"{archive}: the array of {member.key} is damaged ({error})") from error
    if fortran and len(shape) > 1 or head.tell() + dtype.itemsize * int(np.prod(shape)) != member.size:
        raise ValueError(
            f"{archive}: the array of {member.key} has {member.size} bytes, which is no array {shape} of "
            f"{dtype} in C order; export the Shar folder again"
        )
    return shape, head.tell(), dtype


def audio_archives(cut: Cut) -> list[str]:
    """The archives in which the audio of a cut lies."""
    recording = getattr(cut, "recording", None)
    sources = recording.sources if recording is not None else ()
    return [_archive_of(each.source) for each in sources if each.type == RANGE_TYPE]


def _archive_of(source: str) -> str:
    return source.rpartition("@")[0]


def byte_range(source: str) -> bytes:
    """The bytes of an audio source of ``RANGE_TYPE``.

    Raises:
      OSError: the archive is gone or shorter than it was.
    """
    path = _archive_of(source)
    offset, size = map(int, source[len(path) + 1 :].split("+"))
    with open(local(path), "rb") as file:
        data = os.pread(file.fileno(), size, offset)
    if len(data) < size:
        raise OSError(
            f"{path} ends within the audio at byte {offset}: it is shorter than when it was indexed"
        )
    return data
