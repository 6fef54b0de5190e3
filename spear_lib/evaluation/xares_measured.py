"""X-ARES's protocols on the clips of a task, for one encoder (ours)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from spear_lib.data.audio import load_audio
from spear_lib.evaluation.clip_sets import Clip, rounds
from spear_lib.evaluation.measured import mean_and_deviation
from spear_lib.evaluation.xares import Clips, LinearConfig, knn_accuracy, linear_score
from spear_lib.interfaces.aligned import AlignedEncoder
from spear_lib.runtime.progress import progress


@torch.no_grad()
def embed(encoder: AlignedEncoder, clips: list[Clip], what: str) -> dict[str, Tensor]:
    """Name -> mean over the frames (D,), as xares takes it."""
    return {
        clip.name: encoder(torch.from_numpy(load_audio(clip.cut()))).states[0][0].mean(0).float().cpu()
        for clip in progress(clips, len(clips), what, "clips")
    }


def clip_scores(
    clips: list[Clip], vectors: dict[str, Tensor], linear: LinearConfig, seed: int, seeds: list[int]
) -> dict[str, Any]:
    """Both protocols over rounds and seeds, percent.

    Args:
      vectors: name -> (D,) of each clip.
      seed: of the division into rounds. seeds: of the linear layers.
    """
    classes = sorted({label for clip in clips for label in clip.labels})
    multilabel = any(len(clip.labels) > 1 for clip in clips)
    place = {label: index for index, label in enumerate(classes)}

    def gathered(part: list[Clip]) -> Clips:
        targets = np.zeros((len(part), len(classes)), dtype=bool)
        for row, clip in enumerate(part):
            targets[row, [place[label] for label in clip.labels]] = True
        return Clips(torch.stack([vectors[clip.name] for clip in part]), targets)

    sets = [[gathered(part) for part in parts] for _, *parts in rounds(clips, seed)]
    by_seed = [
        float(np.mean([linear_score(*parts, multilabel, linear, each)[0] for parts in sets]))
        for each in seeds
    ]
    result = {
        "metric": "mAP (%)" if multilabel else "accuracy (%)",
        "better": "higher",
        **mean_and_deviation([100 * value for value in by_seed]),
        "seeds": seeds,
        "rounds": len(sets),
        "counts": {"clips": len(clips), "classes": len(classes)},
    }
    if not multilabel:
        result["knn"] = 100 * float(np.mean([knn_accuracy(train, test) for train, _, test in sets]))
    return result
