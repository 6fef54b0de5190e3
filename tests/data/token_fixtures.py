"""Toy token stores, with random codes of cuts whose audio does not exist."""

from pathlib import Path

import numpy as np
from lhotse import MonoCut, Recording
from lhotse.audio import AudioSource

from spear_lib.tokens.fields import ShardPlan, TokenFacts, TokenStoreWriter

FACTS = TokenFacts(
    field="toy_cb4",
    teacher_id="toy-1",
    quantizer_id="q1",
    frame_rate=50.0,
    first_frame_center_ms=5.0,
    num_codebooks=4,
    codebook_size=256,
    cuts_id="c1",
)


def cut_of(
    name: str, duration: float, start: float = 0.0, recording_duration: float | None = None
) -> MonoCut:
    total = recording_duration or start + duration
    recording = Recording(name, [AudioSource("file", [0], f"{name}.wav")], 16000, round(total * 16000), total)
    return MonoCut(name, start=start, duration=duration, channel=0, recording=recording)


def codes_of(num_frames: int, seed: int = 0) -> np.ndarray:
    codes = np.random.default_rng(seed).integers(0, 256, size=(num_frames, 4)).astype(np.uint8)
    codes[-1] = 255
    return codes


def make_store(folder: Path, cuts: list[MonoCut], facts: TokenFacts = FACTS) -> dict[str, np.ndarray]:
    codes = {cut.id: codes_of(round(cut.duration * facts.frame_rate), n) for n, cut in enumerate(cuts)}
    half = (len(cuts) + 1) // 2
    writer = TokenStoreWriter(folder, facts, ShardPlan((half, len(cuts))))
    for shard, part in enumerate([cuts[:half], cuts[half:]]):
        writer.write_shard(shard, part, [codes[cut.id] for cut in part])
    return codes
