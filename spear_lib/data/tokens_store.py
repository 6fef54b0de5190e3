"""Token stores on disk: shards written by rename, one writer per split, one summary over all.

Layout of a store:
  split-1-of-2/split.json        what made the split (teacher, quantiser, cuts) and, when done, its shard
  count split-1-of-2/shard-00000.bin   flat codes, see tokens_reader
  split-1-of-2/shard-00000.json  ids, starts (s), durations (s) and frame counts, and the sha256 of the .bin:
                                 its presence commits the shard
  store.json                     written by check_tokens: TokenFacts plus counts and code statistics
"""

import dataclasses
import fcntl
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spear_lib.data.tokens_reader import PackedTokenReader, make_key
from spear_lib.files import atomic_path, write_text

STORE_FILE = "store.json"


@dataclass(frozen=True)
class TokenFacts:
    """What is the same for every token of a store."""

    field: str
    """Name of the field on the cuts, for example spectral_cb8."""
    teacher_id: str
    """Identity of the teacher (options and weights)."""
    quantizer_id: str
    """Content hash of the quantiser."""
    frame_rate: float
    """Token frames per second."""
    first_frame_center_ms: float
    """Centre of frame 0 after the cut's first sample, ms."""
    num_codebooks: int
    """Codes per frame."""
    codebook_size: int
    """Codes are 0..codebook_size-1."""
    cuts_id: str
    """Hash of the ids and durations of the cuts that the tokens were made for."""
    dtype: str = "uint8"
    """Type on disk; uint16 only for codebooks of more than 256 entries."""


@dataclass(frozen=True)
class Entry:
    """Tokens of one cut inside a shard."""

    cut_id: str
    start: float
    duration: float
    num_frames: int
    path: str
    key: str


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one line of JSON with sorted keys."""
    write_text(path, json.dumps(content, sort_keys=True))


def read_json(path: Path) -> dict[str, Any]:
    """The content of ``path``; ValueError when it is not valid JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and run the stage again") from error


def split_folder(store: str | Path, split: int, num_splits: int) -> Path:
    """Folder of one split's shards."""
    return Path(store) / f"split-{split}-of-{num_splits}"


