"""What making, keeping and reading tokens costs, beside what it could cost at best, in one run.

(a) Stage 5 end to end (decode, teacher, quantiser, store) over the teacher's forward pass and the quantiser's
    search alone on the same batches, with a WavLM of Base size and random weights. At most 1.10.
(b) Random reads of 10,000 cuts from the packed store over lhotse's NumpyHdf5Writer (where h5py is installed)
    and NumpyFilesWriter, and bytes on disk over frames x codebooks. At least 5 times; at most 1.02.
(c) Memory while the tokens of 100,000 synthetic cuts are made, checked and read back. Flat.

    python tools/benchmarks/tokens.py [--parts a,b,c] [--rounds 5] [--cuts 100000]

Times are ratios of medians over interleaved rounds: other work on the machine slows both sides alike.

--record NAME leaves what is printed in docs/results for RESULTS.md.
"""

import argparse
import gzip
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile
import torch
from lhotse import MonoCut, Recording
from lhotse.audio import AudioSource
from recording import quiet, recorded

from spear_lib.bin import check_tokens
from spear_lib.data import decoding
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.problems import Problems
from spear_lib.quantization import Quantizer
from spear_lib.teachers import Teacher, create_teacher
from spear_lib.teachers.embedding import embed_batches, length_batches
from spear_lib.tokens.fields import load_tokens
from spear_lib.tokens.making import FieldInMaking, make_shard
from spear_lib.tokens.plan import ShardPlan, TokenFacts, cuts_hash
from spear_lib.tokens.store import TokenStoreWriter, write_store

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def facts_of(manifest: Manifest, rate: float, num_codebooks: int, field: str = "benchmark") -> TokenFacts:
    return TokenFacts(field, "t", "q", rate, 12.5, num_codebooks, 256, cuts_hash(manifest.audio_keys))


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of ``work`` by a clock, the device's work included."""
    began = clock()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return clock() - began


class BothClocks:
    """Wall time of works, and the processor time of all threads, which other processes hardly change."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.processor: dict[str, list[float]] = {}

    def run(self, name: str, work: Callable[[], object]) -> None:
        def timed() -> None:
            self.processor.setdefault(name, []).append(seconds(work, time.process_time))

        self.wall.setdefault(name, []).append(seconds(timed))

    def ratio(self, over: str, under: str) -> str:
        """Medians of the rounds' ratios."""
        both = [
            statistics.median(a / b for a, b in zip(times[over], times[under]))
            for times in (self.wall, self.processor)
        ]
        return f"{both[0]:.3f} by the wall clock, {both[1]:.3f} in processor time"


# (a) ----------------------------------------------------------------------------------------------------


def wavlm_base(folder: Path) -> Teacher:
    """The shape of microsoft/wavlm-base with random weights, saved and loaded as the real one."""
    import transformers

    torch.manual_seed(0)
    config = transformers.WavLMConfig()  # its defaults are those of Base
    transformers.WavLMModel(config).eval().save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return create_teacher("wavlm", folder, layer=9).to(DEVICE)


def recordings(folder: Path, count: int) -> Manifest:
    """FLAC files of 1 to 2 s (GPU: 8 to 16 s) of noise, and their manifest."""
    random, cuts = np.random.default_rng(0), []
    folder.mkdir()
    for number in range(count):
        length = random.uniform(1, 2) * (8 if DEVICE == "cuda" else 1)
        path = folder / f"r{number}.flac"
        soundfile.write(path, random.normal(0, 0.1, int(16000 * length)), 16000)
        cuts.append(Recording.from_file(path).to_cut())
    save_cuts(cuts, folder / "cuts.jsonl.gz")
    return Manifest(folder / "cuts.jsonl.gz")


