"""Frozen features read out linearly in closed form: one label of a clip, or one of every frame (ours).

Ridge regression on one-hot labels; the layer and the strength are the best on validation, then training and
validation clips train the one that is tested. Nothing is drawn: the same features give the same score.

Legend: N rows (clips or frames), T frames, D channels, K classes, L layers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lhotse.cut import Cut
from torch import Tensor

from spear_lib.data.audio import load_audio
from spear_lib.data.audio_files import open_audio
from spear_lib.evaluation.clip_sets import TEST, TRAIN, VALID, Clip
from spear_lib.evaluation.clip_sets import rounds as clip_rounds
from spear_lib.evaluation.measured import mean_and_deviation
from spear_lib.evaluation.probe_features import statistics
from spear_lib.evaluation.ridge import STRENGTHS, Ridge
from spear_lib.evaluation.xares import NEIGHBOURS, knn_scores
from spear_lib.features.fbank import SAMPLE_RATE
from spear_lib.interfaces.aligned import AlignedEncoder
from spear_lib.runtime.progress import progress
from spear_lib.runtime.tables import read_table

_BATCH_SECONDS = 30.0  # audio that runs at once; changes speed, not results
_COLUMNS = ("path", "start", "end", "label")


class Segment(NamedTuple):
    """A stretch of a recording, in seconds, and its label."""

    start: float
    end: float
    label: str


@dataclass
class LabelledRecording:
    """A recording whose frames have labels."""

    path: Path
    part: str
    """train, valid or test."""
    segments: list[Segment]
    """By their starts."""


def read_segments(paths: Iterable[str], split: str) -> list[LabelledRecording]:
    """Recordings of tables (.tsv, .csv) with the columns path, start, end (seconds), label and ``split``.

    Raises:
      ValueError: a column is missing, a line cannot be read, a recording is in two parts, or a part is
        missing.
    """
    found: dict[Path, LabelledRecording] = {}
    for table in map(Path, paths):
        for number, row in read_table(table, (*_COLUMNS, split)):
            try:
                segment = Segment(float(row["start"]), float(row["end"]), row["label"])
            except ValueError as error:
                raise ValueError(
                    f"{table}, line {number}: start and end must be seconds, they are {row['start']!r} and "
                    f"{row['end']!r}"
                ) from error
            path = table.parent / row["path"]
            recording = found.setdefault(path, LabelledRecording(path, row[split], []))
            if recording.part != row[split]:
                raise ValueError(
                    f"{table}: {path} is in {recording.part} and in {row[split]}: give it one part"
                )
            recording.segments.append(segment)
    parts = {recording.part for recording in found.values()}
    if parts != {TRAIN, VALID, TEST}:
        raise ValueError(
            f"the parts are {', '.join(sorted(parts)) or 'none'}: train, valid and test are needed"
        )
    for recording in found.values():
        recording.segments.sort()
    return list(found.values())


def labels_at(times: np.ndarray, segments: Sequence[Segment]) -> list[str | None]:
    """The label at each of ``times`` (T,) in seconds: start <= t < end; None outside of all segments."""
    starts = np.array([segment.start for segment in segments])
    found = np.searchsorted(starts, times, side="right") - 1
    return [
        segments[index].label if index >= 0 and time < segments[index].end else None
        for time, index in zip(times, found)
    ]


@torch.no_grad()
def _encoded(encoder: AlignedEncoder, cuts: Sequence[Callable[[], Cut]], what: str) -> Iterator[list[Tensor]]:
    """Of every cut in turn the states (T, D) of all layers, on the host; several run at once."""
    waiting: list[Tensor] = []

    def run() -> Iterator[list[Tensor]]:
        output = encoder(waiting)
        for row, length in enumerate(output.lengths.tolist()):
            yield [state[row, :length].float().cpu() for state in output.states]
        waiting.clear()

    for cut in progress(cuts, len(cuts), what, "recordings"):
        waiting.append(torch.from_numpy(load_audio(cut())))
        if sum(map(len, waiting)) >= _BATCH_SECONDS * SAMPLE_RATE:
            yield from run()
    if waiting:
        yield from run()


def clip_vectors(encoder: AlignedEncoder, clips: Sequence[Clip], what: str) -> list[np.ndarray]:
    """(N, 2 D) of every layer: mean and standard deviation of the frames of each clip."""
    rows: list[list[Tensor]] = [[] for _ in encoder.state_dims]
    for states in _encoded(encoder, [clip.cut for clip in clips], what):
        for of_layer, state in zip(rows, states):
            of_layer.append(statistics(state.unsqueeze(0), torch.tensor([len(state)])))
    return [torch.cat(of_layer).numpy() for of_layer in rows]


def frame_vectors(
    encoder: AlignedEncoder, recordings: Sequence[LabelledRecording], what: str
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Labelled frames: (N, D) of every layer, their labels (N,) and their parts (N,)."""
    rows: list[list[Tensor]] = [[] for _ in encoder.state_dims]
    labels: list[str] = []
    parts: list[str] = []
    cuts = [partial(open_audio, recording.path) for recording in recordings]
    for recording, states in zip(recordings, _encoded(encoder, cuts, what)):
        times = encoder.first_center_ms / 1000 + np.arange(len(states[0])) / encoder.frame_rate
        found = labels_at(times, recording.segments)
        kept = [index for index, label in enumerate(found) if label is not None]
        labels += [label for label in found if label is not None]
        parts += [recording.part] * len(kept)
        for of_layer, state in zip(rows, states):
            of_layer.append(state[kept])
    return [torch.cat(of_layer).double().numpy() for of_layer in rows], np.array(labels), np.array(parts)