class TokenStoreWriter:
    """Writes the shards of one split; a second writer of the same split is refused.

    Use as a context manager. Shards that an earlier, killed run committed are found by ``is_done``.
    """

    def __init__(self, store: str | Path, facts: TokenFacts, split: int = 1, num_splits: int = 1):
        if not 1 <= split <= num_splits:
            raise ValueError(f"split is {split}: it must be in 1..{num_splits} (num_splits is {num_splits})")
        self.facts, self.split, self.num_splits = facts, split, num_splits
        self.folder = split_folder(store, split, num_splits)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / "lock", "w")  # noqa: SIM115 - held until close()
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise RuntimeError(
                f"another job is writing {self.folder}; wait for it, or give this job another --split"
            ) from error
        try:
            self._open_split()
        except BaseException:
            self._lock.close()
            raise

    def _open_split(self) -> None:
        for left_over in self.folder.glob("*.tmp"):
            left_over.unlink()
        mine = dataclasses.asdict(self.facts)
        path = self.folder / "split.json"
        if path.exists():
            theirs = read_json(path)["facts"]
            for name, value in mine.items():
                if theirs.get(name) != value:
                    raise ValueError(
                        f"{self.folder} holds tokens with {name} = {theirs.get(name)!r}, but this run has "
                        f"{value!r}; "
                        f"delete the folder {self.folder} or choose another --output"
                    )
        else:
            write_json(path, {"facts": mine, "num_shards": None})

    def is_done(self, shard: int, cut_ids: list[str]) -> bool:
        """Whether shard number ``shard`` is committed, for exactly these cuts. ValueError if it holds
        others."""
        path = self.folder / f"shard-{shard:05d}.json"
        if not path.exists():
            return False
        index = read_json(path)
        if index["ids"] != cut_ids:
            raise ValueError(
                f"{path} holds other cuts than this run would put there (another --shard_cuts or other "
                f"cuts); "
                f"delete the folder {self.folder}"
            )
        data = path.with_suffix(".bin")
        # Checked here too, so that a damaged shard is written again rather than found at the end.
        return data.exists() and data.stat().st_size == index["num_bytes"]

    def write_shard(self, shard: int, entries: list[tuple[str, float, float, np.ndarray]]) -> None:
        """Commit one shard.

        Args:
          entries: (cut id, start s, duration s, codes (T, N)) per cut.
        """
        dtype, width = np.dtype(self.facts.dtype), self.facts.num_codebooks
        digest, num_bytes, num_frames = hashlib.sha256(), 0, []
        data = self.folder / f"shard-{shard:05d}.bin"
        with atomic_path(data) as aside:
            with open(aside, "wb") as file:
                for cut_id, _, _, codes in entries:
                    self._check(cut_id, codes)
                    raw = np.ascontiguousarray(codes, dtype=dtype).tobytes()
                    digest.update(raw)
                    file.write(raw)
                    num_bytes += len(raw)
                    num_frames.append(int(codes.shape[0]))
            if hashlib.sha256(aside.read_bytes()).digest() != digest.digest():
                raise RuntimeError(f"{aside} reads back differently from what was written: check the disk")
        index = {
            "ids": [entry[0] for entry in entries],
            "starts": [float(entry[1]) for entry in entries],
            "durations": [float(entry[2]) for entry in entries],
            "num_frames": num_frames,
            "num_codebooks": width,
            "num_bytes": num_bytes,
            "sha256": digest.hexdigest(),
        }
        write_json(data.with_suffix(".json"), index)

    def _check(self, cut_id: str, codes: np.ndarray) -> None:
        if codes.ndim != 2 or codes.shape[1] != self.facts.num_codebooks:
            raise ValueError(
                f"tokens of cut {cut_id} have shape {codes.shape}, expected (frames, "
                f"{self.facts.num_codebooks})"
            )
        if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= self.facts.codebook_size):
            raise ValueError(
                f"tokens of cut {cut_id} lie in {codes.min()}..{codes.max()}, expected "
                f"0..{self.facts.codebook_size - 1}; padding (-100) must never reach the store"
            )

    def finish(self, num_shards: int) -> None:
        """Mark the split complete."""
        facts = dataclasses.asdict(self.facts)
        write_json(self.folder / "split.json", {"facts": facts, "num_shards": num_shards})

    def close(self) -> None:
        """Let other writers in."""
        self._lock.close()

    def __enter__(self) -> "TokenStoreWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class TokenStoreReader:
    """All complete splits of a store: facts, and the entry of every cut.

    Raises ValueError for an empty store, an unfinished split, splits of different runs, and a cut held twice.
    """

    def __init__(self, store: str | Path):
        self.store = Path(store)
        folders = sorted(self.store.glob("split-*-of-*"))
        if not folders:
            raise ValueError(
                f"no tokens in {self.store}; run stage 5 (python -m spear_lib.bin.dump_tokens) first"
            )
        counts = sorted({int(folder.name.rsplit("-", 1)[1]) for folder in folders})
        if len(counts) > 1:
            raise ValueError(
                f"{self.store} holds splits of runs with num_splits {counts[0]} and {counts[1]}; delete one "
                f"of them"
            )
        missing = [
            i
            for i in range(1, counts[0] + 1)
            if not (split_folder(store, i, counts[0]) / "split.json").exists()
        ]
        if missing:
            raise ValueError(
                f"{self.store}: split {missing[0]} of {counts[0]} was never started ({len(missing)} "
                f"missing); "
                f"run dump_tokens --num_splits {counts[0]} --split {missing[0]}"
            )
        self.folders = [split_folder(store, i, counts[0]) for i in range(1, counts[0] + 1)]
        self.facts = self._common_facts()
        self.entries: dict[str, Entry] = {}
        self.shards: list[Path] = []
        for folder in self.folders:
            self._read_split(folder)

    def _common_facts(self) -> TokenFacts:
        first = None
        for folder in self.folders:
            facts = read_json(folder / "split.json")["facts"]
            if first is None:
                first = facts
            for name, value in facts.items():
                if first.get(name) != value:
                    raise ValueError(
                        f"{folder} holds tokens with {name} = {value!r}, but {self.folders[0]} has "
                        f"{first.get(name)!r}; delete the wrong one and run its split again"
                    )
        return TokenFacts(**first)

    def _read_split(self, folder: Path) -> None:
        num_shards = read_json(folder / "split.json")["num_shards"]
        if num_shards is None:
            split, num_splits = folder.name.split("-")[1::2]
            raise ValueError(
                f"{folder} is not finished; run dump_tokens --num_splits {num_splits} --split {split} again, "
                "it goes on where it stopped"
            )
        for shard in range(num_shards):
            path = folder / f"shard-{shard:05d}.json"
            if not path.exists():
                raise ValueError(
                    f"{path} is gone; run this split of dump_tokens again, it makes what is missing"
                )
            self.shards.append(path)
            index, data, offset = read_json(path), path.with_suffix(".bin"), 0
            if not data.exists() or data.stat().st_size != index["num_bytes"]:
                size = data.stat().st_size if data.exists() else "no"
                raise ValueError(
                    f"{data} has {size} bytes, expected {index['num_bytes']}; run this split of dump_tokens "
                    f"again"
                )
            for row in zip(index["ids"], index["starts"], index["durations"], index["num_frames"]):
                cut_id, start, duration, num_frames = row
                if cut_id in self.entries:
                    raise ValueError(
                        f"cut {cut_id} is in {self.store} twice; delete the store and dump it again"
                    )
                key = make_key(offset, num_frames, self.facts.num_codebooks, np.dtype(self.facts.dtype))
                self.entries[cut_id] = Entry(cut_id, start, duration, num_frames, str(data), key)
                offset += num_frames * self.facts.num_codebooks * np.dtype(self.facts.dtype).itemsize

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, cut_id: str) -> np.ndarray:
        """(T, N) codes of a cut."""
        entry = self.entries.get(cut_id)
        if entry is None:
            raise ValueError(f"{self.store} has no tokens of cut {cut_id} (it has {len(self)} cuts)")
        return PackedTokenReader(entry.path).read(entry.key)

    def verify(self) -> None:
        """Hash every shard again; ValueError names the first that changed."""
        for path in self.shards:
            data = path.with_suffix(".bin")
            digest = hashlib.sha256(data.read_bytes()).hexdigest()
            if digest != read_json(path)["sha256"]:
                raise ValueError(
                    f"{data} changed since it was written (its sha256 differs); delete {path} and "
                    "run this split of dump_tokens again"
                )

    def histograms(self) -> np.ndarray:
        """(N, codebook_size) int64: how often every code occurs."""
        counts = np.zeros((self.facts.num_codebooks, self.facts.codebook_size), dtype=np.int64)
        for codes in self._shard_codes():
            for codebook in range(self.facts.num_codebooks):
                counts[codebook] += np.bincount(codes[:, codebook], minlength=self.facts.codebook_size)
        return counts

    def _shard_codes(self) -> Iterator[np.ndarray]:
        for path in self.shards:
            codes = np.fromfile(path.with_suffix(".bin"), dtype=self.facts.dtype)
            yield codes.reshape(-1, self.facts.num_codebooks)


def store_facts(store: str | Path) -> dict[str, Any]:
    """The content of a checked store's store.json (TokenFacts, counts and code statistics)."""
    path = Path(store) / STORE_FILE
    if not path.is_file():
        raise ValueError(f"{path} does not exist; run stage 6 (python -m spear_lib.bin.check_tokens) first")
    return read_json(path)
