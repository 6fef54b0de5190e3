"""Features of audio on disk: one file per recording, in the one geometry, resumable.

Legend: T frames, D channels.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut

from spear_lib.data.audio import AudioError, load_audio
from spear_lib.data.audio_files import find_audio, open_audio, result_names
from spear_lib.data.manifests import Manifest, save_cuts
from spear_lib.data.problems import Problems
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.interfaces.aligned import AlignedEncoder
from spear_lib.runtime.files import atomic_path, read_json, write_json
from spear_lib.runtime.progress import progress

logger = logging.getLogger(__name__)

FORMATS = ("npy", "safetensors", "lhotse")
FACTS_NAME = "features.json"
CUTS_NAME = "cuts.jsonl.gz"


@dataclass(frozen=True)
class Recording:
    """What is extracted: a name for its file, and where the audio is."""

    name: str
    source: Path | tuple[Manifest, int]

    def cut(self) -> Cut:
        """Its audio; raises AudioError."""
        if isinstance(self.source, Path):
            return open_audio(self.source)
        manifest, position = self.source
        return manifest[position]


def find_recordings(inputs: list[str]) -> list[Recording]:
    """Recordings of manifests (by cut id), files and folders (by their place in the folder).

    Raises:
      ValueError: nothing found, or two of one name.
    """
    found: list[Recording] = []
    paths = [path for path in inputs if not path.endswith((".jsonl", ".jsonl.gz"))]
    for path in inputs:
        if path not in paths:
            manifest = Manifest(path)
            found += [Recording(str(name), (manifest, row)) for row, name in enumerate(manifest.ids)]
    if paths:
        files = find_audio(paths)
        found += [Recording(name, file) for name, file in zip(result_names(files, paths), files)]
    names: set[str] = set()
    for one in found:
        if one.name in names:
            raise ValueError(f"two recordings are called {one.name!r}: give them two runs, two output_dirs")
        names.add(one.name)
        if Path(one.name).is_absolute() or ".." in Path(one.name).parts:
            raise ValueError(f"the cut {one.name!r} would be written outside output_dir: give it another id")
    return found


class FeatureFolder:
    """Where the features go; what they are stands in features.json, and nothing else may join them.

    Args:
      folder: made if missing.
      encoder: what makes the features.
      file_format: of FORMATS. npy: NAME.npy, of several states NAME.STATE.npy; safetensors: NAME.safetensors
        with a tensor per state; lhotse: as npy, and a manifest of cuts that load them.
      dtype: float32 or float16.

    Raises:
      ValueError: the folder holds other features; says which setting differs.
    """

    def __init__(self, folder: str | Path, encoder: AlignedEncoder, file_format: str, dtype: str) -> None:
        self.folder, self.encoder = Path(folder), encoder
        self.format, self.dtype = file_format, np.dtype(dtype)
        self.names = encoder.state_names
        facts = {
            "features": encoder.identity(),
            "states": self.names,
            "channels": encoder.state_dims,
            "frame_rate": encoder.frame_rate,
            "first_frame_center_ms": encoder.first_center_ms,
            "format": "npy" if file_format == "lhotse" else file_format,
            "dtype": dtype,
        }
        path = self.folder / FACTS_NAME
        if path.exists():
            known = read_json(path)
            differing = [name for name in facts if known.get(name) != facts[name]]
            if differing:
                name = differing[0]
                raise ValueError(
                    f"{self.folder} holds features with {name} = {known.get(name)!r}, these would have "
                    f"{facts[name]!r}: give another output_dir, or delete that one"
                )
        write_json(path, facts)

    def paths(self, name: str) -> list[Path]:
        """The files of a recording."""
        if self.format == "safetensors":
            return [self.folder / f"{name}.safetensors"]
        if len(self.names) == 1:
            return [self.folder / f"{name}.npy"]
        return [self.folder / f"{name}.{state}.npy" for state in self.names]

    def is_done(self, name: str) -> bool:
        """Whether all files of a recording are there; each was written aside and renamed."""
        return all(path.exists() for path in self.paths(name))

    def write(self, name: str, states: list[np.ndarray]) -> None:
        """Write the states (T, D) of one recording."""
        states = [np.ascontiguousarray(state.astype(self.dtype)) for state in states]
        if self.format == "safetensors":
            from safetensors.numpy import save_file

            with atomic_path(self.paths(name)[0]) as unfinished:
                save_file(dict(zip(self.names, states)), unfinished)
            return
        for path, state in zip(self.paths(name), states):
            with atomic_path(path) as unfinished, open(unfinished, "wb") as file:
                np.save(file, state)

    def save_manifest(self, recordings: list[Recording], field: str) -> Path:
        """cuts.jsonl.gz: the cuts whose features are there, with a field per state that loads them
        (``cut.load_<field>()``)."""
        path = self.folder / CUTS_NAME
        save_cuts(self._cuts(recordings, field), path)
        return path

    def _cuts(self, recordings: list[Recording], field: str) -> Iterator[Cut]:
        shift = 1.0 / self.encoder.frame_rate
        for recording in recordings:
            if not self.is_done(recording.name):
                continue
            cut = recording.cut()
            for state, path in zip(self.names, self.paths(recording.name)):
                shape = list(np.load(path, mmap_mode="r").shape)
                key = str(path.relative_to(self.folder))
                array = Array("numpy_files", str(self.folder), key, shape)
                name = field if len(self.names) == 1 else f"{field}_{state}"
                setattr(cut, name, TemporalArray(array, temporal_dim=0, frame_shift=shift, start=cut.start))
            yield cut


def _batches(
    recordings: list[Recording], batch_seconds: float, problems: Problems
) -> Iterator[list[tuple[str, np.ndarray]]]:
    """Names and samples, in order, as many as fit into ``batch_seconds`` when padded; what cannot be read is
    a problem and left out."""
    batch: list[tuple[str, np.ndarray]] = []
    longest = 0
    for recording in recordings:
        try:
            samples = load_audio(recording.cut())
        except AudioError as error:
            logger.warning("%s", error)
            problems.bad(error.kind, recording.name)
            continue
        most = max(longest, len(samples))
        if batch and most * (len(batch) + 1) > batch_seconds * SAMPLE_RATE:
            yield batch
            batch, most = [], len(samples)
        batch.append((recording.name, samples))
        longest = most
    if batch:
        yield batch


@torch.no_grad()
def extract(
    recordings: list[Recording],
    encoder: AlignedEncoder,
    folder: FeatureFolder,
    batch_seconds: float,
    problems: Problems,
) -> int:
    """Features of the recordings that have none yet; returns how many were made.

    An utterance's features do not depend on its batch mates (to float rounding).
    """
    missing = [recording for recording in recordings if not folder.is_done(recording.name)]
    problems.good(len(recordings) - len(missing))

    def work() -> Iterator[str]:
        for batch in _batches(missing, batch_seconds, problems):
            output = encoder([torch.from_numpy(samples) for _, samples in batch])
            for row, ((name, _), count) in enumerate(zip(batch, output.lengths.tolist())):
                folder.write(name, [state[row, :count].float().cpu().numpy() for state in output.states])
                problems.good()
                yield name

    made = sum(1 for _ in progress(work(), len(missing), "features", "recordings"))
    problems.check()
    return made