def stage_5(folder: Path, rounds: int, clips: int) -> None:
    """Ratio of stage 5 to its bare computation."""
    count = clips or (2000 if DEVICE == "cuda" else 12)
    batch_seconds = 240.0 if DEVICE == "cuda" else 8.0
    manifest = recordings(folder / "audio", count)
    teacher = wavlm_base(folder / "wavlm")
    quantizer = Quantizer(teacher.embedding_dim, 16, 256).eval().to(DEVICE)
    positions = range(len(manifest))
    groups = length_batches(manifest.durations.tolist(), batch_seconds)
    decoded = [decoding.decode(manifest, [positions[row] for row in group]).audio for group in groups]

    def forward() -> None:
        for audio in decoded:
            for pieces in embed_batches(teacher, audio, batch_seconds):
                pieces[-1].embeddings.sum().item()

    def bare() -> None:
        for audio in decoded:
            for pieces in embed_batches(teacher, audio, batch_seconds):
                quantizer.encode(torch.cat([piece.embeddings for piece in pieces])).cpu()

    def whole() -> None:
        store = folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        writer = TokenStoreWriter(store, facts_of(manifest, 50.0, 16), ShardPlan((len(manifest),)))
        fields = [FieldInMaking(teacher, quantizer, writer)]
        make_shard(fields, 0, manifest, Problems(0.0), batch_seconds, 4, "stage 5")

    whole()
    works = {"whole": whole, "bare": bare}
    if DEVICE == "cuda":
        works["forward"] = forward
    clocks = BothClocks()
    for number in range(rounds):
        # In turns, so that a machine that grows busier does not favour either.
        for name in sorted(works, reverse=number % 2 == 0):
            clocks.run(name, works[name])
    decode = seconds(lambda: [decoding.decode(manifest, list(audio)) for audio in decoded])
    rate = float(manifest.durations.sum()) / statistics.median(clocks.wall["whole"])
    late = 100 * decode / statistics.median(clocks.wall["bare"])
    print(f"(a) stage 5, WavLM Base size, 16 codebooks, {len(manifest)} clips, {DEVICE}, {rounds} rounds")
    print(f"    over teacher forward + quantiser search alone (limit 1.10): {clocks.ratio('whole', 'bare')}")
    if "forward" in works:
        print(f"    over the bare teacher (limit 1.10): {clocks.ratio('whole', 'forward')}")
    print(f"    {rate:.3g} audio seconds per second; decoding without overlap would add {late:.1f} %")


# (b) ----------------------------------------------------------------------------------------------------


def silent_cuts(count: int, length: Callable[[int], float]) -> list[MonoCut]:
    """Cuts of recordings that exist on paper only."""
    cuts = []
    for number in range(count):
        duration = length(number)
        source = AudioSource("file", [0], f"/corpus/part-{number % 100}/recording-{number}.flac")
        recording = Recording(f"recording-{number}", [source], 16000, round(duration * 16000), duration)
        cuts.append(MonoCut(f"cut-{number}", 0.0, duration, 0, recording=recording))
    return cuts


def random_reads(folder: Path, rounds: int, count: int = 10_000) -> None:
    """Reads per second and bytes of the packed store and of lhotse's writers, same arrays, same order."""
    from lhotse.features.io import NumpyFilesReader, NumpyFilesWriter

    random = np.random.default_rng(0)
    frames = random.integers(100, 800, count)
    codes = [random.integers(0, 256, (length, 16)).astype(np.uint8) for length in frames]
    cuts = silent_cuts(count, lambda number: frames[number] / 50)
    save_cuts(cuts, folder / "cuts.jsonl.gz")
    facts = facts_of(Manifest(folder / "cuts.jsonl.gz"), 50.0, 16)
    write_store(folder / "packed", facts, cuts, codes)
    from spear_lib.data.packed_arrays import PackedTokenReader
    from spear_lib.tokens.store import TokenStoreReader

    entries = {entry.cut_id: entry for entry in TokenStoreReader(folder / "packed").entries()}
    packed = PackedTokenReader(entries["cut-0"].path)
    readers = {"packed": (packed, [entries[cut.id].key for cut in cuts])}
    with NumpyFilesWriter(folder / "files") as writer:
        keys = [writer.write(cut.id, each) for cut, each in zip(cuts, codes)]
    readers["NumpyFilesWriter"] = (NumpyFilesReader(folder / "files"), keys)
    try:
        from lhotse.features.io import NumpyHdf5Reader, NumpyHdf5Writer

        with NumpyHdf5Writer(folder / "tokens") as writer:
            keys = [writer.write(cut.id, each) for cut, each in zip(cuts, codes)]
            path = writer.storage_path
        readers["NumpyHdf5Writer"] = (NumpyHdf5Reader(path), keys)
    except ImportError as error:
        print(f"    h5py is not installed ({error}): no comparison with NumpyHdf5Writer")
    order = random.permutation(count)
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, (reader, keys) in readers.items():
            rates[name].append(count / seconds(lambda r=reader, k=keys: [r.read(k[each]) for each in order]))
    for number in order[:100]:
        for reader, keys in readers.values():
            assert np.array_equal(reader.read(keys[number]), codes[number])
    need = sum(each.size for each in codes)
    size = sum(file.stat().st_size for file in (folder / "packed").rglob("*") if file.suffix == ".bin")
    index = sum(file.stat().st_size for file in (folder / "packed").rglob("*.json"))
    print(f"(b) random reads of {count} cuts of 2 to 16 s, 16 codebooks, {rounds} rounds")
    for name in readers:
        ratio = statistics.median(a / b for a, b in zip(rates["packed"], rates[name]))
        per_second = statistics.median(rates[name])
        print(f"    {name:17s} {per_second:9.0f} reads/s; packed is {ratio:.1f} times as fast")
    print(
        f"    packed codes: {size / need:.4f} of frames x codebooks bytes (limit 1.02); with ids, times and "
        f"hashes: {(size + index) / need:.4f}"
    )


