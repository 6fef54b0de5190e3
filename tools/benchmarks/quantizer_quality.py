"""Error and training time of our quantiser beside the reference's trainer, at an equal number of frames.

    python tools/benchmarks/quantizer_quality.py   # synthetic Gaussian; then also stored frames:
    python tools/benchmarks/quantizer_quality.py --embeddings egs/librispeech/data/embeddings/spectral

The peer is multi_quantization's own QuantizerTrainer (two phases of ``steps`` steps each). Ours may look at
no more frames: those of the start (its axes, then each pass of k-means, which serves all codebooks), those
of the rounds, those of the classifiers. Both are measured on the same held-out frames with 5 refinements
and the same formula (squared error over the spread around the frames' mean). "Time to the reference's
error" is the time after which our codebooks, searched from a greedy guess, are at the peer's final error or
below. CPU is user + system time of the process, which other work on the machine changes less than wall
time.

--record NAME leaves what is printed in docs/results for RESULTS.md.
"""

import math
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import multi_quantization
import torch
from recording import recorded
from torch import Tensor

from spear_lib.bin.common import run
from spear_lib.config import parse
from spear_lib.quantization import Quantizer, trainer
from spear_lib.quantization.code_table import CodeTable
from spear_lib.quantization.embeddings import FrameStream, StoredFrames, statistics
from spear_lib.quantization.options import QuantizerTrainingOptions
from spear_lib.quantization.report import code_usage, gaussian_bound
from spear_lib.runtime.files import write_json
from spear_lib.runtime.log import first_screen


@dataclass(frozen=True)
class Options:
    """Data and sizes."""

    embeddings: str = ""
    """Folder of extract_embeddings, compared after the anisotropic Gaussian; empty: the Gaussian alone."""
    dim: int = 64
    """Channels of the Gaussian, whose eigenvalues fall from 1 to 0.01."""
    gaussian_frames: int = 40000
    """Frames of the Gaussian; 0: the embeddings alone."""
    steps: int = 120
    """Steps of each of the peer's two phases (600 frames each, its default batch)."""
    threads: int = 1
    """CPU threads."""
    seed: int = 0
    """Keys our random draws; the peer's are torch's."""
    training: QuantizerTrainingOptions = field(
        default_factory=lambda: QuantizerTrainingOptions(
            num_codebooks=4,
            init_frames=12000,
            init_iterations=3,
            rounds=10,
            frames_per_round=8000,
            classifier_frames=6000,
            classifier_steps=10,
            max_held_out_frames=2000,
        )
    )
    """Ours, on both data; normalisation is that of the embeddings. The Gaussian has global, which keeps it
    anisotropic."""


BATCH = 600


def gaussian_folder(folder: Path, options: Options) -> Path:
    """Embeddings of the Gaussian, stored as those of a teacher."""
    import numpy as np

    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -1, options.dim)  # standard deviations: eigenvalues from 1 to 0.01
    frames = torch.randn(options.gaussian_frames, options.dim, generator=generator) * scale
    np.save(folder / "shard-00000.npy", frames.half().numpy())
    counts = [len(part) for part in frames.split(100)]
    index = {"ids": [f"g{number}" for number in range(len(counts))], "num_frames": counts}
    write_json(folder / "shard-00000.json", index)
    teacher = {"teacher_id": "gaussian", "embedding_dim": options.dim}
    facts = {"num_shards": 1, "num_frames": len(frames), "teacher": teacher, "recipe": {}}
    write_json(folder / "embeddings.json", facts)
    return folder


def relative_error(x: Tensor, decoded: Tensor) -> float:
    return float((decoded - x).square().sum() / (x - x.mean(dim=0)).square().sum())


def train_peer(
    frames: FrameStream, training: QuantizerTrainingOptions, options: Options
) -> tuple[multi_quantization.Quantizer, float, float]:
    """The peer's quantiser and its wall and CPU seconds."""
    torch.manual_seed(options.seed)
    peer = multi_quantization.QuantizerTrainer(
        frames.dim, training.num_codebooks, torch.device("cpu"), options.steps, options.steps
    )
    start, start_cpu = time.perf_counter(), time.process_time()
    step = 0
    while not peer.done():
        peer.step(frames.read(step * BATCH, BATCH))
        step += 1
    return peer.get_quantizer(), time.perf_counter() - start, time.process_time() - start_cpu


