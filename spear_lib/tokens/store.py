"""Token stores on disk: shards that are written by rename and never changed, read by what audio they belong
to.

Layout of a store:
  plan.json               TokenFacts, and which cuts of the manifest make which shard
  shards/shard-00000.bin  flat codes of consecutive cuts, see tokens_reader
  shards/shard-00000.json the cuts (id, recording, channel, start, duration), their frame counts, what was
                          skipped and why, and the sha256 of the .bin: its presence commits the shard
  store.json              written by check_tokens: TokenFacts plus counts and code statistics

Shards are planned over the whole manifest, whoever makes them: any number of jobs, on any number of splits,
one after the other or together, leaves the same files.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.cut import Cut

from spear_lib.data.manifest_index import audio_key
from spear_lib.data.packed_arrays import PackedTokenReader, make_key
from spear_lib.runtime.files import atomic_path, read_json, sha256_of, write_json
from spear_lib.runtime.locks import exclusive
from spear_lib.tokens.plan import ShardPlan, TokenFacts

STORE_FILE = "store.json"
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Entry:
    """Tokens of one cut inside a shard; ``skipped`` says why there are none."""

    cut_id: str
    start: float
    duration: float
    num_frames: int
    path: str
    key: str
    skipped: str = ""


def audio_of(cut: Cut) -> tuple[str, Any]:
    """Recording id (the cut's own for a cut without a recording) and channel(s) of a cut."""
    recording = cut.recording.id if cut.has_recording else cut.id
    return recording, getattr(cut, "channel", 0)


def shard_file(store: str | Path, shard: int) -> Path:
    """The .bin file of a shard; its index has the same name with .json."""
    return Path(store) / "shards" / f"shard-{shard:05d}.bin"


class TokenStoreWriter:
    """Makes a store, or goes on with one: any number of processes may write shards of it at the same time.

    Args:
      plan: how to divide the cuts; a store that exists keeps its own (``plan`` of the writer).

    Raises:
      ValueError: the store holds tokens with other facts.
    """

    def __init__(self, store: str | Path, facts: TokenFacts, plan: ShardPlan):
        self.store, self.facts = Path(store), facts
        path = self.store / PLAN_FILE
        with exclusive(self.store / "lock", str(self.store), wait=True):
            if not path.exists():
                write_json(path, {"facts": dataclasses.asdict(facts), "ends": list(plan.ends)}, compact=True)
        stored = read_json(path)
        for name, value in dataclasses.asdict(facts).items():
            if stored["facts"].get(name) != value:
                raise ValueError(
                    f"{self.store} holds tokens with {name} = {stored['facts'].get(name)!r}, but this run "
                    f"has {value!r}; delete the folder {self.store} or choose another output_dir"
                )
        self.plan = ShardPlan(tuple(stored["ends"]))

    def claim(self, shard: int) -> AbstractContextManager[None]:
        """Hold a shard while its tokens are made; RuntimeError if another living process has it."""
        return exclusive(self._lock(shard), f"shard {shard} of {self.store}")

    def tidy(self, shard: int) -> None:
        """Remove what a job leaves that was killed just after it committed the shard."""
        if self._lock(shard).exists():
            with suppress(RuntimeError), self.claim(shard):
                pass

    def _lock(self, shard: int) -> Path:
        return shard_file(self.store, shard).with_suffix(".lock")

    def is_done(self, shard: int, retry_skipped: bool = False) -> bool:
        """Whether a shard is committed and whole; with ``retry_skipped`` also free of skipped cuts."""
        # Its size too, so that a damaged shard is written again rather than found at the end.
        return shard_is_whole(self.store, shard) and not (retry_skipped and self.skipped(shard))

    def skipped(self, shard: int) -> dict[str, str]:
        """Cut id -> reason, of a committed shard."""
        return read_json(shard_file(self.store, shard).with_suffix(".json"))["skipped"]

    def write_shard(
        self,
        shard: int,
        cuts: Sequence[Cut],
        codes: Sequence[np.ndarray],
        skipped: dict[str, str] | None = None,
    ) -> None:
        """Commit one shard: the cuts in the order of the plan and their codes (T, N).

        Args:
          skipped: cut id -> why it has no tokens; its codes are empty.
        """
        dtype, width = np.dtype(self.facts.dtype), self.facts.num_codebooks
        digest, num_bytes = hashlib.sha256(), 0
        data = shard_file(self.store, shard)
        with atomic_path(data) as aside:
            with open(aside, "wb") as file:
                for cut, each in zip(cuts, codes):
                    self._check(cut.id, each)
                    raw = np.ascontiguousarray(each, dtype=dtype).tobytes()
                    digest.update(raw)
                    file.write(raw)
                    num_bytes += len(raw)
            if _sha256(aside) != digest.hexdigest():
                raise RuntimeError(f"{aside} reads back differently from what was written: check the disk")
        audio = [audio_of(cut) for cut in cuts]
        index = {
            "ids": [cut.id for cut in cuts],
            "recordings": [recording for recording, _ in audio],
            "channels": [channel for _, channel in audio],
            "starts": [float(cut.start) for cut in cuts],
            "durations": [float(cut.duration) for cut in cuts],
            "num_frames": [len(each) for each in codes],
            "skipped": dict(skipped or {}),
            "num_codebooks": width,
            "num_bytes": num_bytes,
            "sha256": digest.hexdigest(),
        }
        write_json(data.with_suffix(".json"), index, compact=True)

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


def write_store(
    store: str | Path, facts: TokenFacts, cuts: Sequence[Cut], codes: Sequence[np.ndarray]
) -> None:
    """A whole store of one shard, from tokens that are at hand."""
    writer = TokenStoreWriter(store, facts, ShardPlan((len(cuts),)))
    with writer.claim(0):
        writer.write_shard(0, cuts, codes)


def shard_is_whole(store: str | Path, shard: int) -> bool:
    """Whether a shard is committed and has all its bytes."""
    data = shard_file(store, shard)
    if not data.with_suffix(".json").exists():
        return False
    return data.exists() and data.stat().st_size == read_json(data.with_suffix(".json"))["num_bytes"]


def missing_parts(stores: Iterable[str | Path], num_splits: int) -> list[int]:
    """Which of the parts 1 to ``num_splits`` of stage 5 have shards that are not made in one of ``stores``;
    all, where a store was not begun."""
    parts: set[int] = set()
    for store in stores:
        if not (Path(store) / PLAN_FILE).is_file():
            return list(range(1, num_splits + 1))
        plan = ShardPlan(tuple(read_json(Path(store) / PLAN_FILE)["ends"]))
        missing = {shard for shard in range(len(plan)) if not shard_is_whole(store, shard)}
        parts |= {
            part for part in range(1, num_splits + 1) if not missing.isdisjoint(plan.share(part, num_splits))
        }
    return sorted(parts)


class TokenStoreReader:
    """All shards of a finished store: facts, and the tokens of any cut, found by its audio.

    Holds 16 bytes per cut, whatever the length of the ids.

    Raises:
      ValueError: no store, a shard that is missing or damaged, or the same audio twice.
    """

    def __init__(self, store: str | Path):
        self.store = Path(store)
        if not (self.store / PLAN_FILE).is_file():
            raise ValueError(
                f"no tokens in {self.store}; run stage 5 (python -m spear_lib.bin.dump_tokens) first"
            )
        plan = read_json(self.store / PLAN_FILE)
        self.facts, self.num_shards = TokenFacts(**plan["facts"]), len(plan["ends"])
        self._check_complete()
        self._loaded: dict[int, tuple[dict[str, Any], np.ndarray]] = {}
        self.num_frames = self.num_bytes = 0
        keys, places = [], []
        for shard in range(self.num_shards):
            index, _ = self._index(shard)
            keys.append(_keys(index))
            places.append(np.arange(len(keys[-1]), dtype=np.int64) + (shard << 32))
            self.num_frames += sum(index["num_frames"])
            self.num_bytes += index["num_bytes"]
        joined = np.concatenate(keys)
        order = np.argsort(joined, kind="stable")
        self.keys: np.ndarray = joined[order]
        """(number of cuts,) uint64, sorted: which audio has an entry."""
        self._places = np.concatenate(places)[order]
        twice = np.flatnonzero(self.keys[1:] == self.keys[:-1])
        if len(twice):
            cut_id = self._entry(int(self._places[twice[0]])).cut_id
            raise ValueError(
                f"the audio of cut {cut_id} is in {self.store} twice; delete the store and dump it again"
            )

    def _check_complete(self) -> None:
        missing = [
            shard
            for shard in range(self.num_shards)
            if not shard_file(self.store, shard).with_suffix(".json").exists()
        ]
        if missing:
            shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            raise ValueError(
                f"{len(missing)} of {self.num_shards} shards of {self.store} are not made ({shown}); run "
                "stage 5 (dump_tokens) again, it makes what is missing, with any number of splits"
            )

    def _index(self, shard: int) -> tuple[dict[str, Any], np.ndarray]:
        """A shard's index and the byte offsets of its cuts; the last few are kept."""
        if shard not in self._loaded:
            data = shard_file(self.store, shard)
            index = read_json(data.with_suffix(".json"))
            size = data.stat().st_size if data.exists() else "no"
            if size != index["num_bytes"]:
                raise ValueError(
                    f"{data} has {size} bytes, expected {index['num_bytes']}; run stage 5 (dump_tokens) again"
                )
            width = self.facts.num_codebooks * np.dtype(self.facts.dtype).itemsize
            counts = np.array(index["num_frames"], dtype=np.int64)
            if len(self._loaded) >= 4:
                self._loaded.pop(next(iter(self._loaded)))
            self._loaded[shard] = index, (np.cumsum(counts) - counts) * width
        return self._loaded[shard]

    def _entry(self, place: int) -> Entry:
        shard, row = place >> 32, place & 0xFFFFFFFF
        index, offsets = self._index(shard)
        num_frames, cut_id = index["num_frames"][row], index["ids"][row]
        key = make_key(int(offsets[row]), num_frames, self.facts.num_codebooks, np.dtype(self.facts.dtype))
        return Entry(
            cut_id,
            index["starts"][row],
            index["durations"][row],
            num_frames,
            str(shard_file(self.store, shard)),
            key,
            index["skipped"].get(cut_id, ""),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, cut: Cut) -> Entry | None:
        """The entry of the cut's audio (recording, channel, start, duration), whatever the cut is called."""
        recording, channel = audio_of(cut)
        key = np.uint64(audio_key(recording, channel, cut.start, cut.duration))
        row = int(np.searchsorted(self.keys, key))
        if row == len(self) or self.keys[row] != key:
            return None
        return self._entry(int(self._places[row]))

    def entries(self) -> Iterator[Entry]:
        """All entries, in the order of the manifest that the tokens were made for."""
        for shard in range(self.num_shards):
            for row in range(len(self._index(shard)[0]["ids"])):
                yield self._entry((shard << 32) + row)

    def cut_ids_of(self, keys: Iterable[int]) -> list[str]:
        """Ids that cuts had when their tokens were made, for messages."""
        rows = np.searchsorted(self.keys, np.array(list(keys), dtype=np.uint64))
        return [self._entry(int(self._places[row])).cut_id for row in rows]

    def read(self, cut: Cut) -> np.ndarray:
        """(T, N) codes of a cut."""
        entry = self.find(cut)
        if entry is None:
            raise ValueError(f"{self.store} has no tokens of cut {cut.id} (it has {len(self)} cuts)")
        return PackedTokenReader(entry.path).read(entry.key)

    def verify(self) -> np.ndarray:
        """Hash every shard again and count its codes.

        Returns:
          (N, codebook_size) int64: how often every code occurs.

        Raises:
          ValueError: naming the first shard that changed, or that holds codes that do not exist.
        """
        size = self.facts.codebook_size
        counts = np.zeros((self.facts.num_codebooks, size), dtype=np.int64)
        for shard in range(self.num_shards):
            data = shard_file(self.store, shard)
            if _sha256(data) != self._index(shard)[0]["sha256"]:
                raise ValueError(
                    f"{data} changed since it was written (its sha256 differs); delete it and run stage 5 "
                    "(dump_tokens) again"
                )
            codes = np.fromfile(data, dtype=self.facts.dtype).reshape(-1, self.facts.num_codebooks)
            if codes.size and int(codes.max()) >= size:
                raise ValueError(f"{data} holds code {codes.max()}, but the quantiser has 0..{size - 1}")
            for codebook in range(self.facts.num_codebooks):
                counts[codebook] += np.bincount(codes[:, codebook], minlength=size)
        return counts


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return sha256_of(file).hex()


def _keys(index: dict[str, Any]) -> np.ndarray:
    rows = zip(index["recordings"], index["channels"], index["starts"], index["durations"])
    return np.array([audio_key(*row) for row in rows], dtype=np.uint64)


def store_facts(store: str | Path) -> dict[str, Any]:
    """The content of a checked store's store.json (TokenFacts, counts and code statistics)."""
    path = Path(store) / STORE_FILE
    if not path.is_file():
        raise ValueError(f"{path} does not exist; run stage 6 (python -m spear_lib.bin.check_tokens) first")
    return read_json(path)
