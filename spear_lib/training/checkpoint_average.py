"""Weights averaged over the end of a run, from its checkpoints (spec optim §3)."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from spear_lib.training.averaging import average_between
from spear_lib.training.checkpoint import CheckpointFolder, load

logger = logging.getLogger(__name__)

METHODS = ("range", "plain", "none")


@dataclass(frozen=True)
class AveragedWeights:
    """State of the whole model, in words where it comes from, and the newest checkpoint in it."""

    state: dict[str, Tensor]
    words: str
    checkpoint: dict[str, Any]
    path: Path


def average_checkpoints(
    experiment_dir: str | Path,
    last: int,
    method: str | None = None,
    step: int = 0,
    kind: str | None = None,
    fewer: bool = False,
) -> AveragedWeights:
    """Average over the last save intervals of a run.

    Args:
      last: how many intervals; 0 with ``range`` and ``plain``: the whole run.
      method: range: over every snapshot of the intervals, from the running averages in the checkpoints;
        plain: over the weights of the checkpoints; none: the newest weights; None: range where there are
        running averages, else plain.
      step: average up to this checkpoint (0: the newest).
      kind: what the checkpoints must be of, see ``checkpoint.load``.
      fewer: with fewer checkpoints than ``last`` average over all of them, instead of an error.

    Raises:
      ValueError: no checkpoint, fewer checkpoints than wanted, another kind, no running average.
    """
    if method not in (*METHODS, None):
        raise ValueError(f"method must be {', '.join(METHODS)}, it is {method!r}")
    folder = CheckpointFolder(Path(experiment_dir) / "checkpoints")
    known = folder.steps()
    if folder.last.exists():
        newest = load(folder.last, kind)["step"]
        if newest not in dict(known):  # a run that was interrupted
            known.append((newest, folder.last))
    known = [(number, path) for number, path in known if not step or number <= step]
    if not known:
        raise ValueError(
            f"{folder.folder} has no checkpoint{f' up to step {step}' if step else ''}: "
            "let the training get to its first save_interval, or finish"
        )
    end_step, end_path = known[-1]
    if step and end_step != step:
        raise ValueError(f"there is no checkpoint of step {step}; the nearest before is {end_step}")
    end = load(end_path, kind)
    if method is None:
        method = "range" if end.get("model_average") else "plain"
    if method == "none":
        return AveragedWeights(end["model"], f"step {end_step}, not averaged", end, end_path)
    if last > len(known):
        found = f"{folder.folder} holds {len(known)} checkpoints and the average is over {last}"
        if not fewer:
            raise ValueError(
                f"{found}: use at most {len(known)}, or keep more checkpoints (training.keep_checkpoints)"
            )
        logger.info("%s: averaging over all of them", found)
    if method == "plain":
        chosen = known[-last:] if last else known
        state = _plain_mean([path for _, path in chosen], kind)
        words = f"mean of the weights of steps {', '.join(str(number) for number, _ in chosen)}"
        return AveragedWeights(state, words, end, end_path)
    running = _running_average(end, end_path)
    start: dict[str, Any] = {"state": None, "step": 0}
    if 0 < last < len(known):  # with as many checkpoints as intervals the first interval begins at step 0
        path = known[-1 - last][1]
        start = _running_average(load(path, kind), path)
    if start["step"] >= running["step"]:
        raise ValueError(
            f"no snapshot of the model average lies between the last {last + 1} checkpoints of "
            f"{folder.folder}: average over more, or take the last weights as they are"
        )
    state = average_between(start["state"], start["step"], running["state"], running["step"])
    words = f"mean over steps {start['step'] + 1} to {running['step']}"
    return AveragedWeights(state, words, end, end_path)


def _running_average(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    average = checkpoint.get("model_average")
    if not average or not average.get("step"):
        raise ValueError(
            f"{path} holds no running average (training.average_period was 0, or above the number of "
            "steps): average the weights of the checkpoints (method plain), or take the last ones as they are"
        )
    return average


def _plain_mean(paths: list[Path], kind: str | None) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for path in paths:
        state = load(path, kind)["model"]
        for name, value in state.items():
            if value.is_floating_point():
                total[name] = total.get(name, 0.0) + value.double() / len(paths)
            else:
                total[name] = value
    return {name: value.to(state[name].dtype) for name, value in total.items()}


def weights_hash(state: dict[str, Tensor]) -> str:
    """Content hash of weights: equal results can be recognised as coming from equal weights."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