def train_ours(
    frames: FrameStream, training: QuantizerTrainingOptions, seed: int, held_out: Tensor, folder: Path
) -> tuple[Quantizer, list[tuple[float, float, float]], float, float]:
    """Our quantiser; (wall, CPU, held-out error) after the start and each round; seconds of the whole."""
    curve: list[tuple[float, float, float]] = []
    measuring = [0.0, 0.0]
    start, start_cpu = time.perf_counter(), time.process_time()
    save = trainer.save_state

    def watch(state: dict, path: Path) -> None:
        now, now_cpu = time.perf_counter(), time.process_time()
        save(state, path)
        if "centers" in state and "classifier" not in state:
            table = CodeTable(state["centers"])
            h = table.project(held_out)
            codes = trainer.search.refine(table, h, trainer.search.greedy(table, h), 5)
            decoded = table.vectors[codes + table.first_row].sum(dim=1)
            wall, cpu = now - start - measuring[0], now_cpu - start_cpu - measuring[1]
            curve.append((wall, cpu, relative_error(held_out, decoded)))
        # The measurement does not count, the saving does.
        measuring[0] += time.perf_counter() - now
        measuring[1] += time.process_time() - now_cpu

    trainer.save_state = watch
    try:
        quantizer, _ = trainer.train_quantizer(frames, training, seed, folder, "benchmark")
    finally:
        trainer.save_state = save
    wall = time.perf_counter() - start - measuring[0]
    return quantizer, curve, wall, time.process_time() - start_cpu - measuring[1]


def frames_looked_at(training: QuantizerTrainingOptions, epoch_frames: int) -> int:
    """Frames that an update of ours is computed from, repetitions counted."""
    start = min(training.init_frames, epoch_frames) * (training.init_iterations + 1)
    fit = training.classifier_frames + training.classifier_steps * training.classifier_batch
    return start + training.rounds * training.frames_per_round + fit


def compare(folder: Path, training: QuantizerTrainingOptions, options: Options, scratch: Path) -> None:
    """Trains both on the frames of ``folder`` and prints errors and times."""
    seen = (2 * options.steps + 1) * BATCH
    stored = StoredFrames(folder, training.held_out_fraction, options.seed)
    mean, std, _ = statistics(stored.read(stored.train), stored.dim, training.normalisation)
    frames = FrameStream(stored, mean, std + 1e-5, training.shuffle_frames, options.seed)
    ours_seen = frames_looked_at(training, frames.epoch_frames)
    if ours_seen > seen:
        raise ValueError(f"ours would look at {ours_seen} frames, the peer at {seen}: raise steps")
    print(f"{stored.summary['teacher']['teacher_id']}: frames seen: peer {seen}, ours {ours_seen}")
    held_out = stored.sample(stored.held_out, training.max_held_out_frames, "report", options.seed)
    held_out = (held_out - frames.mean) / frames.std
    sample = frames.read(0, min(20000, frames.epoch_frames))
    ours, curve, wall, cpu = train_ours(frames, training, options.seed, held_out, scratch)
    peer, peer_wall, peer_cpu = train_peer(frames, training, options)
    with torch.no_grad():
        reference = Quantizer.from_reference(peer.state_dict())
        errors = {}
        for name, model in (("peer", reference), ("ours", ours)):
            codes = model.encode(held_out, 5, normalised=True)
            errors[name] = relative_error(held_out, model.decode(codes, normalised=True))
            used = code_usage(model.encode(sample, 2, normalised=True), 256)["used_share"]
            dead = round(sum(1 - share for share in used) * 256)
            print(f"{name}: relative error {errors[name]:.4f}, {dead} dead codes on {len(sample)} frames")
    bits = training.num_codebooks * math.log2(training.codebook_size)
    print(f"Gaussian bound at {bits:g} bits: {gaussian_bound(torch.cov(sample.T), bits):.4f}")
    print(f"error: ours / peer = {errors['ours'] / errors['peer']:.4f}")
    print(
        f"whole training: peer {peer_wall:.1f} s wall, {peer_cpu:.1f} s CPU; ours {wall:.1f} s, {cpu:.1f} s"
    )
    for number, (at, at_cpu, error) in enumerate(curve):
        print(f"  round {number}: {at:.2f} s wall, {at_cpu:.2f} s CPU: {error:.4f}")
    reached = [(at, at_cpu) for at, at_cpu, error in curve if error <= errors["peer"]]
    if reached:
        print(
            f"to the peer's final error: {peer_wall / reached[0][0]:.1f} times faster by wall time, "
            f"{peer_cpu / reached[0][1]:.1f} by CPU time"
        )
    else:
        print("the peer's final error was not reached by the rounds")


@recorded("stored embeddings")
def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv, prog="python tools/benchmarks/quantizer_quality.py", description=__doc__)
    torch.set_num_threads(options.threads)
    data = [*(["Gaussian"] if options.gaussian_frames else []), *filter(None, [options.embeddings])]
    first_screen("quantiser training", {"data": " and ".join(data), "threads": options.threads})
    with tempfile.TemporaryDirectory() as folder:
        scratch = [Path(folder) / name for name in ("data", "gaussian", "embeddings")]
        for each in scratch:
            each.mkdir()
        if options.gaussian_frames:
            training = replace(options.training, normalisation="global")
            compare(gaussian_folder(scratch[0], options), training, options, scratch[1])
        if options.embeddings:
            compare(Path(options.embeddings), options.training, options, scratch[2])


if __name__ == "__main__":
    run(main)
