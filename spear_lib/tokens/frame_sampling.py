"""Stage 3's work: which frames train the quantiser, and their teacher embeddings as float16 shards (ours)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spear_lib.data.audio import source_of
from spear_lib.data.decoding import decode_ahead
from spear_lib.data.manifests import Manifest
from spear_lib.data.problems import Problems
from spear_lib.runtime import keyed_random
from spear_lib.runtime.files import atomic_file, write_json
from spear_lib.runtime.progress import progress
from spear_lib.teachers import Teacher
from spear_lib.teachers.embedding import NOT_FINITE, embed_batches, length_batches, not_finite


@dataclass(frozen=True)
class SamplingOptions:
    """Which frames become the quantiser's training data."""

    num_frames: int = 200000
    """Frames wanted in all (SPEAR: about 12 million of WavLM Large)."""
    frames_per_cut: int = 500
    """At most this many random frames of one recording (ours)."""
    batch_seconds: float = 120.0
    """Audio per teacher call, s (memory; the reference uses 200 on an 80 GB GPU)."""
    shard_frames: int = 100000
    """Frames per file, about; an interrupted run goes on with the first missing file (ours)."""


def choose_cuts(manifest: Manifest, frame_rate: float, sampling: SamplingOptions, seed: int) -> list[int]:
    """Positions of random cuts that together hold about ``num_frames`` sampled frames.

    Balanced over recordings: no second cut of a recording before every recording has given one, and so on.
    """
    order = keyed_random.generator("embeddings", seed).permutation(len(manifest))
    order = order[np.argsort(_turns(np.asarray(manifest.recording_keys)[order]), kind="stable")]
    counts = np.round(np.asarray(manifest.durations)[order] * frame_rate).clip(max=sampling.frames_per_cut)
    # As many as are needed, with the one that makes it enough.
    needed = int(np.searchsorted(np.cumsum(counts), sampling.num_frames)) + 1
    return order[:needed].tolist()


def _turns(keys: np.ndarray) -> np.ndarray:
    """How many of the earlier entries equal each entry."""
    order = np.argsort(keys, kind="stable")
    grouped = keys[order]
    is_first = np.append(True, grouped[1:] != grouped[:-1])
    begins = np.maximum.accumulate(np.where(is_first, np.arange(len(keys)), 0))
    turns = np.empty(len(keys), dtype=np.int64)
    turns[order] = np.arange(len(keys)) - begins
    return turns


def choose_frames(count: int, cut_id: str, sampling: SamplingOptions, seed: int) -> np.ndarray:
    """Which of a cut's ``count`` frames are taken, ascending."""
    if count <= sampling.frames_per_cut:
        return np.arange(count)
    draw = keyed_random.generator("embedding frames", seed, cut_id)
    return np.sort(draw.choice(count, sampling.frames_per_cut, replace=False))


def write_frames(
    teacher: Teacher,
    manifest: Manifest,
    positions: list[int],
    path: Path,
    sampling: SamplingOptions,
    seed: int,
    problems: Problems,
    num_workers: int,
) -> int:
    """Embed the cuts at ``positions`` and commit their sampled frames to ``path`` (.npy and .json).

    Args:
      problems: counts the cuts that cannot be read; raises when they are too many.
      num_workers: threads that decode audio ahead.

    Returns:
      the number of frames.
    """
    groups = length_batches(manifest.durations[positions].tolist(), sampling.batch_seconds)
    audio = decode_ahead(manifest, [[positions[row] for row in group] for group in groups], num_workers)
    parts: dict[int, np.ndarray] = {}
    chosen: dict[int, np.ndarray] = {}
    for decoded in progress(audio, len(groups), path.name, "batches"):
        for kind, message in decoded.errors.values():
            problems.bad(kind, message)
        damaged: set[int] = set()
        for position, samples in decoded.audio.items():
            count = teacher.num_frames(len(samples))
            chosen[position] = choose_frames(count, decoded.cuts[position].id, sampling, seed)
            parts[position] = np.empty((len(chosen[position]), teacher.embedding_dim), dtype=np.float16)
        for pieces in embed_batches(teacher, decoded.audio, sampling.batch_seconds):
            damaged |= not_finite(pieces, torch.float16)
            for piece in pieces:
                index = chosen[piece.position] - piece.first_frame
                wanted = (index >= 0) & (index < len(piece.embeddings))
                embeddings = piece.embeddings[torch.from_numpy(index[wanted]).to(piece.embeddings.device)]
                parts[piece.position][wanted] = embeddings.to(torch.float16).cpu().numpy()
        for position in damaged:
            del parts[position]
            cut = decoded.cuts[position]
            problems.bad(NOT_FINITE, f"{cut.id} ({source_of(cut)})")
        problems.good(len(decoded.audio) - len(damaged))
    kept = [position for position in positions if position in parts]
    nothing = np.empty((0, teacher.embedding_dim), dtype=np.float16)
    with atomic_file(path.with_suffix(".npy")) as file:
        np.save(file, np.concatenate([nothing, *(parts[position] for position in kept)]))
    counts = [len(parts[position]) for position in kept]
    ids = [manifest.ids[position] for position in kept]
    write_json(path.with_suffix(".json"), {"ids": ids, "num_frames": counts}, compact=True)
    return sum(counts)