def read_out(
    layers: Sequence[np.ndarray],
    labels: np.ndarray,
    rounds: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    positive: str = "",
    neighbours: bool = False,
) -> dict[str, Any]:
    """Scores in percent, the mean over rounds.

    Args:
      layers: (N, D) of every layer.
      labels: (N,) names.
      rounds: rows of training, validation and test.
      positive: the score is the average precision of this label instead of the accuracy of all.
      neighbours: vote of the 10 nearest (cosine of standardised vectors), too, with a layer of its own.

    Returns:
      score; chance: of the commonest label, or how often the positive one is; layers: 0, 1, ... of every
      round; and knn.

    Raises:
      ValueError: there is one label alone, or none is ``positive`` in some part.
    """
    names = sorted(set(labels.tolist()))
    if len(names) < 2 or (positive and positive not in names):
        wanted = f"two or more, with {positive}," if positive else "two or more"
        raise ValueError(f"the labels are {', '.join(names)}: {wanted} are needed")
    targets = labels[:, None] == np.array(names)
    column = names.index(positive) if positive else -1

    def score(predicted: np.ndarray, rows: np.ndarray) -> float:
        if positive:
            return _average_precision(predicted[:, column], targets[rows, column])
        return float((predicted.argmax(1) == targets[rows].argmax(1)).mean())

    found: dict[str, list[float]] = {"score": [], "chance": [], "knn": []}
    chosen = []
    for train, valid, test in rounds:
        both = np.concatenate([train, valid])
        best = (-1.0, 0, STRENGTHS[0])
        for layer, vectors in enumerate(layers):
            ridge = Ridge(vectors[train], targets[train].astype(float))
            for strength in STRENGTHS:
                value = score(ridge.predict(vectors[valid], strength), valid)
                if value > best[0]:
                    best = (value, layer, strength)
        _, layer, strength = best
        ridge = Ridge(layers[layer][both], targets[both].astype(float))
        found["score"].append(score(ridge.predict(layers[layer][test], strength), test))
        share = targets[test].mean(0)
        found["chance"].append(float(share[column] if positive else share.max()))
        chosen.append(layer)
        if neighbours:
            by_layer = [_knn(vectors, targets, train, valid) for vectors in layers]
            found["knn"].append(_knn(layers[int(np.argmax(by_layer))], targets, both, test))
    means = {name: 100 * float(np.mean(values)) for name, values in found.items() if values}
    return {**means, "layers": chosen, "num_layers": len(layers)}


def measure_clips(
    encoder: AlignedEncoder, clips: Sequence[Clip], what: str, positive: str = ""
) -> dict[str, Any]:
    """The result of one encoder on clips with one label each: ``read_out`` in the rounds of ``clip_sets``."""
    several = next((clip for clip in clips if len(clip.labels) != 1), None)
    if several is not None:
        raise ValueError(
            f"{several.name} has the labels {', '.join(several.labels)}: one each is needed here "
            "(evaluate_xares takes several)"
        )
    row = {clip.name: index for index, clip in enumerate(clips)}
    parts = [
        tuple(np.array([row[clip.name] for clip in part]) for part in three)
        for _, *three in clip_rounds(list(clips))
    ]
    labels = np.array([clip.labels[0] for clip in clips])
    return _result(
        read_out(clip_vectors(encoder, clips, what), labels, parts, positive, True), labels, positive
    )


def measure_frames(
    encoder: AlignedEncoder, recordings: Sequence[LabelledRecording], what: str, positive: str = ""
) -> dict[str, Any]:
    """The result of one encoder on the frames of recordings."""
    vectors, labels, part = frame_vectors(encoder, recordings, what)
    parts = tuple(np.flatnonzero(part == name) for name in (TRAIN, VALID, TEST))
    return _result(read_out(vectors, labels, [parts], positive), labels, positive)


def _result(found: dict[str, Any], labels: np.ndarray, positive: str) -> dict[str, Any]:
    return {
        "metric": f"average precision of {positive} (%)" if positive else "accuracy (%)",
        "better": "higher",
        **mean_and_deviation([found.pop("score")]),
        **found,
        "rounds": len(found["layers"]),
        "counts": {"rows": len(labels), "classes": len(set(labels.tolist()))},
    }


def _average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    if not targets.any():
        raise ValueError("no frame or clip of a part has the positive label: use other parts")
    return float(average_precision_score(targets, scores))


def _knn(vectors: np.ndarray, targets: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    mean, scale = vectors[train].mean(0), np.maximum(vectors[train].std(0), 1e-12)
    known, asked = (torch.from_numpy((vectors[rows] - mean) / scale) for rows in (train, test))
    labels = torch.from_numpy(targets[train].argmax(1))
    votes = knn_scores(known, labels, asked, targets.shape[1], NEIGHBOURS, over_samples=False)
    return float((votes.argmax(1).numpy() == targets[test].argmax(1)).mean())
