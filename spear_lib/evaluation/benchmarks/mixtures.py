"""Speech mixed with other speech, or with noise, whose parts are known: for SD, SS and SE (ours).

Utterances come from manifests with speakers; speakers of one part are in no other. What is mixed with what,
and how, is drawn from (seed, part, number) alone.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
from lhotse import SupervisionSegment
from lhotse.cut import Cut

from spear_lib.data.audio import cut_of, load_audio
from spear_lib.data.audio_files import find_audio, open_audio
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.runtime import keyed_random

PARTS = {"train": 0.6, "valid": 0.2, "test": 0.2}
"""Part -> its share of speakers and of mixtures."""


def _by_part(manifests: str, longest: float) -> dict[str, dict[str, list[Cut]]]:
    """Part -> speaker -> utterances of at most ``longest`` seconds.

    Args:
      manifests: a manifest, or a folder of which all *_cuts_dev.jsonl.gz and *_cuts_test*.jsonl.gz are read.

    Raises:
      ValueError: no manifest, or fewer than six speakers.
    """
    path = Path(manifests)
    paths = (
        [path]
        if path.is_file()
        else sorted([*path.glob("*_cuts_dev.jsonl.gz"), *path.glob("*_cuts_test*.jsonl.gz")])
    )
    if not paths:
        raise ValueError(
            f"{path} holds no *_cuts_dev.jsonl.gz nor *_cuts_test*.jsonl.gz to mix: run prepare.sh"
        )
    speakers: dict[str, list[Cut]] = {}
    for cut in Manifest(paths):
        names = {one.speaker for one in cut.supervisions if one.speaker}
        if len(names) == 1 and 0.5 <= cut.duration <= longest:
            speakers.setdefault(names.pop(), []).append(cut)
    if len(speakers) < 6:
        raise ValueError(
            f"{', '.join(map(str, paths))} hold {len(speakers)} speakers with utterances of 0.5 to "
            f"{longest:g} s: 6 or more are needed, two for each part"
        )
    names = sorted(speakers, key=lambda name: keyed_random.key("speakers of mixtures", name))
    tests, valids = (max(2, round(PARTS[part] * len(names))) for part in ("test", "valid"))
    chosen = {"test": names[:tests], "valid": names[tests : tests + valids], "train": names[tests + valids :]}
    return {part: {name: speakers[name] for name in own} for part, own in chosen.items()}


def make_two_speakers(
    folder: Path, cuts: str, num_mixtures: int = 100, longest: float = 8.0, seed: int = 0
) -> None:
    """Mixtures of two speakers at -5 to 5 dB, the second one beginning at any time of the first: manifests
    train, valid and test with a supervision for each speaker (SD) and the files of the sources (SS)."""
    for part, speakers in _by_part(cuts, longest).items():
        made = []
        for number in range(max(2, round(PARTS[part] * num_mixtures))):
            random = keyed_random.generator("mixture of two", seed, part, number)
            pair = [sorted(speakers)[index] for index in random.choice(len(speakers), 2, replace=False)]
            chosen = [speakers[name][int(random.integers(len(speakers[name])))] for name in pair]
            first, second = (load_audio(cut) for cut in chosen)
            second = second * _gain(first, second, random.uniform(-5.0, 5.0))
            start = int(random.integers(0, len(first)))
            total = max(len(first), start + len(second))
            sources = np.zeros((2, total), dtype=np.float32)
            sources[0, : len(first)], sources[1, start : start + len(second)] = first, second
            times = [(0.0, len(first)), (start / SAMPLE_RATE, len(second))]
            cut = _write(folder, part, number, sources.sum(0), sources)
            cut.supervisions = [
                SupervisionSegment(
                    f"{cut.id}-{index}", cut.recording.id, begin, size / SAMPLE_RATE, speaker=name
                )
                for index, (name, (begin, size)) in enumerate(zip(pair, times))
            ]
            made.append(cut)
        save_cuts(made, folder / f"{part}.jsonl.gz")


def make_noisy_speech(
    folder: Path, cuts: str, noise: str = "", num_mixtures: int = 100, longest: float = 8.0, seed: int = 0
) -> None:
    """Speech in noise at 0 to 15 dB: manifests train, valid and test with the file of the clean speech (SE).

    Args:
      noise: folder of noises; the last fifth of each is heard in test alone. Empty: noise with a random slope
        of its spectrum.
    """
    noises = [load_audio(open_audio(path)) for path in find_audio([noise])] if noise else []
    for part, speakers in _by_part(cuts, longest).items():
        utterances = [cut for name in sorted(speakers) for cut in speakers[name]]
        made = []
        for number in range(max(2, round(PARTS[part] * num_mixtures))):
            random = keyed_random.generator("speech in noise", seed, part, number)
            clean = load_audio(utterances[int(random.integers(len(utterances)))])
            background = _noise(noises, len(clean), part, random)
            background = background * _gain(clean, background, -random.uniform(0.0, 15.0))
            made.append(_write(folder, part, number, clean + background, clean[None]))
        save_cuts(made, folder / f"{part}.jsonl.gz")


def _noise(noises: list[np.ndarray], size: int, part: str, random: np.random.Generator) -> np.ndarray:
    """(size,) of a part of one noise, or made."""
    if not noises:
        spectrum = np.fft.rfft(random.standard_normal(size))
        slope = np.maximum(np.arange(len(spectrum)), 1.0) ** -random.uniform(0.0, 1.0)
        return np.fft.irfft(spectrum * slope, size)
    whole = noises[int(random.integers(len(noises)))]
    border = len(whole) * 4 // 5
    own = whole[border:] if part == "test" else whole[:border]
    own = np.tile(own, -(-size // len(own)) + 1)
    start = int(random.integers(0, len(own) - size))
    return own[start : start + size]


def _gain(reference: np.ndarray, other: np.ndarray, level_db: float) -> float:
    """Factor that brings ``other`` to ``level_db`` above the power of ``reference``."""
    powers = (float(np.mean(np.square(one, dtype=np.float64))) for one in (reference, other))
    target, now = (max(power, 1e-10) for power in powers)
    return float(np.sqrt(target / now * 10 ** (level_db / 10)))


def _write(folder: Path, part: str, number: int, mixture: np.ndarray, sources: Iterable[np.ndarray]) -> Cut:
    """Mixture and sources as files of one scale; paths as they will be when the folder has its final name."""
    level = min(1.0, 0.95 / max(float(np.abs(mixture).max()), 1e-9))
    name = f"{part}-{number:04d}"
    final = folder.with_name(folder.name.removesuffix(".tmp"))
    own, files = folder / "audio" / f"{name}.wav", []
    own.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(own, level * mixture, SAMPLE_RATE)
    for index, source in enumerate(sources, 1):
        path = own.with_name(f"{name}-s{index}.wav")
        soundfile.write(path, level * source, SAMPLE_RATE)
        files.append(str((final / "audio" / path.name).absolute()))
    cut = open_audio(own)
    cut.recording.sources[0].source = str((final / "audio" / own.name).absolute())
    return cut_of(cut.recording, name, custom={"sources": files})
