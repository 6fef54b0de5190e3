"""Teacher embeddings of many cuts: batches by length, results in the order of the cuts."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lhotse.cut import Cut
from torch import Tensor

from spear_lib.data.audio import load_audio
from spear_lib.quantization.options import SpectralOptions
from spear_lib.teachers import Teacher, create_teacher


def teacher_from_options(name: str, path: str, layer: int | None, spectral: SpectralOptions) -> Teacher:
    """The teacher that a command's options describe."""
    if name == "spectral":
        return create_teacher(name, path or None, **asdict(spectral))
    options: dict[str, Any] = {} if layer is None else {"layer": layer}
    return create_teacher(name, path or None, **options)


def recipe_of(name: str, path: str, layer: int | None, spectral: SpectralOptions) -> dict[str, Any]:
    """What is stored with the embeddings and the quantiser so that dump_tokens can make the same teacher."""
    return {"name": name, "path": path, "layer": layer, "spectral": asdict(spectral)}


def teacher_from_recipe(recipe: dict[str, Any], path: str = "") -> Teacher:
    """The teacher of ``recipe_of``; ``path`` overrides where its weights lie now."""
    return teacher_from_options(
        recipe["name"], path or recipe["path"], recipe["layer"], SpectralOptions(**recipe["spectral"])
    )


def length_batches(cuts: Sequence[Cut], batch_seconds: float) -> list[list[int]]:
    """Positions of the cuts in batches of at most ``batch_seconds`` of padded audio (at least one cut
    each)."""
    order = sorted(range(len(cuts)), key=lambda position: (cuts[position].duration, cuts[position].id))
    batches: list[list[int]] = []
    for position in order:
        # Sorted upwards, so the newest cut is the longest of its batch.
        if batches and (len(batches[-1]) + 1) * cuts[position].duration <= batch_seconds:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


def embed_cuts(teacher: Teacher, cuts: Sequence[Cut], batch_seconds: float) -> Iterator[tuple[int, Tensor]]:
    """(position, embeddings (T, D)) of every cut; batches by length, so not in order.

    Raises:
      RuntimeError: audio that cannot be read (names the file).
      ValueError: a number of frames other than the teacher's rule gives.
    """
    device = next((tensor.device for tensor in teacher.buffers()), torch.device("cpu"))
    for batch in length_batches(cuts, batch_seconds):
        audio = [torch.from_numpy(load_audio(cuts[position], teacher.sample_rate)) for position in batch]
        lengths = torch.tensor([len(each) for each in audio])
        padded = torch.nn.utils.rnn.pad_sequence(audio, batch_first=True).to(device)
        embeddings, num_frames = teacher.embed(padded, lengths.to(device))
        for row, position in enumerate(batch):
            count, expected = int(num_frames[row]), teacher.num_frames(int(lengths[row]))
            if count != expected:
                raise ValueError(
                    f"cut {cuts[position].id}: the teacher gave {count} frames for {int(lengths[row])} "
                    f"samples, "
                    f"expected {expected}"
                )
            yield position, embeddings[row, :count]


def resolve_manifests(cuts: str | list[str]) -> list[Path]:
    """``--cuts`` as a list of paths."""
    return [Path(cuts)] if isinstance(cuts, str) else [Path(path) for path in cuts]
