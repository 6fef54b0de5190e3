"""A handful of short recordings with transcripts and tokens, for the tests of the data sets."""

from pathlib import Path

import numpy as np
import soundfile
from lhotse import Recording, SupervisionSegment
from lhotse.cut import Cut

from spear_lib.data.manifests import save_cuts
from spear_lib.tokens.fields import TokenFacts, attach_tokens, write_store

FIELD = "test_cb4"
QUANTIZER_ID = "quantiser-a"


def make_cuts(folder: Path, count: int, seed: int = 0, prefix: str = "cut") -> list[Cut]:
    """``count`` cuts of noise, 1 to 3 s, each with a transcript of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    cuts = []
    for number in range(count):
        name = f"{prefix}{number:02d}"
        path = folder / f"{name}.wav"
        soundfile.write(path, random.normal(0, 0.1, int(16000 * random.uniform(1, 3))), 16000)
        cut = Recording.from_file(path, recording_id=name).to_cut()
        cut.id = name
        text = f"word {number}"
        cut.supervisions = [
            SupervisionSegment(id=name, recording_id=name, start=0, duration=cut.duration, text=text)
        ]
        cuts.append(cut)
    return cuts


def with_tokens(cuts: list[Cut], store: Path, quantizer_id: str = QUANTIZER_ID) -> list[Cut]:
    """The cuts with random tokens of 4 codebooks at 50 Hz attached."""
    random = np.random.default_rng(1)
    facts = TokenFacts(
        field=FIELD,
        teacher_id="teacher",
        quantizer_id=quantizer_id,
        frame_rate=50.0,
        first_frame_center_ms=12.5,
        num_codebooks=4,
        codebook_size=256,
        cuts_id="cuts",
    )
    codes = [random.integers(0, 256, (int(cut.duration * 50), 4)).astype(np.uint8) for cut in cuts]
    write_store(store, facts, cuts, codes)
    return list(attach_tokens(cuts, store))


def tiny_corpus(folder: Path, count: int = 24) -> dict[str, str]:
    """Paths of two manifests: "train" (tokens and transcripts) and "noise"."""
    train, noise = folder / "train.jsonl.gz", folder / "noise.jsonl.gz"
    save_cuts(with_tokens(make_cuts(folder / "wav", count), folder / "tokens"), train)
    save_cuts(make_cuts(folder / "noise", 4, seed=7, prefix="noise"), noise)
    return {"train": str(train), "noise": str(noise)}
