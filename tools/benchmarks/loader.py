"""Audio-seconds per second and core that reach the trainer, beside lhotse's K2-style dataset, in one run.

Both read the same FLAC files (16 kHz) with 16-codebook tokens, mix into the same share of the cuts and
collate:

* ours: batches of waveforms with mixing (noise and tokens), time and channel masks, tokens of the packed
store; * ours + fbank: the same and 128-bin fbank of each batch, which in training runs on the GPU;
* lhotse: K2SpeechRecognitionDataset with DynamicBucketingSampler, CutMix, OnTheFlyFeatures (128-bin fbank, as
  the reference computes it in its workers) and tokens written by NumpyHdf5Writer; no masks;
* lhotse, no fbank: the same with AudioSamples in place of OnTheFlyFeatures, to compare like with like.

    python tools/benchmarks/loader.py [--rounds 3] [--cuts 300] [--workers 1] [--training-rate 1023]

Rates are medians over interleaved rounds, ratios medians of the rounds' ratios, by processor time (of the
workers too), which other work on the machine hardly changes.

--record NAME leaves what is printed in docs/results for RESULTS.md.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import CutSet, Fbank, FbankConfig, Recording, SupervisionSegment
from lhotse.dataset import AudioSamples, DynamicBucketingSampler, K2SpeechRecognitionDataset, OnTheFlyFeatures
from lhotse.dataset.collation import collate_custom_field
from lhotse.dataset.cut_transforms import CutMix
from lhotse.features.io import NumpyHdf5Writer
from recording import quiet, recorded
from torch.utils.data import DataLoader

from spear_lib.data.manifests import save_cuts
from spear_lib.data.mixing import MixingConfig
from spear_lib.features.fbank import FbankExtractor
from spear_lib.pretraining.data import PretrainingData, PretrainingDataConfig
from spear_lib.runtime.progress import progress
from spear_lib.tokens.fields import TokenFacts, attach_tokens, write_store

FIELD, CODEBOOKS = "tokens", 16
MIXED_SHARE = 0.2


def voice(random: np.random.Generator, seconds: float) -> np.ndarray:
    """Something that FLAC has to work on as on speech: harmonics of a wandering pitch in syllables, and
    noise."""
    time_axis = np.arange(round(16000 * seconds)) / 16000
    pitch = 2 * np.pi * (140 * time_axis + 8 * np.sin(2 * np.pi * 0.7 * time_axis + random.uniform(0, 6)))
    harmonics = sum(np.sin(number * pitch) / number for number in range(1, 9))
    syllables = np.clip(np.sin(2 * np.pi * 3 * time_axis), 0.05, 1)
    return 0.1 * harmonics * syllables + random.normal(0, 0.004, len(time_axis))


def make_corpus(folder: Path, num_cuts: int) -> None:
    """FLAC files of 6 to 18 s with tokens in our store and in HDF5; noise of 10 s in WAV files, as
    MUSAN's."""
    random = np.random.default_rng(0)
    for name, count, low, high, ending in (
        ("train", num_cuts, 6, 18, "flac"),
        ("noise", max(4, num_cuts // 10), 10, 10, "wav"),
    ):
        (folder / name).mkdir(parents=True)
        cuts = []
        for number in progress(range(count), count, f"{name} audio", "files"):
            path = folder / name / f"{name}{number}.{ending}"
            soundfile.write(path, voice(random, round(random.uniform(low, high) * 50) / 50), 16000)
            cut = Recording.from_file(path).to_cut()
            if name == "train":  # lhotse's dataset wants a transcript
                text = SupervisionSegment(cut.id, cut.recording_id, 0.0, cut.duration, text="A WORD")
                cut.supervisions = [text]
            cuts.append(cut)
        if name == "noise":
            save_cuts(cuts, folder / "noise.jsonl.gz")
            continue
        codes = [
            random.integers(0, 256, (round(cut.duration * 50), CODEBOOKS)).astype(np.uint8) for cut in cuts
        ]
        facts = TokenFacts(FIELD, "teacher", "quantizer", 50.0, 12.5, CODEBOOKS, 256, "cuts")
        write_store(folder / "packed", facts, cuts, codes)
        save_cuts(attach_tokens(cuts, folder / "packed"), folder / "packed.jsonl.gz")
        with NumpyHdf5Writer(folder / "tokens") as writer:
            theirs = [
                cut.with_custom(FIELD, writer.store_array(cut.id, array, temporal_dim=0, frame_shift=0.02))
                for cut, array in zip(cuts, codes)
            ]
        save_cuts(theirs, folder / "hdf5.jsonl.gz")


class Ours:
    """Epochs of ``PretrainingData``."""

    def __init__(self, folder: Path, batch_seconds: float, workers: int, fbank: bool = False) -> None:
        self.fbank = FbankExtractor() if fbank else None
        half = MIXED_SHARE / 2
        self.data = PretrainingData(
            PretrainingDataConfig(
                train_cuts=[str(folder / "packed.jsonl.gz")],
                noise_cuts=[str(folder / "noise.jsonl.gz")],
                token_fields=[FIELD],
                batch_seconds=batch_seconds,
                num_workers=workers,
                mixing=MixingConfig(noise_probability=half, token_probability=half),
            )
        )

    def epoch(self, number: int) -> float:
        """Seconds of audio that arrived."""
        audio = 0.0
        for batch in self.data.epoch_batches(number):
            if self.fbank is not None:
                self.fbank(batch.waveforms, batch.num_samples)
            audio += batch.audio_seconds
        return audio


class K2WithTokens(K2SpeechRecognitionDataset):
    """lhotse's dataset and, of the cuts of a batch, their tokens padded to (B, T, N)."""

    def __getitem__(self, cuts: CutSet) -> dict:
        batch = super().__getitem__(cuts)
        mixed = CutSet.from_cuts(batch["supervisions"].pop("cut"))
        return {**batch, "tokens": collate_custom_field(mixed, FIELD, pad_value=0)}


class Theirs:
    """Epochs of lhotse's dataset under its own sampler and torch's DataLoader."""

    def __init__(self, folder: Path, batch_seconds: float, workers: int, fbank: bool = True) -> None:
        self.path, self.batch_seconds, self.workers = folder / "hdf5.jsonl.gz", batch_seconds, workers
        features = OnTheFlyFeatures(Fbank(FbankConfig(num_mel_bins=128))) if fbank else AudioSamples()
        noise = CutSet.from_file(folder / "noise.jsonl.gz").to_eager()
        mix = CutMix(noise, snr=(5, 20), p=MIXED_SHARE, pad_to_longest=False, preserve_id=True)
        self.dataset = K2WithTokens(cut_transforms=[mix], input_strategy=features, return_cuts=True)

    def epoch(self, number: int) -> float:
        """Seconds of audio that arrived."""
        cuts = CutSet.from_jsonl_lazy(self.path)
        sampler = DynamicBucketingSampler(
            cuts, max_duration=self.batch_seconds, shuffle=True, num_buckets=10, seed=number
        )
        audio = 0.0
        for batch in DataLoader(self.dataset, sampler=sampler, batch_size=None, num_workers=self.workers):
            supervisions = batch["supervisions"]
            frames, samples = supervisions.get("num_frames"), supervisions.get("num_samples")
            audio += float(frames.sum()) / 100 if frames is not None else float(samples.sum()) / 16000
        return audio


def processor_time() -> float:
    """Seconds of processor time of this process and of the workers that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def compare(subjects: dict[str, Callable[[int], float]], rounds: int, title: str) -> dict[str, float]:
    """Prints and returns audio-seconds per second of processor time; the subjects take turns."""
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    walls: dict[str, list[float]] = {name: [] for name in subjects}
    for epoch in subjects.values():
        epoch(0)
    for number in progress(range(1, rounds + 1), rounds, "rounds", "rounds"):
        for name in sorted(subjects, reverse=number % 2 == 0):
            began, began_wall = processor_time(), time.perf_counter()
            audio = subjects[name](number)
            rates[name].append(audio / (processor_time() - began))
            walls[name].append(audio / (time.perf_counter() - began_wall))
    print(f"{title}: audio-seconds per second of processor time (per second by the wall clock)")
    for name, each in rates.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(rates["ours"], each))
        beside = "" if name == "ours" else f"   ours is {ratio:.2f} times as fast"
        print(f"    {name:17s} {statistics.median(each):6.0f} ({statistics.median(walls[name]):.0f}){beside}")
    return {name: statistics.median(each) for name, each in rates.items()}


def benchmark(
    folder: Path, rounds: int, num_cuts: int, workers: int, batch_seconds: float, training_rate: float
) -> None:
    """Makes the corpus and prints the comparison."""
    make_corpus(folder, num_cuts)
    hours = float(sum(cut.duration for cut in CutSet.from_file(folder / "packed.jsonl.gz"))) / 3600
    print(
        f"{num_cuts} FLAC files, {hours:.2f} h, batches of {batch_seconds:g} s, {rounds} interleaved rounds"
    )
    rates = compare(
        {
            "ours": Ours(folder, batch_seconds, 0).epoch,
            "ours + fbank": Ours(folder, batch_seconds, 0, fbank=True).epoch,
            "lhotse": Theirs(folder, batch_seconds, 0).epoch,
            "lhotse, no fbank": Theirs(folder, batch_seconds, 0, fbank=False).epoch,
        },
        rounds,
        "In the trainer's process",
    )
    if workers:
        rates = compare(
            {
                "ours": Ours(folder, batch_seconds, workers).epoch,
                "lhotse": Theirs(folder, batch_seconds, workers).epoch,
                "lhotse, no fbank": Theirs(folder, batch_seconds, workers, fbank=False).epoch,
            },
            rounds,
            f"Through {workers} worker process(es), the trainer's part included",
        )
    print(
        f"A GPU that trains on {training_rate:g} audio-seconds per second (--training-rate; an assumption, "
        f"not measured here) is fed by {training_rate / rates['ours']:.1f} cores like this one, with "
        f"lhotse's dataset by {training_rate / rates['lhotse']:.1f}"
    )


@recorded("made-up FLAC files")
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--cuts", type=int, default=300, help="FLAC files, 12 s on average")
    parser.add_argument("--workers", type=int, default=1, help="worker processes of the second part; 0: none")
    parser.add_argument("--batch-seconds", type=float, default=200.0, help="audio of a batch, s")
    parser.add_argument(
        "--training-rate",
        type=float,
        default=1023.0,
        help="audio-seconds per second that one GPU trains on; default: what pretrain --dry_run estimates "
        "for Base on an H100",
    )
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    with quiet(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        benchmark(
            Path(folder),
            options.rounds,
            options.cuts,
            options.workers,
            options.batch_seconds,
            options.training_rate,
        )


if __name__ == "__main__":
    main()
