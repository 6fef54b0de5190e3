"""Average the last checkpoints of a run and write the encoder as a folder for load_encoder (spec optim §3).

    python -m spear_lib.bin.average_checkpoints --experiment_dir exp/pretrain --output exp/pretrain/encoder
    --last 4

``range`` gives the mean over every step of the last intervals, from the running averages in the checkpoints;
``plain`` the mean of the checkpoints' own weights.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spear_lib.bin.common import commit, first_screen, run
from spear_lib.config import load as load_options
from spear_lib.config import parse
from spear_lib.pretrained import save_encoder
from spear_lib.training.averaging import average_between
from spear_lib.training.checkpoint import CheckpointFolder, load
from spear_lib.zipformer import SpearEncoder, ZipformerConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AverageOptions:
    """Which checkpoints to average, and where the encoder goes."""

    experiment_dir: str
    """Folder of a run of pretrain or finetune_asr."""
    output: str
    """Folder for config.json and model.safetensors."""
    last: int = 4
    """How many save intervals the average covers (reference: 4 intervals of 4000 steps); 0: the whole run."""
    step: int = 0
    """Average up to this checkpoint (0: the newest)."""
    method: str = "range"
    """range: over every averaged step of the intervals; plain: over the checkpoints; none: the newest
    weights."""


def main() -> None:
    options = parse(AverageOptions, prog="python -m spear_lib.bin.average_checkpoints", description=__doc__)
    first_screen(
        "Averaging checkpoints",
        {"of": options.experiment_dir, "method": options.method, "writes to": options.output},
    )
    state, provenance, encoder_config = average(options)
    encoder = SpearEncoder(load_options(ZipformerConfig, encoder_config))
    prefix = "encoder."
    own = encoder.state_dict()
    part = {
        name: state[prefix + name].to(value.dtype) for name, value in own.items() if prefix + name in state
    }
    if set(part) != set(own):
        raise ValueError(
            f"the checkpoint lacks {sorted(set(own) - set(part))[:5]} of the encoder: was it written by "
            "another model?"
        )
    encoder.load_state_dict(part)
    save_encoder(encoder, options.output, provenance)
    logger.info("wrote %s: %s", options.output, provenance["average"])


def average(options: AverageOptions) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Averaged state of the whole model, where it comes from, and the encoder's configuration."""
    if options.method not in ("range", "plain", "none"):
        raise ValueError(f"method must be range, plain or none, it is {options.method!r}")
    folder = CheckpointFolder(Path(options.experiment_dir) / "checkpoints")
    known = [(step, path) for step, path in folder.steps() if not options.step or step <= options.step]
    if not known:
        raise ValueError(
            f"{folder.folder} has no step-*.pt{f' up to step {options.step}' if options.step else ''}: "
            "let the training get to its first save_interval, or finish"
        )
    if options.step and known[-1][0] != options.step:
        raise ValueError(
            f"there is no checkpoint of step {options.step}; the nearest before is {known[-1][0]}"
        )
    end_step, end_path = known[-1]
    end = load(end_path)
    if options.method == "none":
        state, words = end["model"], f"none: the weights of step {end_step}"
    elif options.method == "plain":
        paths = known[-options.last :] if options.last else known
        state = _plain_mean([load(path)["model"] for _, path in paths])
        words = f"mean of the weights of steps {', '.join(str(step) for step, _ in paths)}"
    else:
        state, words = _range_average(known, options.last, end)
    provenance = {
        "source": str(end_path),
        "kind": end["kind"],
        "step": end_step,
        "hours": end["hours"],
        "average": words,
        "quantizer_ids": end.get("quantizer_ids", {}),
        "code": commit(),
    }
    return state, provenance, end["encoder_config"]


def _range_average(
    known: list[tuple[int, Path]], last: int, end: dict[str, Any]
) -> tuple[dict[str, Tensor], str]:
    end_average = _model_average(end, known[-1][1])
    if last == 0 or last >= len(known):
        if last:
            logger.info(
                "there are %d checkpoints, fewer than last + 1 = %d: averaging the whole run",
                len(known),
                last + 1,
            )
        return end_average["state"], f"mean over steps 1 to {end_average['step']}"
    start_average = _model_average(load(known[-1 - last][1]), known[-1 - last][1])
    state = average_between(
        start_average["state"], start_average["step"], end_average["state"], end_average["step"]
    )
    return state, f"mean over steps {start_average['step'] + 1} to {end_average['step']}"


def _model_average(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    average = checkpoint.get("model_average")
    if not average or not average.get("step"):
        raise ValueError(
            f"{path} holds no running average (training.average_period was 0, or above the number of "
            "steps): use "
            "--method plain"
        )
    return average


def _plain_mean(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[-1].items()
    }


if __name__ == "__main__":
    run(main)