# (c) ----------------------------------------------------------------------------------------------------


def memory_mb() -> float:
    """This process's own memory (not the page cache of mapped files), MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this part needs Linux")


class InstantTeacher(Teacher):
    """One embedding channel per 20 ms without any computation: what remains is the pipeline."""

    name = field_prefix = "instant"
    frame_rate, embedding_dim, first_frame_center_ms = 50.0, 4, 10.0

    def num_frames(self, num_samples: int) -> int:
        return num_samples // 320

    def frames(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = waveforms.shape[1] // 320
        return waveforms[:, : count * 320].reshape(len(waveforms), count, 320)[:, :, :4], lengths // 320


def flat_memory(folder: Path, count: int) -> None:
    """Memory over the making, checking and reading of many cuts."""
    path = folder / "cuts.jsonl.gz"
    save_cuts(silent_cuts(count, lambda number: 0.5 + (number % 50) / 50), path)
    began, marks = time.monotonic(), {}
    manifest = Manifest(path)
    marks["manifest open"] = memory_mb()
    quantizer, teacher = Quantizer(4, 2, 16).eval(), InstantTeacher()
    plan = ShardPlan.over(manifest.durations, float(manifest.durations.sum()) / 20)
    writer = TokenStoreWriter(folder / "store", facts_of(manifest, 50.0, 2), plan)
    fields = [FieldInMaking(teacher, quantizer, writer)]
    samples = np.random.default_rng(0).normal(0, 0.1, 32000).astype(np.float32)
    # The recordings exist on paper only.
    with mock.patch.object(decoding, "load_audio", lambda cut, *_: samples[: round(cut.duration * 16000)]):
        for shard in range(len(plan)):
            make_shard(fields, shard, manifest, Problems(0.0), 600.0, 2, "stage 5")
            marks[f"{plan.ends[shard]} cuts made"] = memory_mb()
    arguments = ["check_tokens", "--cuts", str(path), "--store", str(folder / "store")]
    with mock.patch.object(sys, "argv", [*arguments, "--output_cuts", str(folder / "with_tokens.jsonl.gz")]):
        check_tokens.main()
    marks["checked"] = memory_mb()
    cuts = Manifest(folder / "with_tokens.jsonl.gz")
    for position in range(0, len(cuts), 5):
        load_tokens(cuts[position], "benchmark")
    marks["read again"] = memory_mb()
    shown = {name: mark for name, mark in marks.items() if not name.endswith("made")}
    made = [mark for name, mark in marks.items() if name.endswith("made")]
    first, half, last = made[0], made[len(made) // 2], made[-1]
    print(
        f"(c) {count} cuts of 0.5 to 1.5 s, {len(plan)} shards, {time.monotonic() - began:.0f} s: memory in "
        "MB"
    )
    print(
        f"    after the first shard {first:.0f}, half of them {half:.0f}, all {last:.0f} "
        f"({last - first:+.0f}); " + ", ".join(f"{name} {mark:.0f}" for name, mark in shown.items())
    )
    print(f"    the manifest's lines are {sum(map(len, _lines(path))) / 1e6:.0f} MB")
    again = time.monotonic()
    Manifest(path)
    print(f"    opening the manifest again takes {1000 * (time.monotonic() - again):.0f} ms")


def _lines(path: Path) -> list[bytes]:
    with gzip.open(path) as file:
        return file.readlines()


@recorded("made-up cuts")
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="a,b,c", help="which of a, b, c (default: all)")
    parser.add_argument("--clips", type=int, default=0, help="clips of (a) (default: 12, on a GPU 2000)")
    parser.add_argument("--cuts", type=int, default=100_000, help="cuts of (c)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of (a) and (b)")
    options = parser.parse_args(argv)
    parts: dict[str, Callable[[Path], None]] = {
        "a": lambda folder: stage_5(folder, options.rounds, options.clips),
        "b": lambda folder: random_reads(folder, options.rounds),
        "c": lambda folder: flat_memory(folder, options.cuts),
    }
    for name in options.parts.split(","):
        if name not in parts:
            parser.error(f"there is no part {name!r}: use {json.dumps(sorted(parts))}")
        with quiet(), tempfile.TemporaryDirectory() as folder:
            parts[name](Path(folder))


if __name__ == "__main__":
    main()
