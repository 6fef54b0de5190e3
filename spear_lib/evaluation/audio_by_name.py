"""Features and tokens of files that alignments name.

Legend: T frames, D channels, C codebooks.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from lhotse.cut import Cut
from torch import Tensor

from spear_lib.data.audio import load_audio
from spear_lib.data.audio_files import find_audio, open_audio
from spear_lib.data.manifests import Manifest
from spear_lib.interfaces.aligned import AlignedEncoder
from spear_lib.runtime.progress import progress
from spear_lib.tokens.store import TokenStoreReader


class NamedAudio(Mapping[str, Cut]):
    """Name -> cut, of manifests (by cut id) and of files and folders of audio: by the file's name without
    ending, where one file alone has it, and by its place in the folder, joined by "-" ("dr1-fvmh0-sa1").

    Args:
      paths: manifests (.jsonl, .jsonl.gz), files, folders.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self.cuts: dict[str, Cut | Path] = {}
        for path in map(Path, paths):
            if path.name.endswith((".jsonl", ".jsonl.gz")):
                self.cuts |= {cut.id: cut for cut in Manifest(path)}
                continue
            files = find_audio([path])
            stems = Counter(file.stem for file in files)
            for file in files:
                inside = file.relative_to(path) if path.is_dir() else Path(file.name)
                if stems[file.stem] == 1:
                    self.cuts[file.stem] = file
                self.cuts["-".join(inside.with_suffix("").parts)] = file

    def __getitem__(self, name: str) -> Cut:
        found = self.cuts[name]
        return open_audio(found) if isinstance(found, Path) else found

    def __iter__(self) -> Iterator[str]:
        return iter(self.cuts)

    def __len__(self) -> int:
        return len(self.cuts)

    def check(self, names: Iterable[str]) -> None:
        """ValueError if one of ``names`` is not there."""
        missing = sorted(set(names) - set(self.cuts))
        if missing:
            some = next(iter(self.cuts), "none")
            raise ValueError(
                f"{len(missing)} files of the alignments have no audio, for example {missing[0]!r} (of audio "
                f"there is {some!r}, ...): give the folder or manifest with the names of the alignments"
            )


@torch.no_grad()
def features_of(
    encoder: AlignedEncoder, audio: NamedAudio, names: list[str], what: str
) -> list[dict[str, Tensor]]:
    """Of every state: name -> (T, D) float32 on the host."""
    found: list[dict[str, Tensor]] = [{} for _ in encoder.state_dims]
    for name in progress(names, len(names), what, "files"):
        states = encoder(torch.from_numpy(load_audio(audio[name]))).states
        for of_state, state in zip(found, states):
            of_state[name] = state[0].float().cpu()
    return found


def tokens_of(
    store: TokenStoreReader, audio: NamedAudio, names: list[str]
) -> tuple[dict[str, Tensor], float]:
    """Name -> (T, C) int64 in the geometry of ``interfaces.aligned``, and the centre of frame 0 in ms."""
    facts = store.facts
    hop_ms = 1000.0 / facts.frame_rate
    shift = int(facts.first_frame_center_ms // hop_ms)
    found = {}
    for name in names:
        cut = audio[name]
        codes = store.read(cut).astype(np.int64)
        if not len(codes):
            raise ValueError(f"{store.store} holds no frames of {name}: leave it out of the alignments")
        total = int(np.ceil(round(cut.duration * 16000) * facts.frame_rate / 16000))
        index = np.clip(np.arange(total) - shift, 0, len(codes) - 1)
        found[name] = torch.from_numpy(codes[index])
    return found, facts.first_frame_center_ms - shift * hop_ms
